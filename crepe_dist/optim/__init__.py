"""Optimizers (Adam and SGD), parameters, and fixed-point gradients."""

"""Optimizers (Adam and SGD), the parameters that they update, and fixed-point gradients."""

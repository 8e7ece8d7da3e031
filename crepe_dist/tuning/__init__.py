"""Hyperparameter search for the command ``tune``."""

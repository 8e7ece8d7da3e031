"""Observers of a training run, called through the hooks of ``Observer``."""

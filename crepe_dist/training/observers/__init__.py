"""Observers of a training run, which ``Guards`` calls at its hooks."""

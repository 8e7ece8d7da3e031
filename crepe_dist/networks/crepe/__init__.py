"""Crepe: residual convolutions over n-grams, and a table of n-grams."""

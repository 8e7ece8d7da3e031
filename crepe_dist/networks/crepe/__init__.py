"""Crepe: residual convolutions over character n-grams, and a table of n-gram weights."""

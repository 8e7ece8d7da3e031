"""The table of hashed character n-grams."""

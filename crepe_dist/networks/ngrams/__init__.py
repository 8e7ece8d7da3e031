"""The n-gram network: a table of weights of hashed character n-grams and words."""

"""Encoding of texts, the data set folder, and its loader."""

"""Texts in, encoded data set folder and batches of codes out."""

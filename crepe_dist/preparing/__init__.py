"""Preparation of text files as a data set folder, for the command `prepare`."""

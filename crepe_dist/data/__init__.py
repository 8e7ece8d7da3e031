"""Encoding of texts as character ids, the folder of a prepared data set, and the loader of its batches."""

"""Data sets: the encoding of texts as character ids, the data set folder, and the loader of batches."""

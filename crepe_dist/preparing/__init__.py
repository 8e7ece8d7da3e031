"""Text files in, data set folder out: what `prepare` does."""

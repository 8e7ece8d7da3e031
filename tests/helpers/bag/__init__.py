"""A network of one folder, for tests: a bag of characters."""

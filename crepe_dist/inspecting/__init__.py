"""Detection of wrong labels and other problems in a prepared data set."""

"""Search for wrong labels and other trouble in a prepared data set."""

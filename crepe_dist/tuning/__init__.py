"""Search for better settings of training, for the command `tune`."""

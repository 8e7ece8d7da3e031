"""Training and data preparation on a Ray cluster. Ray only starts the processes."""

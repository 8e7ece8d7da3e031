"""Training and preparation on a Ray cluster, which only has to start processes."""

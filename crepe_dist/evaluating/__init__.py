"""Scores of a checkpoint on a prepared data set, as ``evaluate`` tells them."""

"""Evaluation of a checkpoint on a prepared data set."""

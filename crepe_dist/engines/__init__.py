"""Engines that compute and train the networks."""

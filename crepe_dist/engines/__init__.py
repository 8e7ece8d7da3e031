"""Engines that compute the logits and gradients of a network."""

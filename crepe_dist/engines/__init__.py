"""Engines, which compute the logits and gradients of a network."""

"""Gluon networks, and the engines that compute and train them."""

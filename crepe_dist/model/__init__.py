"""The networks, their parameters, and the engines that compute them."""

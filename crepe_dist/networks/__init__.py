"""The networks, one package each. ``network_registry.py`` lists them, and other packages import them through it."""

"""The networks, a folder each. ``registry.py`` lists them; other rooms reach them through it."""

"""Version of the package, in a module of its own so that every room may import it without the rooms that it names."""

__version__ = "0.1.0"

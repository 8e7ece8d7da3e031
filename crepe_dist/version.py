"""Version of the package, in a module of its own so that importing it does not import the rest of the package."""

__version__ = "0.1.0"

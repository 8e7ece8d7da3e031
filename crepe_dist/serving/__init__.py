"""A trained checkpoint put to use."""

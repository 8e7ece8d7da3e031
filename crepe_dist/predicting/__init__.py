"""A trained checkpoint applied to texts."""

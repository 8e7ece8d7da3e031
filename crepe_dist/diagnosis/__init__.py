"""Whether this machine can train: what is looked at, what is tried, and how both are shown."""

"""Observers that follow a run while it trains, through the hooks of ``Observer``."""

"""Processes that train together: launcher, rendezvous, world, devices, watchdog."""

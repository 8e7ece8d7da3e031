"""Processes that train together: launcher, rendezvous, process group, devices, signals and watchdog."""

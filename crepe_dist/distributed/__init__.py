"""Processes that train together: launcher, rendezvous, world, devices, watchdog; the only room that imports Horovod."""

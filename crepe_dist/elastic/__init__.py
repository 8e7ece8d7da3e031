"""Processes of a run: they are started, watched, and restarted after a failure, on this host or on a cluster.

No module of this package imports MXNet or Horovod.
"""

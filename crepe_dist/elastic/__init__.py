"""Elastic training: starts, monitors and restarts the processes of a run, on this host or on a cluster.

No module of this package imports MXNet or Horovod.
"""

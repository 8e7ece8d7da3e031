"""Start, watch and restart of the processes of a run, on this host or on a cluster; never imports MXNet or Horovod."""

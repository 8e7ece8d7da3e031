"""Start, watch and restart of workers on one host or several; never imports MXNet or Horovod."""

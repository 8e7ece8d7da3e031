"""Starting, watching and restarting workers on one host or several; never imports MXNet or Horovod."""

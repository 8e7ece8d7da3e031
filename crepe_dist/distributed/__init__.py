"""Everything that deals with more than one process; the only room that imports Horovod."""

"""Training and preparation on a cluster's engine, Ray, Spark or Dask, which only has to start processes."""

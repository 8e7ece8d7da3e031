"""What `python -m crepe_dist.bench` measures: pairs of things that do the same job, in one run, in turns."""

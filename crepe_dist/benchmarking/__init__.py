"""Benchmarks for ``python -m crepe_dist.bench``. Competing implementations are measured in turns, in one session."""

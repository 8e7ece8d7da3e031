"""Classify a table on Dask, a partition at a time.

    python examples/classify_dask.py MODEL INPUT.parquet OUTPUT/

Every worker sees MODEL, INPUT and OUTPUT under the same name: a shared folder, or a URL such as s3://bucket/model.
DASK_SCHEDULER_ADDRESS names the cluster; without it, Dask starts one on this machine. Give a worker one thread for each
process (`dask worker --nworkers -1 --nthreads 1 …`), because the threads of a process take turns with the model.
"""

import sys

import dask.dataframe as dd
from distributed import Client

import crepe_dist


def main(model: str, source: str, out: str) -> None:
    with Client():
        rows = dd.read_parquet(source)
        rows.map_partitions(crepe_dist.FramePredictor(model)).to_parquet(out)


if __name__ == "__main__":
    main(*sys.argv[1:])

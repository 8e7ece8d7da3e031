"""Classify a Parquet table on a Dask cluster, one partition at a time.

    python examples/classify_dask.py MODEL INPUT.parquet OUTPUT/

Every worker must see MODEL, INPUT and OUTPUT under the same name. Each of them is a path in a shared folder, or a URL
such as s3://bucket/model. DASK_SCHEDULER_ADDRESS names the cluster. If this variable is not set, Dask starts a cluster
on this machine. Start each worker process with one thread (`dask worker --nworkers -1 --nthreads 1 …`), because the
threads of a process use the model one after the other.
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

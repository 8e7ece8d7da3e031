"""Classify a Parquet table on a Ray cluster. Each CPU runs an actor that holds the model.

    python examples/classify_ray.py MODEL INPUT.parquet OUTPUT/

Every node must see MODEL, INPUT and OUTPUT under the same name. Each of them is a path in a shared folder, or a URL
such as s3://bucket/model. RAY_ADDRESS names the cluster. If this variable is not set, Ray starts a cluster on this
machine.
"""

import os
import sys

import ray
from ray.data import ActorPoolStrategy

import crepe_dist


def main(model: str, source: str, out: str) -> None:
    ray.init()
    # Blocks of 4 MiB, so that a small table has blocks for all actors.
    ray.data.DataContext.get_current().target_max_block_size = 4 << 20
    rows = ray.data.read_parquet(source)
    predictions = rows.map_batches(
        crepe_dist.FramePredictor,
        fn_constructor_args=[model if "://" in model else os.path.abspath(model)],
        batch_format="pyarrow",
        batch_size=4096,
        compute=ActorPoolStrategy(size=int(ray.cluster_resources()["CPU"])),
        # The actors reserve no CPUs, because the tasks that read and write also need some. Ray gives each actor one
        # thread.
        num_cpus=0,
    )
    predictions.write_parquet(out)


if __name__ == "__main__":
    main(*sys.argv[1:])

"""Classify a table on Ray, an actor with the model on each CPU.

    python examples/classify_ray.py MODEL INPUT.parquet OUTPUT/

Every node sees MODEL, INPUT and OUTPUT under the same name: a shared folder, or a URL such as s3://bucket/model.
RAY_ADDRESS names the cluster; without it, Ray starts one on this machine.
"""

import os
import sys

import ray
from ray.data import ActorPoolStrategy

import crepe_dist


def main(model: str, source: str, out: str) -> None:
    ray.init()
    ray.data.DataContext.get_current().target_max_block_size = 4 << 20  # so that each actor gets some
    rows = ray.data.read_parquet(source)
    answers = rows.map_batches(
        crepe_dist.FramePredictor,
        fn_constructor_args=[model if "://" in model else os.path.abspath(model)],
        batch_format="pyarrow",
        batch_size=4096,
        compute=ActorPoolStrategy(size=int(ray.cluster_resources()["CPU"])),
        num_cpus=0,  # so that there is room for the tasks that read and write; Ray gives each actor one thread
    )
    answers.write_parquet(out)


if __name__ == "__main__":
    main(*sys.argv[1:])

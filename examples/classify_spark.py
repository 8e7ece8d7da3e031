"""Classify a Parquet table on Spark. Spark sends the model to all executors.

    spark-submit examples/classify_spark.py MODEL INPUT.parquet OUTPUT/

MODEL is a folder that `crepe export --format crepe` has written. INPUT and OUTPUT are paths or URLs that Spark can read
and write. Install crepe_dist on all executors.
"""

import sys
from collections.abc import Iterator

import pandas as pd
from pyspark import SparkFiles
from pyspark.sql import SparkSession
from pyspark.sql.types import StructType

import crepe_dist

PREDICTION_COLUMNS = "predicted_class string, predicted_probability double, characters_cut long, problem string"


def classify(frames: Iterator[pd.DataFrame]) -> Iterator[pd.DataFrame]:
    yield from map(crepe_dist.FramePredictor(SparkFiles.get("model.safetensors")), frames)


def main(model: str, source: str, out: str) -> None:
    spark = SparkSession.builder.appName("crepe_dist").getOrCreate()
    for file in ("model.json", "model.safetensors"):
        spark.sparkContext.addFile(f"{model}/{file}")
    rows = spark.read.parquet(source)
    schema = StructType([*rows.schema, *StructType.fromDDL(PREDICTION_COLUMNS)])
    rows.mapInPandas(classify, schema).write.parquet(out)


if __name__ == "__main__":
    main(*sys.argv[1:])

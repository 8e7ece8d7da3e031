"""Classify a table on Spark, which sends the model to all executors.

    spark-submit examples/classify_spark.py MODEL INPUT.parquet OUTPUT/

MODEL is a folder of `crepe export --format crepe`, INPUT and OUTPUT are what Spark reads and writes. Install
crepe_dist where the executors are.
"""

import sys
from collections.abc import Iterator

import pandas as pd
from pyspark import SparkFiles
from pyspark.sql import SparkSession
from pyspark.sql.types import StructType

import crepe_dist

ANSWERS = "predicted_class string, predicted_probability double, characters_cut long, problem string"


def classify(frames: Iterator[pd.DataFrame]) -> Iterator[pd.DataFrame]:
    yield from map(crepe_dist.FramePredictor(SparkFiles.get("model.safetensors")), frames)


def main(model: str, source: str, out: str) -> None:
    spark = SparkSession.builder.appName("crepe_dist").getOrCreate()
    for file in ("model.json", "model.safetensors"):
        spark.sparkContext.addFile(f"{model}/{file}")
    rows = spark.read.parquet(source)
    schema = StructType([*rows.schema, *StructType.fromDDL(ANSWERS)])
    rows.mapInPandas(classify, schema).write.parquet(out)


if __name__ == "__main__":
    main(*sys.argv[1:])

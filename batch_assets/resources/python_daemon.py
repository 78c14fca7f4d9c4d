"""The process from which Spark forks its Python workers on this machine: the imports of every worker, done once.

Spark starts it as ``spark.python.daemon.module``. Imports here must start no thread, because of the fork.
"""

import pandas as pd  # noqa: F401 - PySpark imports it in each worker that exchanges Arrow batches
from pyspark.daemon import manager

import batch_assets.inference.worker
import batch_assets.lake.deltars  # noqa: F401

if __name__ == "__main__":
    manager()

"""The process that Spark forks its local Python workers from, so that their common imports happen only once.

Spark starts it as ``spark.python.daemon.module``. Because of the fork, imports here must not start threads.
"""

import gc

import pandas as pd  # noqa: F401 - PySpark imports it in each worker that exchanges Arrow batches
import pyspark.worker  # noqa: F401
from pyspark.daemon import manager

import batch_assets.engines.catalog
import batch_assets.lake.deltars
import batch_assets.scoring.worker  # noqa: F401

if __name__ == "__main__":
    # PySpark collects garbage after every task. Without the freeze, each worker would search everything imported here
    # and copy the memory that it shares with this process, which takes half of a small task's processor time.
    gc.collect()
    gc.freeze()
    manager()

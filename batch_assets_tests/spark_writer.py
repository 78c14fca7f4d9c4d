"""A driver program that replaces one partition through deltars, so that tests can kill it.

``python -m batch_assets_tests.spark_writer MASTER TABLE PARTITION GENERATION [WAIT_FOR]``: with WAIT_FOR, its last two
tasks wait until that file exists.
"""

import json
import sys
import time
from pathlib import Path

import pyarrow as pa

from batch_assets.lake.deltars import register_deltars
from batch_assets.resources.spark import SparkResource
from batch_assets_tests.delta_processes import ROWS

TASKS = 6


def main(master: str, uri: str, part: str, generation: str, wait_for: str | None = None) -> None:
    """Write ``ROWS`` rows in ``TASKS`` tasks."""
    config = {"spark.executor.memory": "1g", "spark.executor.cores": "1", "spark.ui.enabled": "false"}
    spark = SparkResource(master=master, config=config).session
    register_deltars(spark)
    rows = spark.range(0, ROWS, 1, TASKS).selectExpr(f"'{generation}' AS generation", "id AS number")

    def wait(batches):
        for batch in batches:
            yield batch
            last = pa.compute.max(batch.column("number")).as_py() >= ROWS * (TASKS - 2) // TASKS
            while last and wait_for is not None and not Path(wait_for).exists():
                time.sleep(0.1)

    waiting = rows.mapInArrow(wait, rows.schema)
    waiting.write.format("deltars").mode("overwrite").option("partition", json.dumps({"part": part})).save(uri)
    print("committed", flush=True)
    spark.stop()


if __name__ == "__main__":
    main(*sys.argv[1:])

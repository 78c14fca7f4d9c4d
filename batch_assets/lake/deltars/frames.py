"""Data frames of the tables of the contract: read at a snapshot, staged for a replacement."""

from collections.abc import Iterator

import pyarrow as pa
from pyspark.sql import DataFrame, SparkSession

from batch_assets.lake.deltars.source import register_deltars
from batch_assets.lake.lake import BatchSnapshot
from batch_assets.lake.names import check_batch
from batch_assets.lake.staging import STAGED_FILE_DDL, StagedFile, staged_files_batches
from batch_assets.lake.tables import PARTITION


def read_batch(spark: SparkSession, snapshot: BatchSnapshot, batch: str) -> DataFrame:
    """One batch of a table at the version of a snapshot, as a Spark data frame."""
    register_deltars(spark)
    here = f"{PARTITION} = '{check_batch(batch)}'"
    reader = spark.read.format("deltars").option("versionAsOf", str(snapshot.version)).option("filesWhere", here)
    for key, value in snapshot.storage_options.items():
        reader = reader.option(f"storage.{key}", value)
    return reader.load(snapshot.uri).where(here)


def stage_frame(frame: DataFrame, snapshot: BatchSnapshot, batch: str) -> list[StagedFile]:
    """Write the rows of a data frame from the workers as files of one batch, not yet committed.

    Args:
        frame: rows with the table's columns; the partition column may be left out.
        snapshot: the table they are for.
        batch: the batch they belong to.

    Returns:
        The staged files; only their names, sizes and statistics pass through the driver.
    """
    area = snapshot.staging_area(batch)

    def write(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        return staged_files_batches(batches, area)

    return [StagedFile(**row.asDict()) for row in frame.mapInArrow(write, STAGED_FILE_DDL).collect()]

"""Data frames of the tables of the contract: read at a snapshot, staged for a replacement."""

import pickle
from collections.abc import Iterator

import pyarrow as pa
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql.pandas.types import from_arrow_schema

from batch_assets.lake.deltars.reader import DeltarsReader
from batch_assets.lake.lake import BatchSnapshot
from batch_assets.lake.names import check_batch
from batch_assets.lake.snapshot import Snapshot
from batch_assets.lake.staging import STAGED_FILE_DDL, StagedFile, staged_files_batches
from batch_assets.lake.tables import PARTITION
from batch_assets.sessions import slots_of


def read_table(spark: SparkSession, snapshot: Snapshot, files_where: str | None = None) -> DataFrame:
    """A table at the version of a snapshot, as a Spark data frame.

    The driver plans the read. For the data source deltars, which takes no snapshot, Spark starts Python processes of
    three more kinds to look it up, to open the table again and to plan.

    Args:
        spark: the session.
        snapshot: the table.
        files_where: SQL condition; files that cannot contain a matching row are skipped.
    """
    schema = from_arrow_schema(snapshot.schema)
    reader = DeltarsReader(snapshot, schema, files_where)
    tasks = [pickle.dumps(task) for task in reader.partitions()]
    plan = spark.createDataFrame(pa.table({"task": pa.array(tasks, pa.binary())}))
    if len(tasks) > slots_of(spark):
        plan = plan.repartition(len(tasks))

    def read(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for rows in batches:
            for task in rows.column("task").to_pylist():
                yield from reader.read(pickle.loads(task))

    return plan.mapInArrow(read, schema)


def read_batch(spark: SparkSession, snapshot: BatchSnapshot, batch: str) -> DataFrame:
    """One batch of a table at the version of a snapshot, as a Spark data frame."""
    here = f"{PARTITION} = '{check_batch(batch)}'"
    return read_table(spark, snapshot.delta, here).where(here)


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

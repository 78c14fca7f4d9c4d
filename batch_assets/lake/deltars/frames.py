"""Read a snapshot as a Spark data frame, and stage a data frame to replace a batch."""

import pickle
from collections.abc import Iterator, Mapping
from typing import Any

import pyarrow as pa
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql.pandas.types import from_arrow_schema

from batch_assets.lake.contracts import PARTITION
from batch_assets.lake.deltars.reader import DeltarsReader
from batch_assets.lake.lake import BatchSnapshot
from batch_assets.lake.snapshot import Snapshot
from batch_assets.lake.staging import STAGED_FILE_DDL, StagedFile, staged_files_batches
from batch_assets.names import check_batch
from batch_assets.spark_sessions import task_slots


def read_table(spark: SparkSession, snapshot: Snapshot, partition: Mapping[str, Any] | None = None) -> DataFrame:
    """Read a table, or one of its partitions, at a snapshot's version as a Spark data frame.

    The driver plans the read. The data source deltars can't be given a snapshot: Spark would start three more kinds of
    Python processes, to look it up, to reopen the table and to plan.

    Args:
        spark: the session.
        snapshot: the table.
        partition: partition column to value.
    """
    scan = snapshot.scan(partition)
    convert = scan.convert
    reader = DeltarsReader(scan.table, from_arrow_schema(scan.schema), files=scan.files)
    tasks = [pickle.dumps(task) for task in reader.partitions()]
    plan = spark.createDataFrame(pa.table({"task": pa.array(tasks, pa.binary())}))
    if len(tasks) > task_slots(spark):
        plan = plan.repartition(len(tasks))

    def read(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for rows in batches:
            for task in rows.column("task").to_pylist():
                found = reader.read(pickle.loads(task))
                yield from found if convert is None else map(convert, found)

    frame = plan.mapInArrow(read, from_arrow_schema(snapshot.schema))
    return frame if scan.numbered is None else _numbered(frame, scan.numbered)


def _numbered(frame: DataFrame, column: str) -> DataFrame:
    """Number the rows that have the same value of a column, from the second on."""
    from pyspark.sql import Window
    from pyspark.sql import functions as F  # noqa: N812 - the name in Spark's documentation

    number = F.row_number().over(Window.partitionBy(column).orderBy(column))
    suffixed = F.concat_ws("-", column, F.when(number > 1, number.cast("string")))
    return frame.withColumn(column, suffixed)


def read_batch(spark: SparkSession, snapshot: BatchSnapshot, batch: str) -> DataFrame:
    """Read one batch of a table at a snapshot's version as a Spark data frame."""
    return read_table(spark, snapshot.delta, {PARTITION: check_batch(batch)})


def stage_frame(frame: DataFrame, snapshot: BatchSnapshot, batch: str) -> list[StagedFile]:
    """Write a data frame's rows on the workers as files of one batch, without committing them.

    Args:
        frame: rows with the table's columns; the partition column is optional.
        snapshot: the table to write to.
        batch: key of the batch that the rows belong to.

    Returns:
        The staged files. Only their names, sizes and statistics pass through the driver.
    """
    area = snapshot.staging_area(batch)

    def write(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        return staged_files_batches(batches, area)

    return [StagedFile(**row.asDict()) for row in frame.mapInArrow(write, STAGED_FILE_DDL).collect()]

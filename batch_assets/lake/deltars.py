"""The Spark Python data source ``deltars``: Delta tables read by delta-rs, without JVM jars.

``spark.read.format("deltars").option("versionAsOf", 3).option("columns", "id,document").load(uri)``.
Options that start with ``storage.`` go to delta-rs as storage options.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

import pyarrow as pa
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql.datasource import DataSource, DataSourceReader, EqualTo, Filter, InputPartition
from pyspark.sql.pandas.types import from_arrow_schema
from pyspark.sql.types import StructType

from batch_assets.errors import BatchAssetsError
from batch_assets.lake.snapshot import Snapshot
from batch_assets.lake.staging import STAGED_FILE_DDL, StagedFile, staged_files_batches
from batch_assets.lake.storage import file_system, read_parquet
from batch_assets.lake.tables import PARTITION

# Features of newer readers that plain Parquet reading would silently get wrong.
_SUPPORTED_READER_VERSION = 1


@dataclass
class _FilePartition(InputPartition):
    path: str
    values: dict[str, str | None]


class DeltarsDataSource(DataSource):
    """Reads Delta tables; every data file is one task."""

    @classmethod
    def name(cls) -> str:
        """Name for ``format``."""
        return "deltars"

    def _open(self) -> Any:
        from deltalake import DeltaTable

        version = self.options.get("versionAsOf")
        table = DeltaTable(
            self.options["path"],
            version=int(version) if version is not None else None,
            storage_options=self._storage_options(),
        )
        reader = table.protocol().min_reader_version
        if reader > _SUPPORTED_READER_VERSION:
            features = table.protocol().reader_features or [f"reader version {reader}"]
            raise BatchAssetsError(
                f"{self.options['path']} needs {', '.join(features)}, which deltars can't read correctly"
            )
        return table

    def _storage_options(self) -> dict[str, str]:
        return {
            key.removeprefix("storage."): value for key, value in self.options.items() if key.startswith("storage.")
        }

    def schema(self) -> StructType:
        """Columns of the table, or those that the option ``columns`` names."""
        return from_arrow_schema(self._arrow_schema())

    def _arrow_schema(self) -> pa.Schema:
        schema = pa.schema(self._open().schema().to_arrow())
        columns = self.options.get("columns")
        if columns is None:
            return schema
        wanted = [name.strip() for name in columns.split(",")]
        unknown = [name for name in wanted if name not in schema.names]
        if unknown:
            raise BatchAssetsError(f"{self.options['path']} has no column {', '.join(unknown)}")
        return pa.schema([schema.field(name) for name in wanted])

    def reader(self, schema: StructType) -> "DeltarsReader":
        """The reader of one query."""
        table = self._open()
        return DeltarsReader(
            self.options["path"],
            self._storage_options(),
            self._arrow_schema(),
            table.metadata().partition_columns,
            pa.table(table.get_add_actions(flatten=False)).select(["path", "partition"]).to_pylist(),
        )


class DeltarsReader(DataSourceReader):
    """Plans one task a file, leaves out files of other partition values, and reads through Arrow."""

    def __init__(
        self,
        uri: str,
        storage_options: Mapping[str, str],
        schema: pa.Schema,
        partition_columns: Sequence[str],
        files: list[dict[str, Any]],
    ) -> None:
        self._uri = uri
        self._storage_options = dict(storage_options)
        self._schema = schema
        self._partition_columns = list(partition_columns)
        self._files = files

    def pushFilters(self, filters: list[Filter]) -> Iterable[Filter]:  # noqa: N802 - Spark's name
        """Take equality with a partition column; hand everything else back to Spark."""
        for condition in filters:
            column = condition.attribute[0] if isinstance(condition, EqualTo) else None
            if column in self._partition_columns and isinstance(condition.value, str):  # type: ignore[attr-defined]
                value = condition.value  # type: ignore[attr-defined]
                self._files = [file for file in self._files if file["partition"][column] == value]
            else:
                yield condition

    def partitions(self) -> Sequence[InputPartition]:
        """One input partition a data file."""
        return [_FilePartition(unquote(file["path"]), file["partition"]) for file in self._files]

    def read(self, partition: InputPartition) -> Iterator[pa.RecordBatch]:
        """Rows of one file, with its partition values."""
        assert isinstance(partition, _FilePartition)
        stored = [name for name in self._schema.names if name not in self._partition_columns]
        files = file_system(self._uri, self._storage_options)
        for rows in read_parquet(files, partition.path, stored):
            columns = [
                rows.column(field.name).cast(field.type)
                if field.name in stored
                else pa.array([partition.values[field.name]] * rows.num_rows, field.type)
                for field in self._schema
            ]
            yield pa.RecordBatch.from_arrays(columns, schema=self._schema)


def read_snapshot(spark: SparkSession, snapshot: Snapshot) -> DataFrame:
    """A table at the version of a snapshot, as a Spark data frame."""
    spark.dataSource.register(DeltarsDataSource)
    reader = spark.read.format("deltars").option("versionAsOf", str(snapshot.version))
    for key, value in snapshot.storage_options.items():
        reader = reader.option(f"storage.{key}", value)
    return reader.load(snapshot.uri)


def stage_frame(frame: DataFrame, snapshot: Snapshot, batch: str) -> list[StagedFile]:
    """Write the rows of a data frame from the workers as files of one batch, not yet committed.

    Args:
        frame: rows with the table's columns.
        snapshot: the table they are for.
        batch: the batch they belong to.

    Returns:
        The staged files; only their names, sizes and statistics pass through the driver.
    """
    uri, options, schema = snapshot.uri, dict(snapshot.storage_options), snapshot.table.file_schema

    def write(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        return staged_files_batches(batches, uri, {PARTITION: batch}, schema, options)

    rows = frame.select(*schema.names).mapInArrow(write, STAGED_FILE_DDL).collect()
    return [StagedFile(**row.asDict()) for row in rows]

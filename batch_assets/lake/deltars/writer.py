"""Validate a write, stage its rows on the executors, and commit them on the driver."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import pyarrow as pa
from pyspark.sql.datasource import DataSourceArrowWriter, WriterCommitMessage
from pyspark.sql.pandas.types import from_arrow_type, to_arrow_schema
from pyspark.sql.types import ArrayType, DataType, MapType, StructType

from batch_assets.errors import BatchAssetsError
from batch_assets.lake.deltars.options import Options
from batch_assets.lake.snapshot import schema_difference
from batch_assets.lake.staging import StagedFile, StagingArea, stage
from batch_assets.lake.writable_table import ConcurrentCommitError, Transaction, WritableTable, create_table

# https://github.com/delta-io/delta/blob/master/PROTOCOL.md#primitive-types, by Spark's names.
_DELTA_TYPES = {
    "string", "long", "integer", "short", "byte", "float", "double", "boolean", "binary", "date", "timestamp",
    "timestamp_ntz", "decimal",
}  # fmt: skip


@dataclass
class StagedMessage(WriterCommitMessage):
    """The files that one task staged."""

    files: list[StagedFile]


@dataclass
class DeltarsWriter(DataSourceArrowWriter):
    """Writes one job's rows as files that a single commit adds.

    ``version`` is the table version that the commit is based on, None if there was no table yet. ``new_columns`` are
    added to the table first; ``new_schema`` replaces its columns.
    """

    area: StagingArea
    version: int | None
    new_columns: pa.Schema
    overwrite: bool
    transaction: Transaction | None
    new_schema: pa.Schema | None = None

    def write(self, iterator: Iterator[pa.RecordBatch]) -> StagedMessage:
        """Stage the rows of one task."""
        return StagedMessage(stage(iterator, self.area))

    def commit(self, messages: list[WriterCommitMessage | None]) -> None:
        """Commit the files of all tasks at once.

        Raises:
            ConcurrentCommitError: another writer changed the partition, or created the table, in the meantime.
        """
        staged = [file for message in messages if isinstance(message, StagedMessage) for file in message.files]
        area = self.area
        table = self._new_table() if self.version is None else self._table(self.version)
        if len(self.new_columns):
            table.add_columns(self.new_columns)
        if self.overwrite:
            once = self.transaction is not None
            table.replace(area.partition or {}, staged, {}, self.transaction, once=once, schema=self.new_schema)
        else:
            table.append(staged, {}, self.transaction)

    def _table(self, version: int) -> WritableTable:
        return WritableTable.open(self.area.uri, self.area.storage_options, version)

    def _new_table(self) -> WritableTable:
        area = self.area
        create_table(area.uri, area.storage_options, area.schema, area.partition_columns)
        table = self._table(0)
        if schema_difference(area.schema, table.schema) or table.partition_columns != list(area.partition_columns):
            raise ConcurrentCommitError(
                f"another writer created a table with other columns at {area.uri}; nothing was written: use its columns"
            )
        return table

    def abort(self, messages: list[WriterCommitMessage | None]) -> None:
        """Keep the files until the next vacuum: if the commit's outcome is unknown, the table may contain them."""


def plan_write(options: Options, schema: StructType, overwrite: bool) -> DeltarsWriter:
    """Validate a write before anything is written, and return its writer.

    Args:
        options: options of the write.
        schema: columns of the rows.
        overwrite: true for the mode overwrite, false for append.

    Raises:
        BatchAssetsError: the rows don't fit the table, or the partition to replace is not named.
    """
    table = _table(options)
    partition = options.partition()
    if partition is not None and not overwrite:
        raise BatchAssetsError('the option partition requires mode("overwrite"); an append needs none')
    rows = _delta_schema(schema)
    named = options.names("partitionColumns")
    new_schema = None
    if options.flag("overwriteSchema"):
        if not overwrite or (table is not None and table.partition_columns):
            raise BatchAssetsError(
                'the option overwriteSchema requires mode("overwrite") and a table without partitions: the rows of '
                "other partitions would not fit the new columns"
            )
        new_schema = None if table is None else pa.schema([field.with_nullable(True) for field in rows])
    if table is not None and new_schema is not None:
        table.check_writable()
        _refuse_timestamps_without_zone(rows)
        area, new_columns = replace(table.staging_area(None), schema=new_schema), pa.schema([])
    elif table is None:
        area = _area_of_new_table(options, rows, named or [], partition)
        new_columns = pa.schema([])
    else:
        if named is not None and named != table.partition_columns:
            raise BatchAssetsError(
                f"the table at {table.uri} is partitioned by {', '.join(table.partition_columns) or 'nothing'}, "
                f"not by {', '.join(named)}"
            )
        area, new_columns = _area_of_table(table, rows, partition, merge=options.flag("mergeSchema"))
    if overwrite and partition is None and area.partition_columns:
        example = f"""option("partition", '{{"{area.partition_columns[0]}": ...}}')"""
        raise BatchAssetsError(
            f"overwriting replaces one partition, never the whole table at {area.uri}: name one with {example}"
        )
    if overwrite and table is not None:
        table.check_replaceable(area.partition or {})
    app, number = options.text("txnAppId"), options.number("txnVersion")
    if (app is None) != (number is None):
        raise BatchAssetsError("the options txnAppId and txnVersion go together: set both")
    transaction = None if app is None or number is None else Transaction(app, number)
    return DeltarsWriter(
        area, None if table is None else table.version, new_columns, overwrite, transaction, new_schema
    )


def _table(options: Options) -> WritableTable | None:
    from deltalake import DeltaTable

    version = options.number("readVersion")
    if version is None and not DeltaTable.is_deltatable(options.uri, options.storage):
        return None
    return WritableTable.open(options.uri, options.storage, version)


def _area_of_new_table(
    options: Options, rows: pa.Schema, partition_columns: list[str], partition: dict[str, object] | None
) -> StagingArea:
    unknown = [name for name in partition_columns if name not in rows.names]
    if unknown:
        raise BatchAssetsError(f"the rows have no column {', '.join(unknown)}, which partitionColumns names")
    if len(partition_columns) == len(rows.names):
        raise BatchAssetsError("a table needs at least one column that is not a partition column")
    _refuse_timestamps_without_zone(rows)
    schema = pa.schema([field.with_nullable(True) for field in rows])
    area = StagingArea(options.uri, options.storage, schema, partition_columns)
    return area if partition is None else area.only(partition)


def _area_of_table(
    table: WritableTable, rows: pa.Schema, partition: dict[str, object] | None, *, merge: bool
) -> tuple[StagingArea, pa.Schema]:
    """Return where to stage files, and the columns to add to the table first."""
    table.check_writable()
    area = table.staging_area(partition)
    for field in rows:
        if field.name in table.schema.names:
            existing = from_arrow_type(table.schema.field(field.name).type).simpleString()
            ours = from_arrow_type(field.type).simpleString()
            if existing != ours:
                raise BatchAssetsError(
                    f"column {field.name} is {ours}, but {existing} in the table at {table.uri}: cast it"
                )
    new = pa.schema([field.with_nullable(True) for field in rows if field.name not in table.schema.names])
    spelled = {name.lower(): name for name in table.schema.names}
    for field in new:
        if field.name.lower() in spelled:
            raise BatchAssetsError(
                f"column {field.name} is spelled {spelled[field.name.lower()]} in the table at {table.uri}: rename it"
            )
    if not any(_has_timestamp_without_zone(field.type) for field in table.schema):
        _refuse_timestamps_without_zone(new)
    given = set(rows.names) | (set(table.partition_columns) if partition is not None else set())
    missing = [field.name for field in table.schema if field.name not in given]
    if (new.names or missing) and not merge:
        differences = [f"has no column {', '.join(new.names)}"] if new.names else []
        differences += [f"also has {', '.join(missing)}, which the rows lack"] if missing else []
        raise BatchAssetsError(
            f"the table at {table.uri} {' and '.join(differences)}; option('mergeSchema', true) adds new columns "
            "to the table and fills missing ones with null"
        )
    required = [name for name in missing if not table.schema.field(name).nullable or name in table.partition_columns]
    if required:
        raise BatchAssetsError(f"the rows lack {', '.join(required)}, which the table at {table.uri} requires")
    kept = [field for field in table.schema if field.name not in missing]
    return replace(area, schema=pa.schema([*kept, *new])), new


def _delta_schema(schema: StructType) -> pa.Schema:
    for field in schema:
        _check_type(field.name, field.dataType)
    if len({name.lower() for name in schema.names}) != len(schema.names):
        raise BatchAssetsError(f"two columns have the same name, ignoring case: {', '.join(schema.names)}")
    return to_arrow_schema(schema, timezone="UTC")


def _check_type(name: str, kind: DataType) -> None:
    if isinstance(kind, StructType):
        if not len(kind):
            raise BatchAssetsError(f"column {name} is a struct without fields, which Parquet does not support: drop it")
        for field in kind:
            _check_type(f"{name}.{field.name}", field.dataType)
    elif isinstance(kind, ArrayType):
        _check_type(f"{name}.element", kind.elementType)
    elif isinstance(kind, MapType):
        _check_type(f"{name}.key", kind.keyType)
        _check_type(f"{name}.value", kind.valueType)
    elif kind.typeName() not in _DELTA_TYPES:
        raise BatchAssetsError(f"column {name} is of type {kind.simpleString()}, which deltars does not write: cast it")


def _refuse_timestamps_without_zone(columns: pa.Schema) -> None:
    for field in columns:
        if _has_timestamp_without_zone(field.type):
            raise BatchAssetsError(
                f"column {field.name} has a timestamp without zone, which Delta readers before version 3 can't read: "
                f"write CAST({field.name} AS TIMESTAMP), or create the table with another engine first"
            )


def _has_timestamp_without_zone(kind: pa.DataType) -> bool:
    if pa.types.is_timestamp(kind):
        return kind.tz is None
    if pa.types.is_map(kind):
        return _has_timestamp_without_zone(kind.key_type) or _has_timestamp_without_zone(kind.item_type)
    return any(_has_timestamp_without_zone(kind.field(index).type) for index in range(kind.num_fields))

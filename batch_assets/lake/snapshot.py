"""A Delta table at one version: its rows and its history."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.parquet as pq

from batch_assets.errors import BatchAssetsError
from batch_assets.lake.commit_log import Commit, Partition, commits, logged_partition
from batch_assets.lake.data_file import read_data_file
from batch_assets.lake.deletion_vectors import DeletionVector, deletion_vectors
from batch_assets.lake.features import has_deletion_vectors, refuse_unreadable
from batch_assets.lake.partition_values import typed_partition
from batch_assets.lake.staging import StagingArea
from batch_assets.lake.storage import file_system, root_of
from batch_assets.lake.stored_columns import columns_of

_STATISTICS = ("null_count", "min", "max")


@dataclass(frozen=True)
class DataFile:
    """A data file of a table: path and row count as in the log, size in bytes, typed partition values.

    The row count includes rows that a deletion vector deletes.
    """

    log_path: str
    size: int
    partition: Partition
    rows: int | None

    @property
    def path(self) -> str:
        """Path relative to the table."""
        return relative_path(self.log_path)


@dataclass(frozen=True)
class Scan:
    """How to read rows: from which files of which table, which columns, and what becomes of them.

    ``convert`` turns the columns that were read into those of the result; None keeps them. Equal values of the column
    ``numbered`` get the suffixes ``-2``, ``-3`` and so on.
    """

    table: "Snapshot"
    files: Sequence[DataFile]
    schema: pa.Schema
    convert: Callable[[pa.RecordBatch], pa.RecordBatch] | None = None
    numbered: str | None = None


class Snapshot:
    """A Delta table at the version at which it was opened. Commits are based on this version."""

    def __init__(self, uri: str, storage_options: Mapping[str, str], delta: Any) -> None:
        self.uri = uri
        self.storage_options = dict(storage_options)
        self.version: int = delta.version()
        self.schema, self.stored_schema = columns_of(delta)
        self.partition_columns: list[str] = delta.metadata().partition_columns
        self._delta = delta

    @classmethod
    def open(cls, uri: str, storage_options: Mapping[str, str] | None = None, version: int | None = None) -> Self:
        """Open a table at a version, by default the newest.

        Args:
            uri: a local folder, or a URI that delta-rs understands.
            storage_options: as in delta-rs.
            version: version of the table.

        Raises:
            BatchAssetsError: there is no table, or it uses features this reader does not support.
        """
        from deltalake import DeltaTable
        from deltalake.exceptions import DeltaError

        uri, options = root_of(uri), dict(storage_options or {})
        try:
            delta = DeltaTable(uri, version=version, storage_options=options)
        except DeltaError as error:
            reason = str(error).splitlines()[0]
            if version is not None and DeltaTable.is_deltatable(uri, options):
                raise BatchAssetsError(f"the table at {uri} can't be opened at version {version}: {reason}") from error
            raise BatchAssetsError(f"can't open a Delta table at {uri}: {reason}") from error
        refuse_unreadable(delta, uri)
        return cls(uri, options, delta)

    @property
    def name(self) -> str | None:
        """The name that the table got when it was created, None if it got none."""
        name: str | None = self._delta.metadata().name
        return name

    @property
    def is_append_only(self) -> bool:
        """Whether the table's properties forbid removing rows."""
        return bool(self._delta.metadata().configuration.get("delta.appendOnly") == "true")

    def column_metadata(self, column: str) -> Mapping[str, Any]:
        """The metadata of a column in the table's schema; empty for an unknown column."""
        found = (field.metadata for field in self._delta.schema().fields if field.name == column)
        return dict(next(found, None) or {})

    def key(self, partition: Mapping[str, Any]) -> Partition:
        """Return the typed values of the partition columns, in order.

        Raises:
            BatchAssetsError: a partition column is missing, unknown, or has a value of the wrong type.
        """
        return tuple(typed_partition(self.uri, partition, self.schema, self.partition_columns).values())

    def staging_area(self, partition: Mapping[str, Any] | None = None) -> StagingArea:
        """Return where to stage files for this table, or for one partition of it."""
        area = StagingArea(self.uri, self.storage_options, self.schema, self.partition_columns)
        return area if partition is None else area.only(partition)

    def add_actions(self) -> pa.Table:
        """Return the flattened add actions of the data files; their statistics include deleted rows."""
        actions = pa.table(self._delta.get_add_actions(flatten=True))
        names = dict(zip(self.stored_schema.names, self.schema.names, strict=True))
        # delta-rs gives partition values by the columns' names, and statistics by their names in the files.
        columns = [name.partition(".") for name in actions.column_names]
        return actions.rename_columns(
            [
                f"{kind}{dot}{names.get(column, column) if kind in _STATISTICS else column}"
                for kind, dot, column in columns
            ]
        )

    @cached_property
    def deletion_vectors(self) -> Mapping[str, DeletionVector]:
        """The deletion vectors of the data files, by the path of the file in the log."""
        if not has_deletion_vectors(self._delta):
            return {}
        paths = [file.log_path for file in self.files()]
        return deletion_vectors(self.uri, self.storage_options, self.version, paths)

    @cached_property
    def _files(self) -> dict[Partition, list[DataFile]]:
        files: dict[Partition, list[DataFile]] = {}
        values = [f"partition.{name}" for name in self.partition_columns]
        actions = self.add_actions().select(["path", "size_bytes", "num_records", *values])
        for action in actions.to_pylist():
            key = tuple(action[name] for name in values)
            files.setdefault(key, []).append(DataFile(action["path"], action["size_bytes"], key, action["num_records"]))
        return files

    def partitions(self) -> list[Partition]:
        """Return the partitions that have files, in the order of the log."""
        return list(self._files)

    def files(self, partition: Mapping[str, Any] | None = None) -> list[DataFile]:
        """Return the data files of one partition, or of the table."""
        if partition is not None:
            return self._files.get(self.key(partition), [])
        return [file for files in self._files.values() for file in files]

    def rows(self, partition: Mapping[str, Any] | None = None) -> int:
        """Count the rows of one partition, or of the table, from the statistics in the log."""
        return self.count(self.files(partition))

    def count(self, files: Sequence[DataFile]) -> int:
        """Count the rows of files; where the log has no statistics, the files' footers are read."""
        vectors = self.deletion_vectors if files else {}
        deleted = sum(vectors[file.log_path].rows for file in files if file.log_path in vectors)
        if all(file.rows is not None for file in files):
            return sum(file.rows or 0 for file in files) - deleted
        storage = file_system(self.uri, self.storage_options)
        stored = sum(
            pq.read_metadata(file.path, filesystem=storage).num_rows if file.rows is None else file.rows
            for file in files
        )
        return stored - deleted

    def may_have_had(self, batch: str) -> bool:
        """Whether a batch that neither the files nor the log know may have been in the table once."""
        return False

    def scan(self, partition: Mapping[str, Any] | None = None) -> Scan:
        """Return how to read the rows of one partition, or of the table."""
        return Scan(self, self.files(partition), self.schema)

    def read(self, partition: Mapping[str, Any], columns: Sequence[str] | None = None) -> Iterator[pa.RecordBatch]:
        """Yield the rows of one partition.

        Args:
            partition: partition column to value.
            columns: columns to return, by default all.
        """
        yield from self.read_files(self.files(partition), columns)

    def read_files(
        self, files: Sequence[DataFile], columns: Sequence[str] | None = None, *, with_deleted: bool = False
    ) -> Iterator[pa.RecordBatch]:
        """Yield the rows of files with the given columns, by default all.

        Args:
            files: the files.
            columns: columns to return, by default all.
            with_deleted: also return rows that deletion vectors delete.
        """
        wanted = pa.schema([self.schema.field(name) for name in columns or self.schema.names])
        stored = self.stored_as(wanted.names)
        storage = file_system(self.uri, self.storage_options)
        for file in files:
            values = dict(zip(self.partition_columns, file.partition, strict=True))
            vector = None if with_deleted else self.deletion_vectors.get(file.log_path)
            deleted = None if vector is None else vector.deleted(self.uri, self.storage_options)
            yield from read_data_file(storage, file.path, wanted, stored, values, deleted)

    def stored_as(self, columns: Sequence[str]) -> pa.Schema:
        """Return how the data files store some of the columns, in the same order."""
        return pa.schema([self.stored_schema.field(self.schema.get_field_index(name)) for name in columns])

    def commits(self, after: int = -1) -> Iterator[Commit]:
        """Yield commits from this version back to the one after ``after``, as far back as the log has entries."""
        return commits(self.uri, self.storage_options, self.schema, self._logged_columns, self.version, after)

    def logged_partition(self, values: Mapping[str, str | None]) -> Partition:
        """Return the typed values of the partition columns, from an action of the log."""
        return logged_partition(values, self.schema, self._logged_columns)

    @property
    def _logged_columns(self) -> dict[str, str]:
        """The partition columns, each with its name in the log."""
        return dict(zip(self.partition_columns, self.stored_as(self.partition_columns).names, strict=True))

    @property
    def table_id(self) -> str:
        """The id that the table got when it was created."""
        return str(self._delta.metadata().id)

    def follows(self, earlier: "Snapshot") -> bool:
        """Return whether this is the same table as an earlier snapshot's, and not older."""
        return self.table_id == earlier.table_id and self.version >= earlier.version


def is_table(uri: str, storage_options: Mapping[str, str]) -> bool:
    """Whether there is a Delta table."""
    from deltalake import DeltaTable

    # delta-rs would create the folder of a local table.
    if "://" not in uri and not Path(uri).exists():
        return False
    return bool(DeltaTable.is_deltatable(uri, dict(storage_options)))


def relative_path(log_path: str) -> str:
    """Return the path of a data file relative to its table.

    Raises:
        BatchAssetsError: the log names a file outside the table's folder, as in a shallow clone.
    """
    path = unquote(log_path)
    if path.startswith("/") or "://" in path:
        raise BatchAssetsError(f"the table's log names {path}, outside of its folder (a shallow clone?): copy it")
    return path


def missing_columns(wanted: pa.Schema, found: pa.Schema) -> list[pa.Field]:
    """Return the columns that can be added to a table so that rows with some columns fit it.

    These are nullable columns that it lacks, and structs with more fields after those that its column has.
    """
    return [
        field
        for field in wanted
        if field.nullable and (field.name not in found.names or _is_longer(field.type, found.field(field.name).type))
    ]


def with_columns(schema: pa.Schema, columns: Sequence[pa.Field]) -> pa.Schema:
    """Return a schema with some columns replaced, and the others added at its end."""
    by_name = {field.name: field for field in columns}
    kept = [by_name.pop(field.name, field) for field in schema]
    return pa.schema([*kept, *by_name.values()])


def _is_longer(wanted: pa.DataType, found: pa.DataType) -> bool:
    """Whether a struct has all fields of another one, followed by nullable ones."""
    if not (pa.types.is_struct(wanted) and pa.types.is_struct(found)):
        return False
    fields, known = list(wanted), list(found)
    more = fields[len(known) :]
    return bool(more) and fields[: len(known)] == known and all(field.nullable for field in more)


def schema_difference(wanted: pa.Schema, found: pa.Schema) -> str | None:
    """Return why rows with some columns don't fit a table, None if they do; its other columns must be nullable."""
    for field in wanted:
        if field.name not in found.names:
            return f"it has no column {field.name}"
        there = found.field(field.name).type
        if there != field.type:
            hint = " (a struct can only get new fields at its end)" if pa.types.is_struct(there) else ""
            return f"its column {field.name} is {there}, not {field.type}{hint}"
    for field in found:
        if field.name not in wanted.names and not field.nullable:
            return f"its column {field.name} must not be null"
    return None

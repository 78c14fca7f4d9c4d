"""Any Delta table as it was at a version: what it holds, who wrote it, and the commits made against that state."""

import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any
from urllib.parse import quote, unquote

import pyarrow as pa
import pyarrow.parquet as pq

from batch_assets.errors import BatchAssetsError
from batch_assets.lake.data_file import read_data_file
from batch_assets.lake.features import refuse_unreadable, refuse_unwritable
from batch_assets.lake.log import METADATA_PREFIX, REARRANGED, Commit, Partition, commits
from batch_assets.lake.partitions import describe, to_log, typed_partition
from batch_assets.lake.staging import StagedFile, StagingArea
from batch_assets.lake.storage import file_system, remove_half_written, root_of

# Each failed attempt means that somebody else has committed, so this many in a row don't happen by chance.
_COMMIT_ATTEMPTS = 100

# What delta-rs leaves as it is in a path, seen with 1.6.6; the other characters it writes with a percent sign.
_PLAIN_IN_PATHS = "!$&'()+,:;=@/"


class ConcurrentCommitError(BatchAssetsError):
    """Somebody else changed the partition after this run had opened the table; nothing was written."""


@dataclass(frozen=True)
class DataFile:
    """A data file of a table: path as the log has it, size in bytes, typed partition values, rows if it says so."""

    log_path: str
    size: int
    partition: Partition
    rows: int | None

    @property
    def path(self) -> str:
        """Path relative to the table."""
        return relative_path(self.log_path)


@dataclass(frozen=True)
class Transaction:
    """Names a piece of work in the log: whose it is, and which version of it.

    https://github.com/delta-io/delta/blob/master/PROTOCOL.md#transaction-identifiers
    """

    app_id: str
    version: int


class Snapshot:
    """A Delta table as it was when it was opened. Commits are made against this state."""

    def __init__(self, uri: str, storage_options: Mapping[str, str], delta: Any) -> None:
        self.uri = uri
        self.storage_options = dict(storage_options)
        self.version: int = delta.version()
        self.schema: pa.Schema = pa.schema(delta.schema().to_arrow())
        self.partition_columns: list[str] = delta.metadata().partition_columns
        self._delta = delta

    @classmethod
    def open(cls, uri: str, storage_options: Mapping[str, str] | None = None, version: int | None = None) -> "Snapshot":
        """Open a table at a version, by default the newest.

        Args:
            uri: a local folder, or what delta-rs understands.
            storage_options: as in delta-rs.
            version: of the table.

        Raises:
            BatchAssetsError: there is no table, or reading it would get it wrong.
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
            raise BatchAssetsError(f"there is no Delta table at {uri} that can be opened: {reason}") from error
        refuse_unreadable(delta, uri)
        return cls(uri, options, delta)

    def check_writable(self) -> None:
        """Refuse what writes of data files with statistics would get wrong.

        Raises:
            BatchAssetsError: the table has constraints, generated columns, a change data feed or the like.
        """
        refuse_unwritable(self._delta, self.uri)

    def check_replaceable(self, partition: Mapping[str, Any]) -> None:
        """Refuse what a replacement of a partition would get wrong, before any work is done for it.

        Raises:
            BatchAssetsError: the table is append-only, or delta-rs could not remove the partition's files.
        """
        if self.is_append_only:
            raise BatchAssetsError(f"nothing of the table at {self.uri} can be replaced: it has delta.appendOnly set")
        for file in self.files(partition):
            if quote(file.path, safe=_PLAIN_IN_PATHS) != file.log_path:
                raise BatchAssetsError(
                    f"the log of the table at {self.uri} spells the path {file.log_path} in a way that delta-rs would "
                    "not repeat, so the file would stay; rewrite that partition with the engine that wrote it"
                )

    @property
    def is_append_only(self) -> bool:
        """Whether the table's properties forbid to remove anything."""
        return bool(self._delta.metadata().configuration.get("delta.appendOnly") == "true")

    def key(self, partition: Mapping[str, Any]) -> Partition:
        """Typed values of the partition columns, in their order.

        Raises:
            BatchAssetsError: a partition column is missing, is not one, or has a value of another type.
        """
        return tuple(typed_partition(self.uri, partition, self.schema, self.partition_columns).values())

    def staging_area(self, partition: Mapping[str, Any] | None = None) -> StagingArea:
        """Where files for this table are staged, all of one partition if it is given."""
        area = StagingArea(self.uri, self.storage_options, self.schema, self.partition_columns)
        return area if partition is None else area.only(partition)

    def add_actions(self) -> pa.Table:
        """Add actions of the data files, as delta-rs gives them, flattened."""
        return pa.table(self._delta.get_add_actions(flatten=True))

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
        """Partitions that hold files, in the order of the log."""
        return list(self._files)

    def files(self, partition: Mapping[str, Any] | None = None) -> list[DataFile]:
        """Data files of one partition, or of the table."""
        if partition is not None:
            return self._files.get(self.key(partition), [])
        return [file for files in self._files.values() for file in files]

    def rows(self, partition: Mapping[str, Any] | None = None) -> int:
        """Rows of one partition, or of the table, from the statistics in the log."""
        return self.count(self.files(partition))

    def count(self, files: Sequence[DataFile]) -> int:
        """Rows of some of the files; where another writer left statistics out, their footers are read."""
        if all(file.rows is not None for file in files):
            return sum(file.rows or 0 for file in files)
        storage = file_system(self.uri, self.storage_options)
        return sum(
            pq.read_metadata(file.path, filesystem=storage).num_rows if file.rows is None else file.rows
            for file in files
        )

    def read(self, partition: Mapping[str, Any], columns: Sequence[str] | None = None) -> Iterator[pa.RecordBatch]:
        """Yield the rows of one partition.

        Args:
            partition: partition column to value.
            columns: columns wanted, by default all.
        """
        yield from self.read_files(self.files(partition), columns)

    def read_files(self, files: Sequence[DataFile], columns: Sequence[str] | None = None) -> Iterator[pa.RecordBatch]:
        """Yield the rows of some of the files, in the columns wanted, by default all."""
        wanted = pa.schema([self.schema.field(name) for name in columns or self.schema.names])
        storage = file_system(self.uri, self.storage_options)
        for file in files:
            values = dict(zip(self.partition_columns, file.partition, strict=True))
            yield from read_data_file(storage, file.path, wanted, values)

    def add_columns(self, columns: pa.Schema) -> None:
        """Add columns to the table, in a commit of its own, where it doesn't have them yet.

        Raises:
            ConcurrentCommitError: somebody else has added one of them with another type.
        """
        from deltalake import Field
        from deltalake.exceptions import DeltaError

        failure: Exception | None = None
        for _ in range(_COMMIT_ATTEMPTS):
            newest = self._newest()
            for field in columns:
                if field.name in newest.schema.names and newest.schema.field(field.name).type != field.type:
                    raise ConcurrentCommitError(
                        f"somebody else has added a column {field.name} to the table at {self.uri}, of type "
                        f"{newest.schema.field(field.name).type}, not {field.type}: run it again"
                    )
            missing = [Field.from_arrow(field) for field in columns if field.name not in newest.schema.names]
            if not missing:
                return
            try:
                newest._delta.alter.add_columns(missing)
            except DeltaError as error:  # somebody else may have changed the columns at the same time
                failure = error
        assert failure is not None
        raise failure

    def commits(self, after: int = -1) -> Iterator[Commit]:
        """Commits from this version to the oldest that is newer than ``after`` and whose log entry is still there."""
        return self._commits(after)

    @property
    def table_id(self) -> str:
        """The id that the table was given when it was made."""
        return str(self._delta.metadata().id)

    def follows(self, earlier: "Snapshot") -> bool:
        """Whether this is the same table as an earlier snapshot is of, and not older."""
        return self.table_id == earlier.table_id and self.version >= earlier.version

    def _commits(self, after: int) -> Iterator[Commit]:
        return commits(self.uri, self.storage_options, self.schema, self.partition_columns, self.version, after)

    def append(
        self, staged: Sequence[StagedFile], metadata: Mapping[str, Any], transaction: Transaction | None = None
    ) -> int:
        """Add staged files in one commit.

        Args:
            staged: the files; an append of none commits nothing.
            metadata: what the commit should record.
            transaction: commits nothing if the log holds this or a later version of the same application.

        Returns:
            Version of the commit, or of the table where nothing was committed.

        Raises:
            ConcurrentCommitError: the table's columns were changed since this snapshot was taken.
        """
        if not staged:
            return self.version
        return self._commit(_Change(staged, [], None, metadata, transaction, once=transaction is not None))

    def replace(
        self,
        partition: Mapping[str, Any],
        staged: Sequence[StagedFile],
        metadata: Mapping[str, Any],
        transaction: Transaction | None = None,
        *,
        once: bool = False,
        schema: pa.Schema | None = None,
    ) -> int:
        """Replace the rows of one partition by staged files in one commit, or change nothing.

        The files that go are listed one by one from this snapshot, so nothing else can go with them.

        Args:
            partition: partition column to value; empty for a table without partitions.
            staged: files that hold its new rows; none empties the partition.
            metadata: what the commit should record.
            transaction: recorded in the log.
            once: commit nothing if the log holds this or a later version of the transaction.
            schema: columns that a table without partitions has from now on, None for those that it has.

        Returns:
            Version of the commit.

        Raises:
            ConcurrentCommitError: the partition was changed since this snapshot was taken.
            BatchAssetsError: the table can't be written correctly here, or a staged file is gone.
        """
        self.check_replaceable(partition)
        # With other columns, delta-rs removes the files itself: all there are, in a table without partitions.
        gone = self.files(partition) if schema is None else []
        return self._commit(_Change(staged, gone, self.key(partition), metadata, transaction, once), schema)

    def rearrange(self, partition: Mapping[str, Any], staged: Sequence[StagedFile], gone: Sequence[DataFile]) -> int:
        """Put staged files in the place of others that hold the same rows, in one commit.

        Raises:
            ConcurrentCommitError: the partition was changed since this snapshot was taken.
            BatchAssetsError: the staged files don't hold as many rows.
        """
        self.check_replaceable(partition)
        rows, before = sum(file.rows for file in staged), self.count(gone)
        if rows != before:
            raise BatchAssetsError(f"{before} rows of {describe(partition)} became {rows}; nothing was committed")
        return self._commit(_Change(staged, gone, self.key(partition), {}, None, once=False, same_rows=True))

    def checkpoint(self) -> None:
        """Write a checkpoint of the newest version, so that readers need not read the whole log."""
        self._newest()._delta.create_checkpoint()

    def vacuum(self, retention_hours: int) -> list[str]:
        """Remove files that no version needs that is younger than the retention, also those never committed.

        Returns:
            The removed files.
        """
        removed: list[str] = self._newest()._delta.vacuum(
            retention_hours, dry_run=False, enforce_retention_duration=False, full=True
        )
        return removed + remove_half_written(self.uri, time.time() - retention_hours * 3600)

    def _commit(self, change: "_Change", schema: pa.Schema | None = None) -> int:
        """Commit as the version right after one that has been looked at, so that nobody comes in between."""
        self._refuse_missing(change.staged)
        from deltalake import Schema

        commit_id = str(uuid.uuid4())
        actions, properties = change.for_delta(self.partition_columns, commit_id)
        failure: Exception | None = None
        newest = self
        for attempt in range(_COMMIT_ATTEMPTS):
            seen, newest = newest.version, self._newest()
            news = newest._since(seen)
            # The answer to an attempt may have been lost on its way back; then only the log says that it landed.
            landed = [commit for commit in news if commit.metadata.get("commit_id") == commit_id]
            if landed:
                return landed[0].version
            if change.once and newest._holds(change.transaction):
                return newest.version
            overtaken = None if change.replaced is None else self._overtaken(change.replaced, news)
            if overtaken is not None:
                raise overtaken
            if attempt and newest.version == seen:
                break
            newest._refuse_unfit(self)
            try:
                newest._delta.create_write_transaction(
                    actions,
                    "append" if schema is None else "overwrite",
                    newest._delta.schema() if schema is None else Schema.from_arrow(schema),
                    self.partition_columns,
                    commit_properties=properties,
                )
            except Exception as error:  # whatever it was: the log says whether the commit has landed
                failure = error
        raise failure or BatchAssetsError(f"a commit to {self.uri} is not in its log: look at {self.uri}/_delta_log")

    def _newest(self) -> "Snapshot":
        newest = Snapshot.open(self.uri, self.storage_options)
        if newest.table_id != self.table_id:
            raise ConcurrentCommitError(
                f"the table at {self.uri} was made anew after this run had opened it at version {self.version}; "
                "nothing was written: run it again"
            )
        return newest

    def _since(self, version: int) -> list[Commit]:
        """Commits that are newer than a version, from the newest; all of them, or an error."""
        newer = list(self._commits(after=version))
        if len(newer) != self.version - version:
            raise ConcurrentCommitError(
                f"the log of the table at {self.uri} no longer has the versions after {version}, at which this run "
                "had opened it, so what they changed can't be seen; nothing was written: run it again"
            )
        return newer

    def _holds(self, transaction: Transaction | None) -> bool:
        if transaction is None:
            return False
        version = self._delta.transaction_version(transaction.app_id)
        return version is not None and version >= transaction.version

    def overtaken(self, partition: Mapping[str, Any]) -> ConcurrentCommitError | None:
        """What replacing a partition would raise now, because it was changed since; None if it was not."""
        return self._overtaken(self.key(partition), self._newest()._since(self.version))

    def _overtaken(self, partition: Partition, news: Sequence[Commit]) -> ConcurrentCommitError | None:
        winner = next((commit for commit in news if commit.may_touch(partition)), None)
        if winner is None:
            return None
        which = describe(dict(zip(self.partition_columns, partition, strict=True)))
        return ConcurrentCommitError(
            f"{which} of the table at {self.uri} was changed in version {winner.version} by {winner.author} "
            f"after this run had opened it at version {self.version}; nothing was written: run it again if it is "
            "still stale"
        )

    def _refuse_unfit(self, older: "Snapshot") -> None:
        """Refuse a commit of files that were made for an older state of the table if they don't fit it any more."""
        self.check_writable()
        problem = schema_difference(older.schema, self.schema)
        if problem is None and older.partition_columns != self.partition_columns:
            problem = f"it is partitioned by {', '.join(self.partition_columns) or 'nothing'}"
        if problem is not None:
            raise ConcurrentCommitError(
                f"the columns of the table at {self.uri} were changed after this run had opened it at version "
                f"{older.version}: {problem}; nothing was written: run it again"
            )

    def _refuse_missing(self, staged: Sequence[StagedFile]) -> None:
        if not staged:
            return
        found = file_system(self.uri, self.storage_options).get_file_info([file.path for file in staged])
        for file, info in zip(staged, found, strict=True):
            if info.size != file.size:
                raise BatchAssetsError(
                    f"{file.path} was written by this run and is not there any more as it was; nothing was committed: "
                    "run it again, and vacuum the table only of files that are older than the longest run"
                )


def create_table(
    uri: str,
    storage_options: Mapping[str, str],
    schema: pa.Schema,
    partition_columns: Sequence[str],
    *,
    name: str | None = None,
    description: str | None = None,
    configuration: Mapping[str, str | None] | None = None,
) -> None:
    """Make an empty table where there is none.

    Args:
        uri: a local folder, or what delta-rs understands.
        storage_options: as in delta-rs.
        schema: columns of the table.
        partition_columns: those of them that it is partitioned by.
        name: of the table, for people.
        description: of the table, for people.
        configuration: table properties.
    """
    from deltalake import CommitProperties, DeltaTable, Schema
    from deltalake.exceptions import DeltaError

    uri, options = root_of(uri), dict(storage_options)
    if DeltaTable.is_deltatable(uri, options):
        return
    try:
        DeltaTable.create(
            uri,
            Schema.from_arrow(schema),
            partition_by=list(partition_columns),
            name=name,
            description=description,
            configuration=configuration,
            storage_options=options,
            # Otherwise whoever is second writes version 1, which gives the table another identity.
            commit_properties=CommitProperties(max_commit_retries=0),
        )
    except DeltaError:
        if not DeltaTable.is_deltatable(uri, options):  # else somebody else was faster
            raise


def relative_path(log_path: str) -> str:
    """Path of a data file relative to its table.

    Raises:
        BatchAssetsError: the log names a file outside the table's folder, as in a shallow clone.
    """
    path = unquote(log_path)
    if path.startswith("/") or "://" in path:
        raise BatchAssetsError(f"the table's log names {path}, outside of its folder (a shallow clone?): copy it first")
    return path


def schema_difference(wanted: pa.Schema, found: pa.Schema) -> str | None:
    """Why rows with some columns don't fit a table that has others, None if they do; further columns may be null."""
    for field in wanted:
        if field.name not in found.names:
            return f"it has no column {field.name}"
        if found.field(field.name).type != field.type:
            return f"its column {field.name} is {found.field(field.name).type}, not {field.type}"
    for field in found:
        if field.name not in wanted.names and not field.nullable:
            return f"its column {field.name} must not be null"
    return None


@dataclass(frozen=True)
class _Change:
    """What a commit adds and removes; ``replaced`` is the partition that nobody else may have touched."""

    staged: Sequence[StagedFile]
    gone: Sequence[DataFile]
    replaced: Partition | None
    metadata: Mapping[str, Any]
    transaction: Transaction | None
    once: bool
    same_rows: bool = False

    def for_delta(self, partition_columns: Sequence[str], commit_id: str) -> tuple[list[Any], Any]:
        """Actions and commit properties for delta-rs."""
        from deltalake import CommitProperties
        from deltalake import Transaction as DeltaTransaction
        from deltalake.transaction import AddAction, RemoveAction

        now = int(time.time() * 1000)

        def texts(partition: Partition) -> dict[str, str | None]:
            return {name: to_log(value) for name, value in zip(partition_columns, partition, strict=True)}

        actions: list[Any] = [
            AddAction(file.path, file.size, file.partition_values, now, not self.same_rows, file.statistics)
            for file in self.staged
        ]
        # Also where the rows stay the same, a removal says that it changes data: delta-rs overlooks others when it
        # looks for conflicts, and its own compaction, if it had begun before, would add the same rows once more.
        actions += [RemoveAction(file.path, True, now, file.size, texts(file.partition)) for file in self.gone]
        recorded = {**self.metadata, "rows": sum(file.rows for file in self.staged), "commit_id": commit_id}
        if self.same_rows:
            recorded[REARRANGED] = True
        elif self.replaced is not None:
            recorded["partition"] = texts(self.replaced)
        transactions = [] if self.transaction is None else [self.transaction]
        properties = CommitProperties(
            custom_metadata={f"{METADATA_PREFIX}{key}": value for key, value in recorded.items()},
            # Without retries, delta-rs writes the version after the one it was given, or fails.
            max_commit_retries=0,
            app_transactions=[DeltaTransaction(t.app_id, t.version, now) for t in transactions],
        )
        return actions, properties

"""The lake: Delta tables partitioned by batch, each with a contract, opened and replaced batch by batch."""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.fs as pafs

from batch_assets.errors import BatchAssetsError
from batch_assets.lake.column_types import has_ddl
from batch_assets.lake.commit_log import Commit
from batch_assets.lake.contracts import DEFAULT_TABLES, PARTITION, Table
from batch_assets.lake.features import UnreadableTableError
from batch_assets.lake.missing_table import MissingTable
from batch_assets.lake.snapshot import DataFile, Snapshot, is_table, schema_difference
from batch_assets.lake.staging import StagedFile, StagingArea
from batch_assets.lake.storage import file_system
from batch_assets.lake.writable_table import Transaction, WritableTable, create_table
from batch_assets.names import check_batch, check_name, is_batch

if TYPE_CHECKING:
    from deltalake import DeltaTable

    from batch_assets.settings import Settings

# The history of a batch is read from the commits, so the log is kept for ten years.
_CONFIGURATION = {"delta.logRetentionDuration": "interval 3650 days"}

# The metadata of the partition column that says which pipeline writes a table. delta-rs refuses table properties that
# it doesn't know when it creates a table, and another commit could fail.
_OWNER, _IDENTITY = "batch_assets.pipeline", "batch_assets.identity"
# Where the commits of a source that is read in place begin to be batches: the table's id, and its version.
_SOURCE_ID, _SOURCE_VERSION = "batch_assets.source_id", "batch_assets.source_version"

# Metadata of a commit of answers: class of an error, attempts, number of rows.
FAILURES = "failures"

# By default, delta-rs retries an unreachable lake for three minutes.
_FAIL_FAST = {"max_retries": "1", "retry_timeout": "5s", "timeout": "5s", "connect_timeout": "5s"}


def _digest(names: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(sorted(names)).encode()).hexdigest()


# The digest of a batch without files.
NO_FILES = _digest(())


@dataclass(frozen=True)
class Lake:
    """Where the tables are: ``<uri>/<catalog>/<schema>/<table>``.

    Statements read ``contracts`` with all their columns, even if a table does not have them yet.
    """

    uri: str
    catalog: str = "main"
    schema: str = "default"
    storage_options: Mapping[str, str] = field(default_factory=dict)
    contracts: tuple[Table, ...] = DEFAULT_TABLES.all

    @classmethod
    def of(cls, settings: "Settings", *, fail_fast: bool = False) -> "Lake":
        """Return the lake of a deployment.

        Args:
            settings: settings with its URI, catalog and schema.
            fail_fast: fail within seconds instead of minutes if the lake can't be reached.
        """
        options = _FAIL_FAST if fail_fast and "://" in settings.lake_uri else {}
        return cls(settings.lake_uri, settings.catalog, settings.schema_name, options)

    def table_uri(self, table: Table) -> str:
        """Return the root of a table."""
        parts = (check_name(part) for part in (self.catalog, self.schema, table.name))
        return "/".join((self.uri.rstrip("/"), *parts))

    def full_name(self, table: Table) -> str:
        """Return the three-part name of a table."""
        return f"{self.catalog}.{self.schema}.{table.name}"

    def exists(self, table: Table) -> bool:
        """Whether the table was created."""
        return is_table(self.table_uri(table), self.storage_options)

    def difference(self, table: Table) -> str | None:
        """Return how the existing Delta table differs from its contract, None if it doesn't.

        Raises:
            BatchAssetsError: the table can't be opened.
        """
        try:
            snapshot = WritableTable.open(self.table_uri(table), self.storage_options)
            table = self._typed(table, snapshot.schema)
        except UnreadableTableError as error:
            return str(error)
        return _difference(table, _completed(table, snapshot))

    def find(self, table: Table) -> "BatchSnapshot":
        """Open a table for reading only. A missing table is not created, and reads as empty.

        Raises:
            BatchAssetsError: the existing table does not match the contract.
        """
        if self.exists(table):
            # Readers may open a table that was set up with another source or output.
            return self.open(replace(table, identity=None))
        return BatchSnapshot(table, MissingTable(self.table_uri(table), table.arrow_schema, [PARTITION]))

    def open(self, table: Table, version: int | None = None) -> "BatchSnapshot":
        """Open a table at a version, by default the newest; without a version, a missing table is created.

        Raises:
            BatchAssetsError: the existing table does not match the contract.
        """
        uri = self.table_uri(table)
        if version is None and not self.exists(table):
            create_table(
                uri,
                self.storage_options,
                self._new_schema(table),
                [PARTITION],
                name=table.name,
                description=table.description,
                configuration=_CONFIGURATION,
            )
        snapshot = WritableTable.open(uri, self.storage_options, version)
        table = self._typed(table, snapshot.schema)
        snapshot = _completed(table, snapshot)
        recorded = snapshot.column_metadata(PARTITION)
        owner = recorded.get(_OWNER)
        if owner != table.owner:
            whose = f"belongs to the pipeline {owner}" if owner else "was not made by a pipeline"
            raise BatchAssetsError(
                f"the table at {uri} {whose}, so it can't be used by the pipeline {table.owner or 'that ships'}: "
                "move it away, or give the pipeline or its output another name"
            )
        if table.identity is not None and recorded.get(_IDENTITY) != table.identity:
            raise BatchAssetsError(
                f"the pipeline {owner} was set up with {recorded.get(_IDENTITY)}, and now it has {table.identity}: "
                f"undo the change, give the pipeline another name, or start afresh with 'batch-assets reset {owner}'"
            )
        problem = _difference(table, snapshot)
        if problem is not None:
            remedy = (
                "set BATCH_ASSETS_CATALOG or BATCH_ASSETS_SCHEMA to another name"
                if owner is None
                else f"start afresh with 'batch-assets reset {owner}'"
            )
            raise BatchAssetsError(
                f"the table at {uri} does not match the contract of {table.name}: {problem}; move it away, or {remedy}"
            )
        return BatchSnapshot(table, snapshot)

    def _new_schema(self, table: Table) -> pa.Schema:
        """The schema of a new table, which says which pipeline it belongs to, and where its source was.

        Raises:
            BatchAssetsError: the source can't be opened.
        """
        recorded = {} if table.owner is None else {_OWNER: table.owner}
        if table.identity is not None:
            recorded[_IDENTITY] = table.identity
        if table.source is not None:
            source = Snapshot.open(table.source, self.storage_options)
            recorded |= {_SOURCE_ID: source.table_id, _SOURCE_VERSION: str(source.version)}
            table = table.with_types_of(types_of_copies(table, source.schema))
        schema = table.arrow_schema
        place = schema.get_field_index(PARTITION)
        return schema.set(place, schema.field(place).with_metadata(recorded)) if recorded else schema

    def _typed(self, table: Table, existing: pa.Schema) -> Table:
        """The contract of a table that exists, with the types that its columns copied from another table have."""
        copied = {column.name for column in table.columns if column.copied_from is not None}
        if table.source is not None and not copied <= set(existing.names):
            source = Snapshot.open(table.source, self.storage_options)
            table = table.with_types_of(types_of_copies(table, source.schema))
        return table.with_types_of(existing)

    def open_for_statement(self, uri: str) -> Snapshot:
        """Open any table of the lake for reading, whether or not a pipeline writes it.

        Raises:
            BatchAssetsError: the table can't be opened.
        """
        snapshot = WritableTable.open(uri, self.storage_options)
        table = next((table for table in self.contracts if self.table_uri(table) == uri), None)
        return snapshot if table is None else _completed(table, snapshot)

    def owned_by(self, pipeline: str) -> dict[str, int]:
        """The names of all tables that belong to a pipeline other than the default one, with their numbers of rows."""
        from deltalake import DeltaTable

        folder = "/".join((self.uri.rstrip("/"), check_name(self.catalog), check_name(self.schema)))
        options = dict(self.storage_options)
        files = file_system(folder, options)
        found = {}
        for info in files.get_file_info(pafs.FileSelector("", allow_not_found=True)):
            uri = f"{folder}/{info.base_name}"
            if info.type != pafs.FileType.Directory or not DeltaTable.is_deltatable(uri, options):
                continue
            delta = DeltaTable(uri, storage_options=options)
            if any((field.metadata or {}).get(_OWNER) == pipeline for field in delta.schema().fields):
                found[info.base_name] = Snapshot(uri, options, delta).rows()
        return found

    def drop(self, name: str, pipeline: str) -> None:
        """Remove a table that belongs to a pipeline, with all its files.

        The rows go first, then the log from its end: as long as there is a log, ``owned_by`` finds the table, so an
        interrupted call can be repeated.
        """
        if name not in self.owned_by(pipeline):
            return
        folder = "/".join((self.uri.rstrip("/"), check_name(self.catalog), check_name(self.schema), check_name(name)))
        files = file_system(folder, dict(self.storage_options))
        infos = files.get_file_info(pafs.FileSelector("", allow_not_found=True, recursive=True))
        paths = [info.path for info in infos if info.type == pafs.FileType.File]
        for path in sorted(paths, key=_removal_order):
            files.delete_file(path)


def _removal_order(path: str) -> tuple[int, int]:
    """Rows first, then checkpoints and what points to them, then commits from the newest to the oldest."""
    if not path.startswith("_delta_log/"):
        return 0, 0
    commit = re.fullmatch(r"_delta_log/(\d+)\.json", path)
    return (1, 0) if commit is None else (2, -int(commit[1]))


def is_owned(lake: Lake, full_name: str, existing: "DeltaTable | None") -> bool:
    """Whether a table, which may not exist yet, belongs to a pipeline."""
    if full_name.lower() in {lake.full_name(table).lower() for table in DEFAULT_TABLES.all}:
        return True
    if existing is None:
        return False
    return any(_OWNER in (field.metadata or {}) for field in existing.schema().fields)


def types_of_copies(table: Table, source: pa.Schema) -> pa.Schema:
    """The types of a table's copied columns, by their names in the table; text for those that Delta readers lack."""
    fields = []
    for column in table.columns:
        if column.copied_from in source.names:
            kind = source.field(column.copied_from).type
            fields.append(pa.field(column.name, kind if has_ddl(kind) else pa.string()))
    return pa.schema(fields)


def _completed(table: Table, snapshot: WritableTable) -> WritableTable:
    """The snapshot of a table of ours with all columns of its contract; another writer's table stays as it is."""
    # The tables of the default pipeline have no owner, but the name that they got when they were created.
    is_ours = snapshot.column_metadata(PARTITION).get(_OWNER) == table.owner and (
        table.owner is not None or snapshot.name == table.name
    )
    return snapshot.with_missing_columns(table.arrow_schema) if is_ours else snapshot


def _difference(table: Table, snapshot: WritableTable) -> str | None:
    """Return why this package can't read and write a Delta table, None if it can."""
    if snapshot.partition_columns != [PARTITION]:
        return f"it is partitioned by {', '.join(snapshot.partition_columns) or 'nothing'}, not by {PARTITION}"
    return schema_difference(table.arrow_schema, snapshot.schema)


class BatchSnapshot:
    """A table with a contract, at the version at which it was opened; its partitions are batches."""

    def __init__(self, table: Table, delta: WritableTable) -> None:
        self.table = table
        self.delta = delta
        self.version = delta.version
        self.uri = delta.uri
        self.storage_options = delta.storage_options
        self._last_commits: dict[str, Commit] = {}
        self._oldest_read = delta.version
        self._unread = delta.commits()

    @property
    def table_id(self) -> str:
        """The table's id; a table that is deleted and created again gets another one."""
        return self.delta.table_id

    @property
    def exists(self) -> bool:
        """Whether the table was created."""
        return self.version >= 0

    @property
    def source_began(self) -> tuple[str, int] | None:
        """The id and the version of the table that is read in place, when this table was created or rebased."""
        recorded = self.delta.column_metadata(PARTITION)
        return (recorded[_SOURCE_ID], int(recorded[_SOURCE_VERSION])) if _SOURCE_ID in recorded else None

    def rebase(self, source_id: str, version: int) -> None:
        """Let the commits of the table that is read in place be batches from a version on."""
        recorded = {**self.delta.column_metadata(PARTITION), _SOURCE_ID: source_id, _SOURCE_VERSION: str(version)}
        self.delta.set_column_metadata(PARTITION, recorded)

    def reuse(self, earlier: "BatchSnapshot") -> bool:
        """Take over the last commits of the batches from an earlier snapshot, and read only the commits after it.

        Returns:
            False if that is not possible: the table was recreated or rolled back, the log no longer has those
            commits, or one of them doesn't say which batches it changed.
        """
        if not self.delta.follows(earlier.delta):
            return False
        commits = list(self.delta.commits(after=earlier.version))
        if len(commits) != self.version - earlier.version or any(commit.unknown_partitions for commit in commits):
            return False
        for commit in commits:
            self._record(commit)
        for batch, commit in earlier._last_commits.items():
            self._last_commits.setdefault(batch, commit)
        self._oldest_read, self._unread = earlier._oldest_read, earlier._unread
        return True

    def read_whole_log(self) -> None:
        """Read the log until the last commit of every batch is known."""
        for batch in self.batches():
            self.last_commit(batch)

    def batches(self) -> list[str]:
        """Return the sorted keys of the batches with rows; values that can't name a batch are skipped."""
        return sorted(batch for (batch,) in self.delta.partitions() if batch is not None and is_batch(batch))

    def sort_by_last_change(self, batches: Sequence[str]) -> list[str]:
        """Sort batches by their last change in this table; batches that it does not contain come first."""
        commits = {batch: self.last_commit(batch) for batch in batches}
        return sorted(batches, key=lambda batch: (-1 if (commit := commits[batch]) is None else commit.version, batch))

    def files(self, batch: str) -> list[DataFile]:
        """Return the data files of one batch."""
        return self.delta.files({PARTITION: batch})

    def files_digest(self, batch: str) -> str:
        """A digest of the names of a batch's files, which never change."""
        return _digest(file.log_path for file in self.files(batch))

    def rows(self, batch: str | None = None) -> int:
        """Count the rows of one batch, or of the table, from the statistics in the log."""
        return self.delta.rows(None if batch is None else {PARTITION: batch})

    def read(self, batch: str, columns: Sequence[str] | None = None) -> Iterator[pa.RecordBatch]:
        """Yield the rows of one batch with the given columns, by default all."""
        return self.delta.read({PARTITION: batch}, columns or self.table.column_names)

    def last_commit(self, batch: str) -> Commit | None:
        """Return the last commit up to this version that changed a batch, None if there is none.

        Commits that only rearrange files (``dataChange`` false) don't count.
        """
        while batch not in self._last_commits:
            commit = next(self._unread, None)
            if commit is None:
                break
            self._oldest_read = commit.version
            self._record(commit)
            if commit.unknown_partitions:
                for key in {batch, *self.batches()}:
                    self._last_commits.setdefault(key, commit)
        if batch not in self._last_commits and self.files(batch):
            # Its log entry has been cleaned up. The oldest version left in the log is later than it.
            return Commit(self._oldest_read, {}, is_lost=True)
        if batch not in self._last_commits and self.delta.may_have_had(batch):
            return Commit(self.version, {}, is_lost=True)
        return self._last_commits.get(batch)

    def _record(self, commit: Commit) -> None:
        for (key,) in commit.changed:
            if key is not None:
                self._last_commits.setdefault(key, commit)

    def is_written_by_us(self, batch: str) -> bool:
        """Return whether this package wrote all rows of a batch, or the batch has none."""
        commit = self.last_commit(batch)
        return (
            commit is None
            or not self.files(batch)
            or (commit.metadata.get("table") == self.table.name and commit.metadata["rows"] == self.rows(batch))
        )

    def staging_area(self, batch: str) -> StagingArea:
        """Return where to stage files of a batch, with the columns of the contract.

        Raises:
            BatchAssetsError: the table uses features that this package can't write.
        """
        self.delta.check_writable()
        area = StagingArea(
            self.uri,
            self.storage_options,
            self.table.arrow_schema,
            [PARTITION],
            summed=self.table.summed_columns,
            tallied=self.table.tallied_columns,
        )
        return area.only({PARTITION: check_batch(batch)})

    @contextmanager
    def raise_if_superseded(self, batch: str) -> Iterator[None]:
        """Turn errors in the ``with`` block into a conflict if another writer has replaced the batch.

        That writer has removed the completions that both runs shared, which may have caused the error.

        Raises:
            ConcurrentCommitError: the block failed, and the batch was changed since this snapshot was taken.
        """
        try:
            yield
        except Exception as error:
            superseded = self.delta.superseded_by({PARTITION: batch})
            if superseded is None:
                raise
            raise superseded from error

    def replace(self, batch: str, staged: Sequence[StagedFile], metadata: Mapping[str, Any]) -> int:
        """Replace the rows of one batch by staged files in one commit, or change nothing.

        Args:
            batch: key of the batch.
            staged: files with its new rows; no files empty the batch.
            metadata: recorded in the commit; its ``input_version`` becomes the version of the app transaction.

        Returns:
            Version of the commit.

        Raises:
            ConcurrentCommitError: the batch was changed since this snapshot was taken.
        """
        check_batch(batch)
        sums: Counter[str] = Counter()
        failures = Counter[tuple[Any, ...]]()
        for file in staged:
            sums.update(json.loads(file.sums))
            failures.update({tuple(values): rows for values, rows in json.loads(file.tally)})
        return self.delta.replace(
            {PARTITION: batch},
            staged,
            {
                # Failures may come from an earlier commit of the batch.
                **{key: value for key, value in metadata.items() if key != FAILURES},
                "table": self.table.name,
                "batch": batch,
                "sums": {name: sums[name] for name in self.table.summed_columns},
                **({FAILURES: [[*values, rows] for values, rows in failures.items()]} if failures else {}),
            },
            Transaction(f"batch_assets/{self.table.name}/{batch}", int(metadata.get("input_version", self.version))),
        )

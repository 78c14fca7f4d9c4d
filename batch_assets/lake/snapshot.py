"""Tables at a version: what they hold, who wrote it, and the one way to replace a batch."""

import json
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import takewhile
from typing import Any
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.parquet as pq

from batch_assets.errors import BatchAssetsError
from batch_assets.lake.names import check_batch, check_name, is_batch
from batch_assets.lake.staging import StagedFile
from batch_assets.lake.storage import file_system, read_parquet
from batch_assets.lake.tables import PARTITION, Table

# Commits are read back for what they say of a batch, so the log is kept for ten years.
_CONFIGURATION = {"delta.logRetentionDuration": "interval 3650 days"}
_METADATA_PREFIX = "batch_assets."
# Each failed attempt means that somebody else has committed, so this many in a row don't happen by chance.
_COMMIT_ATTEMPTS = 50


class ConcurrentReplacementError(BatchAssetsError):
    """Somebody else changed the batch after this run had opened the table; nothing was written."""


@dataclass(frozen=True)
class DataFile:
    """A data file of a table: path relative to the table, size in bytes, rows."""

    path: str
    size: int
    rows: int


@dataclass(frozen=True)
class BatchCommit:
    """The last commit that changed a batch; ``metadata`` is what this package recorded in it, if it wrote it."""

    version: int
    metadata: Mapping[str, Any]


@dataclass(frozen=True)
class Lake:
    """Where the tables are: ``<uri>/<catalog>/<schema>/<table>``."""

    uri: str
    catalog: str = "main"
    schema: str = "default"
    storage_options: Mapping[str, str] = field(default_factory=dict)

    def table_uri(self, table: Table) -> str:
        """Root of a table."""
        parts = (check_name(part) for part in (self.catalog, self.schema, table.name))
        return "/".join((self.uri.rstrip("/"), *parts))

    def full_name(self, table: Table) -> str:
        """Three-part name of a table."""
        return f"{self.catalog}.{self.schema}.{table.name}"

    def exists(self, table: Table) -> bool:
        """Whether the table has been written yet."""
        from deltalake import DeltaTable

        return bool(DeltaTable.is_deltatable(self.table_uri(table), dict(self.storage_options)))

    def difference(self, table: Table) -> str | None:
        """What sets the Delta table that is there apart from its contract, None if nothing does."""
        from deltalake import DeltaTable

        return _difference(table, DeltaTable(self.table_uri(table), storage_options=dict(self.storage_options)))

    def open(self, table: Table, version: int | None = None) -> "Snapshot":
        """Open a table at a version, by default the newest, and make it if it does not exist.

        Raises:
            BatchAssetsError: the table there is not the one this package knows.
        """
        from deltalake import DeltaTable, Schema

        uri, options = self.table_uri(table), dict(self.storage_options)
        if version is None:
            DeltaTable.create(
                uri,
                Schema.from_arrow(table.arrow_schema),
                mode="ignore",
                partition_by=[PARTITION],
                name=table.name,
                description=table.description,
                configuration=_CONFIGURATION,
                storage_options=options,
            )
        delta = DeltaTable(uri, version=version, storage_options=options)
        problem = _difference(table, delta)
        if problem is not None:
            raise BatchAssetsError(
                f"the table at {uri} is not {table.name} as this package knows it: {problem}; move it away, or "
                "set BATCH_ASSETS_CATALOG or BATCH_ASSETS_SCHEMA to other names"
            )
        return Snapshot(table, uri, options, delta)


def _difference(table: Table, delta: Any) -> str | None:
    """What keeps this package from reading and writing a Delta table, None if nothing does."""
    protocol = delta.protocol()
    if protocol.min_reader_version > 1:
        features = protocol.reader_features or [f"reader version {protocol.min_reader_version}"]
        return f"it needs {', '.join(features)} of its readers"
    partitions = delta.metadata().partition_columns
    if partitions != [PARTITION]:
        return f"it is partitioned by {', '.join(partitions) or 'nothing'}, not by {PARTITION}"
    found = pa.schema(delta.schema().to_arrow())
    for column in table.arrow_schema:
        if column.name not in found.names:
            return f"it has no column {column.name}"
        if found.field(column.name).type != column.type:
            return f"its column {column.name} is {found.field(column.name).type}, not {column.type}"
    return None


class Snapshot:
    """A table as it was when it was opened. Replacements are committed against this state."""

    def __init__(self, table: Table, uri: str, storage_options: Mapping[str, str], delta: Any) -> None:
        self.table = table
        self.uri = uri
        self.storage_options = storage_options
        self.version: int = delta.version()
        self._delta = delta
        self._oldest = self.version
        self._commits: dict[str, BatchCommit] = {}
        self._unread_log = self._log()

    @cached_property
    def _files(self) -> dict[str | None, list[DataFile]]:
        files: dict[str | None, list[DataFile]] = {}
        storage = file_system(self.uri, self.storage_options)
        for action in pa.table(self._delta.get_add_actions(flatten=False)).to_pylist():
            path, rows = unquote(action["path"]), action["num_records"]
            if rows is None:  # other writers may leave statistics out
                rows = pq.read_metadata(path, filesystem=storage).num_rows
            data_file = DataFile(path, action["size_bytes"], rows)
            files.setdefault(action["partition"][PARTITION], []).append(data_file)
        return files

    def batches(self) -> list[str]:
        """Keys of the batches that hold rows, sorted; values that can't name a batch are left out."""
        return sorted(batch for batch in self._files if batch is not None and is_batch(batch))

    def files(self, batch: str) -> list[DataFile]:
        """Data files of one batch."""
        return self._files.get(batch, [])

    def rows(self, batch: str | None = None) -> int:
        """Rows of one batch, or of the table, from the statistics in the log."""
        batches = self._files if batch is None else [batch]
        return sum(data_file.rows for key in batches for data_file in self._files.get(key, []))

    def read(self, batch: str, columns: Sequence[str] | None = None) -> Iterator[pa.RecordBatch]:
        """Yield the rows of one batch, with the partition column.

        Args:
            batch: key of the batch.
            columns: columns wanted, by default all.
        """
        wanted = [name for name in (columns or self.table.column_names) if name != PARTITION]
        files = file_system(self.uri, self.storage_options)
        for data_file in self.files(batch):
            for rows in read_parquet(files, data_file.path, wanted):
                yield rows.append_column(PARTITION, pa.array([batch] * rows.num_rows, pa.string()))

    def last_commit(self, batch: str) -> BatchCommit | None:
        """The last commit up to this version that changed the batch, read from the log; None if there is none.

        Commits that only rearrange files (``dataChange`` false) don't count.
        """
        while batch not in self._commits:
            entry = next(self._unread_log, None)
            if entry is None:
                break
            commit, batches = entry
            for changed in batches:
                self._commits.setdefault(changed, commit)
        if batch not in self._commits and self.files(batch):
            # Its commit has been cleaned up; the oldest version that is left is later than it.
            return BatchCommit(self._oldest, {})
        return self._commits.get(batch)

    def is_ours(self, batch: str) -> bool:
        """Whether this package wrote all rows of a batch, or it has none."""
        commit = self.last_commit(batch)
        return commit is None or (bool(commit.metadata) and commit.metadata["rows"] == self.rows(batch))

    def _log(self) -> Iterator[tuple[BatchCommit, set[str]]]:
        """Commits from the newest to the oldest, each with the batches that it changed."""
        files = file_system(self.uri, self.storage_options)
        for version in range(self.version, -1, -1):
            try:
                with files.open_input_stream(f"_delta_log/{version:020d}.json") as stream:
                    lines = stream.read().decode().splitlines()
            except FileNotFoundError:
                return  # older commits live in a checkpoint and have been cleaned up
            self._oldest = version
            actions = [json.loads(line) for line in lines if line]
            info: dict[str, Any] = next((a["commitInfo"] for a in actions if "commitInfo" in a), {})
            metadata = {
                key.removeprefix(_METADATA_PREFIX): value
                for key, value in info.items()
                if key.startswith(_METADATA_PREFIX)
            }
            changed = {
                (change.get("partitionValues") or {}).get(PARTITION)
                for action in actions
                for change in (action.get("add"), action.get("remove"))
                if change and change.get("dataChange")
            }
            # A replacement of an empty batch by nothing changes no file, but it is on record.
            changed.add(metadata.get("batch"))
            yield BatchCommit(version, metadata), {batch for batch in changed if batch is not None}

    def replace(self, batch: str, staged: Sequence[StagedFile], metadata: Mapping[str, Any]) -> int:
        """Replace the rows of one batch by staged files in one commit, or change nothing.

        The files that go are listed one by one from this snapshot, so nothing else can go with them.

        Args:
            batch: key of the batch.
            staged: files that hold its new rows; none empties the batch.
            metadata: what the commit should record; ``input_version`` becomes the version of the app
                transaction that makes a rival replacement of the same batch fail.

        Returns:
            Version of the commit.

        Raises:
            ConcurrentReplacementError: the batch was changed since this snapshot was taken.
        """
        from deltalake import CommitProperties, Transaction
        from deltalake.exceptions import CommitFailedError, DeltaError
        from deltalake.transaction import AddAction, RemoveAction

        check_batch(batch)
        failure: Exception | None = None
        now = int(time.time() * 1000)
        values: dict[str, str | None] = {PARTITION: batch}
        actions: list[AddAction | RemoveAction] = [
            AddAction(file.path, file.size, values, now, True, file.statistics) for file in staged
        ]
        actions += [RemoveAction(file.path, True, now, file.size, values) for file in self.files(batch)]
        recorded = {
            **metadata,
            "batch": batch,
            "rows": sum(file.rows for file in staged),
            "commit_id": str(uuid.uuid4()),
        }
        transaction = Transaction(
            f"batch_assets/{self.table.name}/{batch}", int(metadata.get("input_version", self.version)), now
        )
        for _ in range(_COMMIT_ATTEMPTS):
            newest = self._newest()
            self._refuse_if_changed(batch, newest)
            failure = None
            try:
                newest._delta.create_write_transaction(
                    actions,
                    "append",
                    newest._delta.schema(),
                    [PARTITION],
                    commit_properties=CommitProperties(
                        custom_metadata={f"{_METADATA_PREFIX}{key}": value for key, value in recorded.items()},
                        app_transactions=[transaction],
                    ),
                )
            except (DeltaError, OSError) as error:
                # The answer may have been lost on its way back: only the log says whether the commit is there.
                failure = error
            for commit, _batches in self._newest()._log_since(self.version):
                if commit.metadata.get("commit_id") == recorded["commit_id"]:
                    return commit.version
            if not isinstance(failure, CommitFailedError):
                break
            # delta-rs takes the removal of any file since for a conflict; whether it was one of ours is seen above.
        raise failure or BatchAssetsError(
            f"the commit of batch {batch} to {self.table.name} is not in the table's log: look at {self.uri}"
        )

    def _refuse_if_changed(self, batch: str, newest: "Snapshot") -> None:
        """Refuse where the files of a batch are not those of this snapshot any more, for whatever reason."""
        if {file.path for file in newest.files(batch)} == {file.path for file in self.files(batch)}:
            return
        changes = newest._log_since(self.version)
        winner = next((commit for commit, batches in changes if batch in batches), None)
        by = f"run {winner.metadata['run_id']}" if winner and "run_id" in winner.metadata else "another writer"
        raise ConcurrentReplacementError(
            f"batch {batch} of {self.table.name} was changed in version {winner.version if winner else newest.version} "
            f"by {by} after this run had opened the table at version {self.version}; nothing was written: run it "
            "again if it is still stale"
        )

    def _newest(self) -> "Snapshot":
        from deltalake import DeltaTable

        delta = DeltaTable(self.uri, storage_options=dict(self.storage_options))
        return Snapshot(self.table, self.uri, self.storage_options, delta)

    def _log_since(self, version: int) -> Iterator[tuple[BatchCommit, set[str]]]:
        """Commits that are newer than a version, from the newest."""
        return takewhile(lambda entry: entry[0].version > version, self._log())

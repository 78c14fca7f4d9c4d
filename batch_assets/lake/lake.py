"""The lake: the tables of the contract, each a Delta table partitioned by batch, opened and replaced batch by batch."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from batch_assets.errors import BatchAssetsError
from batch_assets.lake.features import UnreadableTableError
from batch_assets.lake.log import Commit
from batch_assets.lake.names import check_batch, check_name, is_batch
from batch_assets.lake.snapshot import DataFile, Snapshot, Transaction, create_table, schema_difference
from batch_assets.lake.staging import StagedFile, StagingArea
from batch_assets.lake.tables import PARTITION, Table

# Commits are read back for what they say of a batch, so the log is kept for ten years.
_CONFIGURATION = {"delta.logRetentionDuration": "interval 3650 days"}


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
        """What sets the Delta table that is there apart from its contract, None if nothing does.

        Raises:
            BatchAssetsError: it can't be opened.
        """
        try:
            return _difference(table, Snapshot.open(self.table_uri(table), self.storage_options))
        except UnreadableTableError as error:
            return str(error)

    def open(self, table: Table, version: int | None = None) -> "BatchSnapshot":
        """Open a table at a version, by default the newest, and make it if it does not exist.

        Raises:
            BatchAssetsError: the table there is not the one this package knows.
        """
        uri = self.table_uri(table)
        if version is None:
            create_table(
                uri,
                self.storage_options,
                table.arrow_schema,
                [PARTITION],
                name=table.name,
                description=table.description,
                configuration=_CONFIGURATION,
            )
        snapshot = Snapshot.open(uri, self.storage_options, version)
        problem = _difference(table, snapshot)
        if problem is not None:
            raise BatchAssetsError(
                f"the table at {uri} is not {table.name} as this package knows it: {problem}; move it away, or "
                "set BATCH_ASSETS_CATALOG or BATCH_ASSETS_SCHEMA to other names"
            )
        return BatchSnapshot(table, snapshot)


def _difference(table: Table, snapshot: Snapshot) -> str | None:
    """What keeps this package from reading and writing a Delta table, None if nothing does."""
    if snapshot.partition_columns != [PARTITION]:
        return f"it is partitioned by {', '.join(snapshot.partition_columns) or 'nothing'}, not by {PARTITION}"
    return schema_difference(table.arrow_schema, snapshot.schema)


class BatchSnapshot:
    """A table of the contract as it was when it was opened; its partitions are batches."""

    def __init__(self, table: Table, delta: Snapshot) -> None:
        self.table = table
        self.delta = delta
        self.version = delta.version
        self.uri = delta.uri
        self.storage_options = delta.storage_options
        self._last: dict[str, Commit] = {}
        self._oldest = delta.version
        self._unread = delta.commits()

    @property
    def table_id(self) -> str:
        """What tells the table from another one that was made in its place."""
        return self.delta.table_id

    def take_over(self, earlier: "BatchSnapshot") -> bool:
        """Take over what an earlier snapshot knows of each batch, and read only the commits after it.

        Returns:
            False where that can't be done, because the table was made anew, or set back, or its log no longer has them,
            or one of them doesn't say which batches it changed.
        """
        if not self.delta.follows(earlier.delta):
            return False
        commits = list(self.delta.commits(after=earlier.version))
        if len(commits) != self.version - earlier.version or any(commit.unknown_partitions for commit in commits):
            return False
        for commit in commits:
            self._note(commit)
        for batch, commit in earlier._last.items():
            self._last.setdefault(batch, commit)
        self._oldest, self._unread = earlier._oldest, earlier._unread
        return True

    def know_all(self) -> None:
        """Read the log until the last commit of each batch is known."""
        for batch in self.batches():
            self.last_commit(batch)

    def batches(self) -> list[str]:
        """Keys of the batches that hold rows, sorted; values that can't name a batch are left out."""
        return sorted(batch for (batch,) in self.delta.partitions() if batch is not None and is_batch(batch))

    def in_order(self, batches: Sequence[str]) -> list[str]:
        """Batches in the order in which they were last changed here; those that are not here come first."""
        commits = {batch: self.last_commit(batch) for batch in batches}
        return sorted(batches, key=lambda batch: (-1 if (commit := commits[batch]) is None else commit.version, batch))

    def files(self, batch: str) -> list[DataFile]:
        """Data files of one batch."""
        return self.delta.files({PARTITION: batch})

    def rows(self, batch: str | None = None) -> int:
        """Rows of one batch, or of the table, from the statistics in the log."""
        return self.delta.rows(None if batch is None else {PARTITION: batch})

    def read(self, batch: str, columns: Sequence[str] | None = None) -> Iterator[pa.RecordBatch]:
        """Yield the rows of one batch, in the columns wanted, by default all."""
        return self.delta.read({PARTITION: batch}, columns or self.table.column_names)

    def last_commit(self, batch: str) -> Commit | None:
        """The last commit up to this version that changed the batch, read from the log; None if there is none.

        Commits that only rearrange files (``dataChange`` false) don't count.
        """
        while batch not in self._last:
            commit = next(self._unread, None)
            if commit is None:
                break
            self._oldest = commit.version
            self._note(commit)
            if commit.unknown_partitions:
                for one in {batch, *self.batches()}:
                    self._last.setdefault(one, commit)
        if batch not in self._last and self.files(batch):
            # Its commit has been cleaned up; the oldest version that is left is later than it.
            return Commit(self._oldest, {})
        return self._last.get(batch)

    def _note(self, commit: Commit) -> None:
        for (key,) in commit.changed:
            if key is not None:
                self._last.setdefault(key, commit)

    def is_ours(self, batch: str) -> bool:
        """Whether this package wrote all rows of a batch, or it has none."""
        commit = self.last_commit(batch)
        return (
            commit is None
            or not self.files(batch)
            or (commit.metadata.get("table") == self.table.name and commit.metadata["rows"] == self.rows(batch))
        )

    def staging_area(self, batch: str) -> StagingArea:
        """Where files of a batch are staged, in the columns of the contract."""
        area = StagingArea(self.uri, self.storage_options, self.table.arrow_schema, [PARTITION])
        return area.only({PARTITION: check_batch(batch)})

    @contextmanager
    def saying_if_overtaken(self, batch: str) -> Iterator[None]:
        """Within it, what fails after somebody else has replaced a batch fails because of that.

        The other one has removed what both had finished.

        Raises:
            ConcurrentCommitError: it has failed, and the batch was changed since this snapshot was taken.
        """
        try:
            yield
        except Exception as error:
            overtaken = self.delta.overtaken({PARTITION: batch})
            if overtaken is None:
                raise
            raise overtaken from error

    def replace(self, batch: str, staged: Sequence[StagedFile], metadata: Mapping[str, Any]) -> int:
        """Replace the rows of one batch by staged files in one commit, or change nothing.

        Args:
            batch: key of the batch.
            staged: files that hold its new rows; none empties the batch.
            metadata: what the commit should record; its ``input_version`` is the version of the app transaction.

        Returns:
            Version of the commit.

        Raises:
            ConcurrentCommitError: the batch was changed since this snapshot was taken.
        """
        check_batch(batch)
        return self.delta.replace(
            {PARTITION: batch},
            staged,
            {**metadata, "table": self.table.name, "batch": batch},
            Transaction(f"batch_assets/{self.table.name}/{batch}", int(metadata.get("input_version", self.version))),
        )

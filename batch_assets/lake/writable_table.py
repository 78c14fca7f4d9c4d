"""Commits to a Delta table, each based on the snapshot that its writer started from."""

import copy
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self
from urllib.parse import quote

import pyarrow as pa

from batch_assets.errors import BatchAssetsError
from batch_assets.lake.commit_log import METADATA_PREFIX, REARRANGED, Commit, Partition
from batch_assets.lake.features import refuse_unwritable
from batch_assets.lake.partition_values import describe, to_log
from batch_assets.lake.snapshot import DataFile, Snapshot, missing_columns, schema_difference, with_columns
from batch_assets.lake.staging import StagedFile
from batch_assets.lake.storage import file_system, remove_half_written, root_of

# Each failed attempt means that another writer committed, so this many in a row can't be chance.
_COMMIT_ATTEMPTS = 100

# Characters that delta-rs 1.6.6 leaves unescaped in a path; it percent-encodes all other special characters.
_PLAIN_IN_PATHS = "!$&'()+,:;=@/"


class ConcurrentCommitError(BatchAssetsError):
    """Another writer changed the partition after this run opened the table; nothing was written."""


@dataclass(frozen=True)
class Transaction:
    """Identifies a unit of work in the log: its application and its version.

    https://github.com/delta-io/delta/blob/master/PROTOCOL.md#transaction-identifiers
    """

    app_id: str
    version: int


class WritableTable(Snapshot):
    """A snapshot that commits are based on: if another writer touched what a commit replaces, the commit fails."""

    # Columns to add to the table before the first commit.
    _missing: Sequence[pa.Field] = ()

    def with_missing_columns(self, wanted: pa.Schema) -> Self:
        """Return this snapshot with nullable columns that the table lacks: they read as null.

        They are added to the table in one commit before its first change, so that reading never writes.
        """
        found = copy.copy(self)
        found._missing = missing_columns(wanted, self.schema)
        found.schema = with_columns(self.schema, found._missing)
        # Tables of ours store columns by their names.
        found.stored_schema = with_columns(self.stored_schema, found._missing)
        return found

    def check_writable(self) -> None:
        """Refuse a table with features this writer does not support.

        Raises:
            BatchAssetsError: the table uses constraints, generated columns, a change data feed or the like.
        """
        refuse_unwritable(self._delta, self.uri)

    def check_replaceable(self, partition: Mapping[str, Any]) -> None:
        """Check that a partition can be replaced, before any work is done for it.

        Raises:
            BatchAssetsError: the table is append-only, or delta-rs can't remove the partition's files.
        """
        if self.is_append_only:
            raise BatchAssetsError(f"can't replace rows in {self.uri}: the table is append-only (delta.appendOnly)")
        for file in self.files(partition):
            if quote(file.path, safe=_PLAIN_IN_PATHS) != file.log_path:
                raise BatchAssetsError(
                    f"delta-rs can't remove {file.log_path} from the table at {self.uri}, because it escapes the path "
                    "differently; rewrite that partition with the engine that wrote it"
                )

    def add_columns(self, columns: pa.Schema) -> None:
        """Add the columns, and the fields of structs, that the table does not have yet, in a separate commit.

        Raises:
            ConcurrentCommitError: another writer added one of them with another type.
        """
        from deltalake import Field
        from deltalake.exceptions import DeltaError

        failure: Exception | None = None
        for _ in range(_COMMIT_ATTEMPTS):
            newest = self._newest()
            missing = missing_columns(columns, newest.schema)
            after = with_columns(newest.schema, missing)
            for field in columns:
                if after.field(field.name).type != field.type:
                    raise ConcurrentCommitError(
                        f"another writer added a column {field.name} to the table at {self.uri}, of type "
                        f"{after.field(field.name).type}, not {field.type}: run it again"
                    )
            if not missing:
                return
            try:
                newest._delta.alter.add_columns([Field.from_arrow(field) for field in missing])
            except DeltaError as error:  # another writer may have changed the columns at the same time
                failure = error
        assert failure is not None
        raise failure

    def set_column_metadata(self, column: str, metadata: Mapping[str, str]) -> None:
        """Replace the metadata of a column, in a separate commit."""
        self._newest()._delta.alter.set_column_metadata(column, dict(metadata))

    def append(
        self, staged: Sequence[StagedFile], metadata: Mapping[str, Any], transaction: Transaction | None = None
    ) -> int:
        """Add staged files in one commit.

        Args:
            staged: the files; without files, nothing is committed.
            metadata: recorded in the commit.
            transaction: commit nothing if the log has this or a later version of the same application.

        Returns:
            Version of the commit, or of the table if nothing was committed.

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

        The files to remove are listed one by one from this snapshot, so no other file can be removed.

        Args:
            partition: partition column to value; empty for a table without partitions.
            staged: files with its new rows; no files empty the partition.
            metadata: recorded in the commit.
            transaction: recorded in the log.
            once: commit nothing if the log has this or a later version of the transaction.
            schema: new columns of a table without partitions; None keeps its columns.

        Returns:
            Version of the commit.

        Raises:
            ConcurrentCommitError: the partition was changed since this snapshot was taken.
            BatchAssetsError: the table can't be written, or a staged file is missing.
        """
        self.check_replaceable(partition)
        # With a new schema, delta-rs itself removes all files of the table, which has no partitions.
        removed = self.files(partition) if schema is None else []
        return self._commit(_Change(staged, removed, self.key(partition), metadata, transaction, once), schema)

    def rearrange(self, partition: Mapping[str, Any], staged: Sequence[StagedFile], gone: Sequence[DataFile]) -> int:
        """Replace files by staged files with the same rows, in one commit.

        Raises:
            ConcurrentCommitError: the partition was changed since this snapshot was taken.
            BatchAssetsError: the staged files have another number of rows.
        """
        self.check_replaceable(partition)
        rows, before = sum(file.rows for file in staged), self.count(gone)
        if rows != before:
            raise BatchAssetsError(
                f"{describe(partition)} had {before} rows, but {rows} were written; nothing was committed"
            )
        return self._commit(_Change(staged, gone, self.key(partition), {}, None, once=False, same_rows=True))

    def checkpoint(self) -> None:
        """Write a checkpoint of the newest version, so that readers don't have to read the whole log."""
        self._newest()._delta.create_checkpoint()

    def vacuum(self, retention_hours: int) -> list[str]:
        """Remove old files that no version within the retention needs, even if they were never committed.

        Returns:
            Paths of the removed files.
        """
        removed: list[str] = self._newest()._delta.vacuum(
            retention_hours, dry_run=False, enforce_retention_duration=False, full=True
        )
        return removed + remove_half_written(self.uri, time.time() - retention_hours * 3600)

    def _commit(self, change: "_Change", schema: pa.Schema | None = None) -> int:
        """Commit as the version right after one that has been checked, so that no other commit comes in between."""
        self._check_staged_files(change.staged)
        from deltalake import Schema

        if self._missing:
            self.check_writable()
            self.add_columns(pa.schema(self._missing))

        commit_id = str(uuid.uuid4())
        actions, properties = change.for_delta(self.partition_columns, commit_id)
        failure: Exception | None = None
        newest = self
        for attempt in range(_COMMIT_ATTEMPTS):
            seen, newest = newest.version, self._newest()
            new_commits = newest._commits_since(seen)
            # If the response to an attempt was lost, only the log shows that it was committed.
            ours = [commit for commit in new_commits if commit.metadata.get("commit_id") == commit_id]
            if ours:
                return ours[0].version
            if change.once and newest._has_transaction(change.transaction):
                return newest.version
            conflict = None if change.replaced is None else self._conflict(change.replaced, new_commits)
            if conflict is not None:
                raise conflict
            if attempt and newest.version == seen:
                break
            newest._check_files_still_fit(self)
            try:
                newest._delta.create_write_transaction(
                    actions,
                    "append" if schema is None else "overwrite",
                    newest._delta.schema() if schema is None else Schema.from_arrow(schema),
                    self.partition_columns,
                    commit_properties=properties,
                )
            except Exception as error:  # of any kind: the log shows whether the commit succeeded
                failure = error
        raise failure or BatchAssetsError(f"a commit to {self.uri} is not in its log: check {self.uri}/_delta_log")

    def _newest(self) -> Self:
        newest = type(self).open(self.uri, self.storage_options)
        if newest.table_id != self.table_id:
            raise ConcurrentCommitError(
                f"the table at {self.uri} was recreated after this run opened it at version {self.version}; "
                "nothing was written: run it again"
            )
        return newest

    def _commits_since(self, version: int) -> list[Commit]:
        """Return all commits after a version, newest first, or raise an error if the log lacks some."""
        newer = list(self.commits(after=version))
        if len(newer) != self.version - version:
            raise ConcurrentCommitError(
                f"the log of the table at {self.uri} no longer has the versions after {version}, so this run can't "
                "check what they changed; nothing was written: run it again"
            )
        return newer

    def _has_transaction(self, transaction: Transaction | None) -> bool:
        if transaction is None:
            return False
        version = self._delta.transaction_version(transaction.app_id)
        return version is not None and version >= transaction.version

    def superseded_by(self, partition: Mapping[str, Any]) -> ConcurrentCommitError | None:
        """Return the error that replacing a partition would raise now, None if it was not changed since."""
        return self._conflict(self.key(partition), self._newest()._commits_since(self.version))

    def _conflict(self, partition: Partition, new_commits: Sequence[Commit]) -> ConcurrentCommitError | None:
        winner = next((commit for commit in new_commits if commit.may_touch(partition)), None)
        if winner is None:
            return None
        which = describe(dict(zip(self.partition_columns, partition, strict=True)))
        return ConcurrentCommitError(
            f"{which} of the table at {self.uri} was changed in version {winner.version} by {winner.author} "
            f"after this run opened it at version {self.version}; nothing was written: run it again if it is "
            "still stale"
        )

    def _check_files_still_fit(self, older: Snapshot) -> None:
        """Refuse to commit files staged for an older version of the table if they don't fit it any more."""
        self.check_writable()
        problem = schema_difference(older.schema, self.schema)
        if problem is None and older.partition_columns != self.partition_columns:
            problem = f"it is partitioned by {', '.join(self.partition_columns) or 'nothing'}"
        if problem is not None:
            raise ConcurrentCommitError(
                f"the columns of the table at {self.uri} were changed after this run opened it at version "
                f"{older.version}: {problem}; nothing was written: run it again"
            )

    def _check_staged_files(self, staged: Sequence[StagedFile]) -> None:
        if not staged:
            return
        found = file_system(self.uri, self.storage_options).get_file_info([file.path for file in staged])
        for file, info in zip(staged, found, strict=True):
            if info.size != file.size:
                raise BatchAssetsError(
                    f"{file.path}, which this run wrote, is missing or was changed; nothing was committed: run it "
                    "again, and vacuum only files that are older than the longest run"
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
    """Create an empty table if it does not exist yet.

    Args:
        uri: a local folder, or a URI that delta-rs understands.
        storage_options: as in delta-rs.
        schema: columns of the table.
        partition_columns: names of its partition columns.
        name: display name of the table.
        description: description of the table.
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
            # With retries, a second writer would write version 1, which gives the table another id.
            commit_properties=CommitProperties(max_commit_retries=0),
        )
    except DeltaError:
        if not DeltaTable.is_deltatable(uri, options):  # otherwise another writer created it first
            raise


@dataclass(frozen=True)
class _Change:
    """The files that a commit adds and removes; no other writer may have touched the partition ``replaced``."""

    staged: Sequence[StagedFile]
    removed: Sequence[DataFile]
    replaced: Partition | None
    metadata: Mapping[str, Any]
    transaction: Transaction | None
    once: bool
    same_rows: bool = False

    def for_delta(self, partition_columns: Sequence[str], commit_id: str) -> tuple[list[Any], Any]:
        """Return the actions and commit properties for delta-rs."""
        from deltalake import CommitProperties
        from deltalake import Transaction as DeltaTransaction
        from deltalake.transaction import AddAction, RemoveAction

        now = int(time.time() * 1000)

        def log_values(partition: Partition) -> dict[str, str | None]:
            return {name: to_log(value) for name, value in zip(partition_columns, partition, strict=True)}

        actions: list[Any] = [
            AddAction(file.path, file.size, file.partition_values, now, not self.same_rows, file.statistics)
            for file in self.staged
        ]
        # Removals claim to change data even if the rows stay the same: when delta-rs looks for conflicts it ignores
        # other removals, so a delta-rs compaction that started earlier would add the same rows again.
        actions += [RemoveAction(file.path, True, now, file.size, log_values(file.partition)) for file in self.removed]
        recorded = {**self.metadata, "rows": sum(file.rows for file in self.staged), "commit_id": commit_id}
        if self.same_rows:
            recorded[REARRANGED] = True
        elif self.replaced is not None:
            recorded["partition"] = log_values(self.replaced)
        transactions = [] if self.transaction is None else [self.transaction]
        properties = CommitProperties(
            custom_metadata={f"{METADATA_PREFIX}{key}": value for key, value in recorded.items()},
            # Without retries, delta-rs writes the version after the given one, or fails.
            max_commit_retries=0,
            app_transactions=[DeltaTransaction(t.app_id, t.version, now) for t in transactions],
        )
        return actions, properties

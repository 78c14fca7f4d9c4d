"""A table that does not exist yet, for readers that must not create it."""

from collections.abc import Iterator, Sequence
from functools import cached_property

import pyarrow as pa

from batch_assets.lake.commit_log import Commit, Partition
from batch_assets.lake.snapshot import DataFile, Snapshot
from batch_assets.lake.writable_table import WritableTable


class MissingTable(WritableTable):
    """An empty snapshot: no rows, no files, no commits.

    Args:
        uri: where the table would be.
        schema: its columns.
        partition_columns: names of its partition columns.
    """

    def __init__(self, uri: str, schema: pa.Schema, partition_columns: list[str]) -> None:
        self.uri = uri
        self.storage_options = {}
        self.version = -1
        self.schema = self.stored_schema = schema
        self.partition_columns = partition_columns

    @cached_property
    def _files(self) -> dict[Partition, list[DataFile]]:
        return {}

    @property
    def table_id(self) -> str:
        """An empty string, because a table gets its id when it is created."""
        return ""

    def add_actions(self) -> pa.Table:
        """Return an empty table."""
        return pa.table({})

    def commits(self, after: int = -1) -> Iterator[Commit]:
        """Yield nothing."""
        return iter(())

    def follows(self, earlier: Snapshot) -> bool:
        """Return false: the table has no history."""
        return False

    def read_files(
        self, files: Sequence[DataFile], columns: Sequence[str] | None = None, *, with_deleted: bool = False
    ) -> Iterator[pa.RecordBatch]:
        """Yield nothing."""
        return iter(())

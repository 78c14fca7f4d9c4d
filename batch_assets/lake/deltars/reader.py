"""Plan which parts of which files a query reads, and read them on the executors."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

import pyarrow as pa
from pyspark.sql.datasource import DataSourceReader, Filter, InputPartition
from pyspark.sql.pandas.types import to_arrow_schema
from pyspark.sql.types import StructType

from batch_assets.lake.data_file import read_data_file
from batch_assets.lake.deltars.pruning import prune
from batch_assets.lake.snapshot import Snapshot
from batch_assets.lake.storage import file_system

# A task reads about this much; as in Spark, a file counts as 4 MiB more, for the cost of opening it.
_TASK_BYTES = 32 * 1024 * 1024
_OPEN_COST = 4 * 1024 * 1024


@dataclass(frozen=True)
class FilePart:
    """Bytes of a data file, and the values of its partition columns."""

    path: str
    partition: dict[str, Any]
    start: int
    length: int


class Task(InputPartition):
    """Parts of files that one task reads."""

    def __init__(self, parts: Sequence[FilePart]) -> None:
        self.parts = tuple(parts)


class DeltarsReader(DataSourceReader):
    """Leaves out files that can't hold what the filters ask for, and spreads the others over tasks."""

    def __init__(self, table: Snapshot, schema: StructType) -> None:
        self._uri = table.uri
        self._storage_options = table.storage_options
        self._schema = to_arrow_schema(schema, timezone="UTC")
        self._table = table
        self._actions = table.add_actions(flatten=True)

    def __getstate__(self) -> dict[str, Any]:
        # What only the plan needs stays on the driver.
        return {key: value for key, value in self.__dict__.items() if key not in ("_table", "_actions")}

    def pushFilters(self, filters: list[Filter]) -> Iterable[Filter]:  # noqa: N802 - Spark's name
        """Leave out files by every filter; Spark still applies each of them to the rows."""
        for condition in filters:
            self._actions = prune(self._actions, self._table.schema, self._table.partition_columns, condition)
            yield condition

    def partitions(self) -> Sequence[InputPartition]:
        """Tasks of about the same number of bytes."""
        parts: list[FilePart] = []
        for action in self._actions.to_pylist():
            values = {name: action[f"partition.{name}"] for name in self._table.partition_columns}
            size = action["size_bytes"]
            for start in range(0, max(size, 1), _TASK_BYTES):
                parts.append(FilePart(unquote(action["path"]), values, start, min(_TASK_BYTES, size - start)))
        tasks: list[list[FilePart]] = [[]]
        room = _TASK_BYTES
        for part in sorted(parts, key=lambda part: part.length, reverse=True):
            if tasks[-1] and part.length > room:
                tasks.append([])
                room = _TASK_BYTES
            tasks[-1].append(part)
            room -= part.length + _OPEN_COST
        return [Task(parts) for parts in tasks]

    def read(self, partition: InputPartition) -> Iterator[pa.RecordBatch]:
        """Rows of the parts of one task."""
        assert isinstance(partition, Task)
        files = file_system(self._uri, self._storage_options)
        for part in partition.parts:
            yield from read_data_file(files, part.path, self._schema, part.partition, part.start, part.length)

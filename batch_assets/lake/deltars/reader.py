"""Plan which parts of which files a query reads, and read them on the executors."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
from pyspark.sql.datasource import DataSourceReader, Filter, InputPartition
from pyspark.sql.pandas.types import to_arrow_schema
from pyspark.sql.types import StructType

from batch_assets.lake.data_file import read_data_file
from batch_assets.lake.deltars.conditions import simple_conditions
from batch_assets.lake.deltars.pruning import prune
from batch_assets.lake.snapshot import Snapshot, relative_path
from batch_assets.lake.storage import file_system

# A task reads about this much; as in Spark, a file counts as 4 MiB more, for the cost of opening it.
_TASK_BYTES = 32 * 1024 * 1024
_OPEN_COST = 4 * 1024 * 1024


@dataclass(frozen=True)
class FilePart:
    """Bytes of a data file, to its end where ``length`` is None, and the values of its partition columns."""

    path: str
    partition: dict[str, Any]
    start: int
    length: int | None


class Task(InputPartition):
    """Parts of files that one task reads."""

    def __init__(self, parts: Sequence[FilePart]) -> None:
        self.parts = tuple(parts)


class DeltarsReader(DataSourceReader):
    """Leaves out files that can't hold what is asked for, and spreads the others over tasks.

    It takes no filters from Spark: Spark 4.2 keeps what was planned for one filter of a data frame, and reads by it for
    every other query of that data frame, too (https://github.com/apache/spark, PythonScanBuilder.scala, mended since).
    """

    def __init__(self, table: Snapshot, schema: StructType, files_where: str | None = None) -> None:
        self._uri = table.uri
        self._storage_options = table.storage_options
        self._schema = to_arrow_schema(schema, timezone="UTC")
        self._tasks = _tasks(table, [] if files_where is None else simple_conditions(files_where))

    def __getstate__(self) -> dict[str, Any]:
        # Every task gets its own part of the plan from Spark; the whole of it stays on the driver.
        return {**self.__dict__, "_tasks": []}

    def partitions(self) -> Sequence[InputPartition]:
        """Tasks of about the same number of bytes."""
        return self._tasks

    def read(self, partition: InputPartition) -> Iterator[pa.RecordBatch]:
        """Rows of the parts of one task."""
        assert isinstance(partition, Task)
        files = file_system(self._uri, self._storage_options)
        for part in partition.parts:
            yield from read_data_file(files, part.path, self._schema, part.partition, part.start, part.length)


def _tasks(table: Snapshot, conditions: Sequence[Filter]) -> list[Task]:
    actions = table.add_actions()
    for condition in conditions:
        actions = prune(actions, table.schema, table.partition_columns, condition)
    values = [f"partition.{name}" for name in table.partition_columns]
    parts: list[tuple[int, FilePart]] = []  # with their bytes, as far as the log says
    for action in actions.select(["path", "size_bytes", *values]).to_pylist():
        partition = {name: action[f"partition.{name}"] for name in table.partition_columns}
        path, size = relative_path(action["path"]), action["size_bytes"]
        *starts, last = range(0, max(size, 1), _TASK_BYTES)
        parts += [(_TASK_BYTES, FilePart(path, partition, start, _TASK_BYTES)) for start in starts]
        # The last part goes on to the end of the file, wherever that is.
        parts.append((size - last, FilePart(path, partition, last, None)))
    tasks: list[list[FilePart]] = [[]]
    room = _TASK_BYTES
    for size, part in sorted(parts, key=lambda sized: sized[0], reverse=True):
        if tasks[-1] and size > room:
            tasks.append([])
            room = _TASK_BYTES
        tasks[-1].append(part)
        room -= size + _OPEN_COST
    return [Task(parts) for parts in tasks]

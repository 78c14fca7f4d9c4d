"""Plan which file parts a query reads, and read them on the executors."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
from pyspark.sql.datasource import DataSourceReader, InputPartition
from pyspark.sql.pandas.types import to_arrow_schema
from pyspark.sql.types import StructType

from batch_assets.lake.data_file import read_data_file
from batch_assets.lake.deletion_vectors import DeletionVector
from batch_assets.lake.snapshot import DataFile, Snapshot
from batch_assets.lake.storage import file_system

# Target size of a task. As in Spark, opening a file counts as 4 MiB.
_TASK_BYTES = 32 * 1024 * 1024
_OPEN_COST = 4 * 1024 * 1024


@dataclass(frozen=True)
class FilePart:
    """A byte range of a data file, with the file's partition values and the place of its deletion vector.

    Without ``length``, it goes to the end of the file.
    """

    path: str
    partition: dict[str, Any]
    deletion_vector: DeletionVector | None
    start: int
    length: int | None


class Task(InputPartition):
    """The file parts that one task reads."""

    def __init__(self, parts: Sequence[FilePart]) -> None:
        self.parts = tuple(parts)


class DeltarsReader(DataSourceReader):
    """Spreads the files of a table, or of one of its partitions, over tasks.

    Filter pushdown is not supported: Spark 4.2 applies the plan of one filter to every other query of the same data
    frame (https://github.com/apache/spark, PythonScanBuilder.scala; fixed since).
    """

    def __init__(
        self,
        table: Snapshot,
        schema: StructType,
        partition: Mapping[str, Any] | None = None,
        files: Sequence[DataFile] | None = None,
    ) -> None:
        self._uri = table.uri
        self._storage_options = table.storage_options
        self._schema = to_arrow_schema(schema, timezone="UTC")
        self._stored = table.stored_as(self._schema.names)
        self._tasks = _tasks(table, table.files(partition) if files is None else files)

    def __getstate__(self) -> dict[str, Any]:
        # Spark sends each task its own part of the plan; the whole plan stays on the driver.
        return {**self.__dict__, "_tasks": []}

    def partitions(self) -> Sequence[InputPartition]:
        """Return tasks of about the same size."""
        return self._tasks

    def read(self, partition: InputPartition) -> Iterator[pa.RecordBatch]:
        """Yield the rows of one task's file parts."""
        assert isinstance(partition, Task)
        files = file_system(self._uri, self._storage_options)
        for part in partition.parts:
            vector = part.deletion_vector
            deleted = None if vector is None else vector.deleted(self._uri, self._storage_options)
            yield from read_data_file(
                files, part.path, self._schema, self._stored, part.partition, deleted, part.start, part.length
            )


def _tasks(table: Snapshot, files: Sequence[DataFile]) -> list[Task]:
    parts: list[tuple[int, FilePart]] = []  # with their sizes, according to the log
    for file in files:
        values = dict(zip(table.partition_columns, file.partition, strict=True))
        vector = table.deletion_vectors.get(file.log_path)
        *starts, last = range(0, max(file.size, 1), _TASK_BYTES)
        parts += [(_TASK_BYTES, FilePart(file.path, values, vector, start, _TASK_BYTES)) for start in starts]
        # The last part goes to the end of the file, even if the log has the wrong size.
        parts.append((file.size - last, FilePart(file.path, values, vector, last, None)))
    tasks: list[list[FilePart]] = [[]]
    room = _TASK_BYTES
    for size, part in sorted(parts, key=lambda sized: sized[0], reverse=True):
        if tasks[-1] and size > room:
            tasks.append([])
            room = _TASK_BYTES
        tasks[-1].append(part)
        room -= size + _OPEN_COST
    return [Task(parts) for parts in tasks]

"""A random history of a Delta table, written by delta-rs and by Polars, and the rows that it must end with."""

import random
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pyarrow as pa
from deltalake import DeltaTable, write_deltalake

DAYS = ("2026-01-01", "2026-01-02", "a day/é", None)


class TableHistory:
    """A table of tickets, batched by the column ``day``.

    Args:
        uri: folder of the table.
        seed: what the history depends on.
        partition_by: its partition columns.
    """

    def __init__(self, uri: str, seed: int, partition_by: list[str] | None) -> None:
        self.uri = uri
        self.random = random.Random(seed)
        self.steps: list[str] = []
        self._next_id = 0
        write_deltalake(uri, self._rows(3), partition_by=partition_by)

    def _rows(self, count: int, day: object = ...) -> pa.Table:
        rows = []
        for _ in range(count):
            self._next_id += 1
            chosen = self.random.choice(DAYS) if day is ... else day
            rows.append({"ticket": self._next_id, "text": f"text {self._next_id}", "day": chosen})
        return pa.Table.from_pylist(
            rows, schema=pa.schema([("ticket", pa.int64()), ("text", pa.string()), ("day", pa.string())])
        )

    @property
    def _table(self) -> DeltaTable:
        return DeltaTable(self.uri)

    def _like_table(self, rows: pa.Table) -> pa.Table:
        """Rows with null in the columns that were added to the table."""
        schema = pa.schema(self._table.schema().to_arrow())
        for name in schema.names[len(rows.schema.names) :]:
            rows = rows.append_column(name, pa.nulls(rows.num_rows, schema.field(name).type))
        return rows

    def append(self) -> None:
        write_deltalake(self.uri, self._like_table(self._rows(self.random.randint(1, 3))), mode="append")

    def append_with_polars(self) -> None:
        pl.DataFrame(self._like_table(self._rows(2))).write_delta(self.uri, mode="append")

    def update(self) -> None:
        self._table.update({"text": "concat(text, '!')"}, predicate=f"ticket % 3 = {self.random.randrange(3)}")

    def update_a_column_that_is_not_mapped(self) -> None:
        self.add_column()
        self._table.update({"priority": "ticket"}, predicate=f"ticket % 3 = {self.random.randrange(3)}")

    def delete(self) -> None:
        self._table.delete(f"ticket % 5 = {self.random.randrange(5)}")

    def delete_a_day(self) -> None:
        self._table.delete(f"day = '{self.random.choice(DAYS[:2])}'")

    def move_to_another_day(self) -> None:
        self._table.update(
            {"day": f"'{self.random.choice(DAYS[:3])}'"}, predicate=f"ticket % 4 = {self.random.randrange(4)}"
        )

    def overwrite(self) -> None:
        write_deltalake(self.uri, self._like_table(self._rows(4)), mode="overwrite")

    def compact(self) -> None:
        self._table.optimize.compact()

    def vacuum(self) -> None:
        self._table.vacuum(0, dry_run=False, enforce_retention_duration=False, full=True)

    def add_column(self) -> None:
        if "priority" not in pa.schema(self._table.schema().to_arrow()).names:
            rows = self._rows(1).append_column("priority", pa.array([1], pa.int64()))
            write_deltalake(self.uri, rows, mode="append", schema_mode="merge")

    def clean_the_log(self) -> None:
        self._table.create_checkpoint()
        for entry in sorted(Path(self.uri, "_delta_log").glob("*.json"))[:-1]:
            entry.unlink()

    def restore(self) -> None:
        table = self._table
        if Path(self.uri, "_delta_log", f"{table.version() - 1:020d}.json").exists():
            table.restore(table.version() - 1, ignore_missing_files=True)

    def step(self) -> None:
        """Let a writer do something."""
        operations: dict[str, Callable[[], None]] = {
            name: getattr(self, name)
            for name, value in vars(TableHistory).items()
            if callable(value) and not name.startswith("_") and name not in {"step", "rows"}
        }
        name = self.random.choice(sorted(operations))
        self.steps.append(name)
        operations[name]()

    def rows(self) -> set[tuple[object, ...]]:
        """What the table has now: id, text and day of each row."""
        found = pl.read_delta(self.uri).to_dicts()
        return {(row["ticket"], row["text"], row["day"]) for row in found}

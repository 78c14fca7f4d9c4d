"""Tables of other writers as documents: their batches, their rows, and what their commits make stale."""

from collections.abc import Sequence
from datetime import UTC, date, datetime
from pathlib import Path

import polars as pl
import pyarrow as pa
import pytest
from deltalake import DeltaTable, write_deltalake

from batch_assets.errors import BatchAssetsError
from batch_assets.lake.contracts import PipelineTables
from batch_assets.lake.lake import BatchSnapshot, Lake
from batch_assets.names import is_batch
from batch_assets.settings import PREFIX, Settings, load_settings
from batch_assets.sources.batch_keys import EMPTY_KEY, NULL_KEY, BatchColumn, key_of
from batch_assets.sources.documents import find_documents, newest_documents, open_documents
from batch_assets.staleness import input_metadata, stale_batches
from batch_assets.pipelines.pipeline import settings_of
from batch_assets.tasks.output_tables import tables_of


class InPlace:
    """A pipeline over a table that other writers fill; scoring is recorded without a model."""

    def __init__(self, folder: Path, **source: object) -> None:
        self.uri = str(folder / "tickets")
        columns = {"id": "ticket_id", "text": "{subject}: {body}", "reference": "category", "carry": ["opened_on"]}
        attributes = {
            "name": "tickets",
            "source": {"url": self.uri, **source},
            "columns": columns,
            "task": {"kind": "classification", "labels": ["a", "b"]},
        }
        self.settings = settings_of(attributes, load_settings(), folder)
        self.lake = Lake.of(self.settings)

    @property
    def tables(self) -> PipelineTables:
        return tables_of(self.settings)

    def documents(self) -> BatchSnapshot:
        return open_documents(self.lake, self.settings, self.tables)

    def stale(self) -> list[str]:
        return stale_batches(self.documents(), self.lake.open(self.tables.scored), busy=set())

    def score(self) -> list[str]:
        """Commit the answers to all stale batches, as a run would."""
        stale = self.stale()
        for batch in stale:
            documents = self.documents()
            output = self.lake.open(self.tables.scored)
            rows = [row for part in documents.read(batch) for row in part.to_pylist()]
            given = [{**row, "label": "a"} for row in rows]
            from batch_assets.lake.staging import TableWriter

            writer = TableWriter(output.staging_area(batch))
            if given:
                writer.write(pa.Table.from_pylist(given, schema=output.table.file_schema))
            output.replace(batch, writer.close(), input_metadata(documents, batch))
        return stale

    def rows(self, batch: str) -> list[dict]:
        return [row for part in self.documents().read(batch) for row in part.to_pylist()]


def tickets(*ids: int, opened_on: str | None = "2026-01-01", **more: object) -> pa.Table:
    schema = pa.schema(
        [
            ("ticket_id", pa.int64()),
            ("subject", pa.string()),
            ("body", pa.string()),
            ("category", pa.string()),
            ("opened_on", pa.string()),
        ]
    )
    rows = [
        {"ticket_id": n, "subject": f"s{n}", "body": f"b{n}", "category": "a", "opened_on": opened_on, **more}
        for n in ids
    ]
    return pa.Table.from_pylist(rows, schema=schema)


@pytest.fixture
def deployment(tmp_path, monkeypatch):
    monkeypatch.setenv(f"{PREFIX}HOME", str(tmp_path / "home"))
    return tmp_path


@pytest.fixture(params=[None, ["opened_on"]], ids=["by a plain column", "by a partition column"])
def by_day(deployment, request) -> InPlace:
    found = InPlace(deployment, batch_by="opened_on")
    for day, ids in {"2026-01-01": (1, 2), "2026-01-02": (3, 4)}.items():
        write_deltalake(found.uri, tickets(*ids, opened_on=day), mode="append", partition_by=request.param)
    return found


def test_values_of_a_column_become_batches_with_mapped_columns(by_day):
    documents = by_day.documents()
    assert documents.batches() == ["2026-01-01", "2026-01-02"]
    assert [documents.rows(batch) for batch in documents.batches()] == [2, 2]
    assert by_day.rows("2026-01-02") == [
        {"id": n, "document": f"s{n}: b{n}", "reference": "a", "opened_on": "2026-01-02", "batch": "2026-01-02"}
        for n in (3, 4)
    ]


def test_each_change_of_the_source_is_scored_once_and_rearranged_rows_are_not(by_day):
    assert by_day.score() == ["2026-01-01", "2026-01-02"]
    assert by_day.stale() == []
    pl.DataFrame(tickets(5, opened_on="2026-01-03")).write_delta(by_day.uri, mode="append")
    assert by_day.score() == ["2026-01-03"]
    table = DeltaTable(by_day.uri)
    table.update({"body": "'new'"}, predicate="ticket_id = 1")
    assert by_day.score() == ["2026-01-01"]
    DeltaTable(by_day.uri).optimize.compact()
    assert by_day.stale() == []
    DeltaTable(by_day.uri).delete("opened_on = '2026-01-02'")
    assert "2026-01-02" in by_day.score()
    assert by_day.lake.open(by_day.tables.scored).batches() == ["2026-01-01", "2026-01-03"]
    assert by_day.stale() == []

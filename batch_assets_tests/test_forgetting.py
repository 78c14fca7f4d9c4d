"""Forgetting a document, on real tables filled by a landed file and by another writer."""

import json
from datetime import UTC, datetime

import pyarrow as pa
import pytest
from deltalake import DeltaTable, write_deltalake

from batch_assets.errors import BatchAssetsError
from batch_assets.lake.contracts import (
    AI_QUERY_INFERENCE,
    BATCH_INFERENCE,
    DEFAULT_TABLES,
    PROD_DATA,
    PROD_DATA_REJECTED,
    SUMMARY_QUALITY,
    TABLES,
)
from batch_assets.lake.lake import Lake
from batch_assets.lake.staging import stage
from batch_assets.models.tracking import connect
from batch_assets.operations import forget as forgetting
from batch_assets.operations.forget import find, forget, out_of_reach
from batch_assets.quality.report import Facts, page
from batch_assets.scoring.completions import CompletionStore
from batch_assets.sources.files import FileDataset
from batch_assets.sources.landing import land_batch
from batch_assets.staleness import input_metadata
from batch_assets.tasks.summarization import Summarization
from batch_assets_tests.conftest import settings_for, write_json_lines

SECRET = "the text of somebody"
RECORDS = [
    {"id": "1", "document": "whales"},
    {"id": "gone", "document": SECRET},
    {"id": "3", "document": "seas"},
    {"id": "gone", "document": f"{SECRET} again"},
]


def report_of(document_id: str) -> str:
    one = {"batch": "a", "id": document_id, "score": 1.0, "document": "d", "reference": "s", "answer": "g"}
    facts = Facts(
        "m", Summarization(), Summarization.words, [], {}, {}, [], {}, "rouge1", {}, None, None, [], {}, {}, {}
    )
    return page(facts, {}, {"Farthest": [one]}, datetime.now(UTC))


class Deployment:
    def __init__(self, home, tmp_path) -> None:
        self.settings = settings_for(home)
        self.lake = Lake(self.settings.lake_uri)
        self.source = write_json_lines(tmp_path / "a.jsonl", RECORDS)
        self.land()
        documents = self.lake.open(PROD_DATA)
        summaries = [{"id": name, "document": "d", "generated_summary": f"of {name}"} for name in ("1", "gone", "3")]
        self.write(BATCH_INFERENCE, summaries, {**input_metadata(documents, "a"), "model_version": 1})
        answers = [{"id": name, "generated_summary": f"of {name}"} for name in ("1", "gone")]
        self.write(AI_QUERY_INFERENCE, answers, input_metadata(documents, "a"))
        examples = json.dumps([{"id": "gone", "rouge1": 1.0}, {"id": "1", "rouge1": 0.5}])
        row = {"table_name": BATCH_INFERENCE.name, "model_name": "m", "best": examples, "worst": examples}
        self.write(SUMMARY_QUALITY, [row], {})
        reports = home / "reports"
        reports.mkdir(parents=True)
        for name, shown in {"quality_report": "gone", "quality_report-1": "1", "quality_report-2": "o'<b>\"&"}.items():
            (reports / f"{name}.html").write_text(report_of(shown))

    def land(self):
        return land_batch(FileDataset(str(self.source), 10), self.lake, DEFAULT_TABLES, "a", "run")

    def write(self, table, rows, metadata) -> None:
        snapshot = self.lake.open(table)
        written = [pa.Table.from_pylist(rows, schema=table.file_schema)]
        snapshot.replace("a", stage(written, snapshot.staging_area("a")), metadata)

    def rows(self, table, batch="a"):
        return [row for part in self.lake.open(table).read(batch) for row in part.to_pylist()]

    def forget(self, name: str):
        return forget(self.lake, self.settings, connect(self.settings), name, "forget")


@pytest.fixture
def deployment(home, tmp_path):
    return Deployment(home, tmp_path)


def test_a_document_is_removed_from_every_table_and_report_and_the_others_stay(deployment):
    store = CompletionStore.of(deployment.lake, BATCH_INFERENCE, "a", "abc")
    folder = deployment.settings.home / "lake" / store.folder
    folder.mkdir(parents=True)
    (folder / "x-1.parquet").write_text("unfinished")
    asked = deployment.settings.home / "lake" / "_completions" / "_statements" / "abc" / "x-1.parquet"
    asked.parent.mkdir(parents=True)
    asked.write_text("of a statement")
    found = deployment.forget("gone")
    holding = (PROD_DATA, PROD_DATA_REJECTED, BATCH_INFERENCE, AI_QUERY_INFERENCE)
    assert found.batches == {table.name: ["a"] for table in holding}
    assert [row["id"] for row in deployment.rows(PROD_DATA)] == ["1", "3"]
    assert [row["id"] for row in deployment.rows(BATCH_INFERENCE)] == ["1", "3"]
    assert [row["id"] for row in deployment.rows(AI_QUERY_INFERENCE)] == ["1"]
    for table in TABLES:
        assert SECRET not in str(deployment.rows(table))
        assert "gone" not in str(deployment.rows(table))
    assert not list(folder.iterdir())
    assert not asked.exists()
    left = sorted(page.name for page in (deployment.settings.home / "reports").iterdir())
    assert left == ["quality_report-1.html", "quality_report-2.html"]
    commit = deployment.lake.open(BATCH_INFERENCE).last_commit("a")
    assert commit.metadata["model_version"] == 1
    assert find(deployment.lake, deployment.settings, "gone").all_batches == []
    places = " ".join(out_of_reach(deployment.lake, deployment.settings, found))
    assert "a.jsonl" in places
    assert "BATCH_ASSETS_VACUUM_HOURS" in places
    assert "landing/.taken" in places
    assert "event log" in places


def test_a_forgotten_document_is_not_landed_again_and_every_record_stays_accounted_for(deployment):
    deployment.forget("gone")
    for _ in range(2):
        assert deployment.lake.open(PROD_DATA).rows("a") + deployment.lake.open(PROD_DATA_REJECTED).rows("a") == 4
        assert SECRET not in str(deployment.rows(PROD_DATA_REJECTED))
        deployment.land()
    assert not deployment.land().changed
    assert {row["reason"] for row in deployment.rows(PROD_DATA_REJECTED)} == {"forgotten on request"}


@pytest.mark.parametrize(("name", "count"), [("o'<b>\"&", 2), ("b", 3), ("1", 2)])
def test_only_the_reports_that_show_the_document_are_removed(deployment, name, count):
    deployment.forget(name)
    assert len(list((deployment.settings.home / "reports").iterdir())) == count


def test_rejected_records_are_forgotten_too_and_kept_out(deployment):
    cut = json.dumps({"id": "lost", "document": SECRET * 1000})[:-1]
    rejected = [{"id": "lost", "document": 5, "note": SECRET}, {"id": "kept", "document": 6, "note": "not lost"}]
    deployment.source.write_text("\n".join([*map(json.dumps, [*RECORDS[:1], *rejected]), cut]))
    deployment.land()
    for _ in range(2):
        assert len(deployment.rows(PROD_DATA_REJECTED)) == 3
        found = deployment.forget("lost")
        assert SECRET not in str(deployment.rows(PROD_DATA_REJECTED))
        assert "not lost" in str(deployment.rows(PROD_DATA_REJECTED))
        deployment.land()
    assert found.batches == {}


def test_another_call_finishes_an_interrupted_forgetting(deployment, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(forgetting, "_remove_from_documents", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            deployment.forget("gone")
    assert deployment.forget("gone").batches == {table.name: ["a"] for table in (PROD_DATA, PROD_DATA_REJECTED)}
    for table in TABLES:
        assert "gone" not in str(deployment.rows(table))


def test_an_empty_id_is_refused(deployment):
    with pytest.raises(BatchAssetsError, match="id of the document is empty"):
        deployment.forget("")
    assert len(deployment.rows(PROD_DATA)) == 3


def test_forgetting_leaves_a_batch_assigned_to_its_original_writer(deployment):
    when = pa.array([datetime.now(UTC)] * 2, pa.timestamp("us", tz="UTC"))
    theirs = {"id": ["gone", "y"], "document": [SECRET, "theirs"], "summary": pa.array([None] * 2, pa.string())}
    theirs |= {"batch": ["b"] * 2, "source": ["theirs"] * 2, "landed_at": when}
    write_deltalake(deployment.lake.table_uri(PROD_DATA), pa.table(theirs), mode="append")
    assert deployment.forget("gone").batches[PROD_DATA.name] == ["a", "b"]
    assert [row["id"] for row in deployment.rows(PROD_DATA, "b")] == ["y"]
    assert not deployment.lake.open(PROD_DATA).is_written_by_us("b")
    assert deployment.lake.open(PROD_DATA).is_written_by_us("a")


def test_forgetting_an_unknown_id_changes_no_table_and_keeps_it_out(deployment):
    versions = {table.name: DeltaTable(deployment.lake.table_uri(table)).version() for table in TABLES}
    assert deployment.forget("5' OR '1'='1/../x").all_batches == []
    assert versions == {table.name: DeltaTable(deployment.lake.table_uri(table)).version() for table in TABLES}
    write_json_lines(deployment.source, [*RECORDS, {"id": "5' OR '1'='1/../x", "document": SECRET}])
    assert deployment.land().rejected == 2

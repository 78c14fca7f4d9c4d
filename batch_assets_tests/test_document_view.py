"""Tables of other writers as documents: their batches, their rows, and what their commits make stale."""

import shutil
from datetime import UTC, date, datetime
from pathlib import Path

import polars as pl
import pyarrow as pa
import pytest
from deltalake import DeltaTable, write_deltalake

from batch_assets.errors import BatchAssetsError
from batch_assets.lake.contracts import PipelineTables
from batch_assets.lake.deltars import read_batch
from batch_assets.lake.lake import BatchSnapshot, Lake
from batch_assets.lake.staging import TableWriter
from batch_assets.names import is_batch
from batch_assets.operations.rebase import rebase
from batch_assets.pipelines.pipeline import settings_of
from batch_assets.settings import PREFIX, load_settings
from batch_assets.sources import batching
from batch_assets.sources.batch_keys import EMPTY_KEY, NULL_KEY, key_of
from batch_assets.sources.batching import _remembered_commits
from batch_assets.sources.documents import find_documents, lost_rows, newest_documents, open_documents
from batch_assets.staleness import input_metadata, stale_batches
from batch_assets.tasks.output_tables import tables_of
from batch_assets_tests.foreign_tables import delete_rows
from batch_assets_tests.table_history import TableHistory

COLUMNS = {"id": "ticket_id", "text": "{subject}: {body}", "reference": "category", "carry": ["opened_on"]}


class InPlace:
    """A pipeline over a table that other writers fill; scoring is recorded without a model."""

    def __init__(self, folder: Path, columns: dict = COLUMNS, name: str = "tickets", **source: object) -> None:
        self.uri = str(folder / "tickets")
        attributes = {
            "name": name,
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
            writer = TableWriter(output.staging_area(batch))
            if given:
                writer.write(pa.Table.from_pylist(given, schema=output.table.file_schema))
            output.replace(batch, writer.close(), input_metadata(documents, batch))
        return stale

    def rows(self, batch: str) -> list[dict]:
        return [row for part in self.documents().read(batch) for row in part.to_pylist()]


def tickets(*ids: int | None, opened_on: str | None = "2026-01-01", **more: object) -> pa.Table:
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


def test_overwritten_restored_and_recreated_tables_are_scored_again_and_missing_batches_go(by_day):
    by_day.score()
    write_deltalake(by_day.uri, tickets(1, opened_on="2026-01-01"), mode="overwrite")
    assert by_day.score() == ["2026-01-01", "2026-01-02"]
    assert by_day.lake.open(by_day.tables.scored).batches() == ["2026-01-01"]
    DeltaTable(by_day.uri).restore(1)
    assert by_day.score() == ["2026-01-01", "2026-01-02"]
    assert by_day.lake.open(by_day.tables.scored).rows() == 4
    shutil.rmtree(by_day.uri)
    write_deltalake(by_day.uri, tickets(9, opened_on="2026-02-01"))
    assert by_day.score() == ["2026-02-01", "2026-01-01", "2026-01-02"]
    assert by_day.lake.open(by_day.tables.scored).batches() == ["2026-02-01"]
    assert by_day.stale() == []


def test_new_columns_change_nothing_and_a_missing_mapped_column_is_named(by_day):
    by_day.score()
    more = tickets(7, opened_on="2026-01-04").append_column("priority", pa.array([1]))
    write_deltalake(by_day.uri, more, mode="append", schema_mode="merge")
    assert by_day.score() == ["2026-01-04"]
    write_deltalake(by_day.uri, more.drop_columns(["body"]), mode="overwrite", schema_mode="overwrite")
    with pytest.raises(BatchAssetsError, match=r"column body not found in .*tickets \(columns: ticket_id, .*\)"):
        by_day.documents()


def test_a_cleaned_log_and_vacuumed_files_make_nothing_stale(by_day):
    by_day.score()
    DeltaTable(by_day.uri).update({"body": "'new'"}, predicate="ticket_id = 1")
    by_day.score()
    table = DeltaTable(by_day.uri)
    table.vacuum(0, dry_run=False, enforce_retention_duration=False, full=True)
    table.create_checkpoint()
    for entry in sorted(Path(by_day.uri, "_delta_log").glob("*.json"))[:-1]:
        entry.unlink()
    assert by_day.stale() == []
    write_deltalake(by_day.uri, tickets(8, opened_on="2026-01-02"), mode="append")
    assert by_day.score() == ["2026-01-02"]
    assert by_day.stale() == []


def test_commits_that_no_run_saw_before_the_log_lost_them_make_their_batches_stale(by_day):
    by_day.score()
    write_deltalake(by_day.uri, tickets(6, opened_on="2026-01-02"), mode="append")
    write_deltalake(by_day.uri, tickets(7, opened_on="2026-01-03"), mode="append")
    DeltaTable(by_day.uri).create_checkpoint()
    for entry in sorted(Path(by_day.uri, "_delta_log").glob("*.json"))[:-1]:
        entry.unlink()
    assert "2026-01-02" in by_day.score()
    assert by_day.lake.open(by_day.tables.scored).rows() == 6


@pytest.fixture
def by_commit(deployment) -> InPlace:
    found = InPlace(deployment, batch_by="commit", batch_rows=3)
    for ids in ((1, 2), (3, 4)):
        write_deltalake(found.uri, tickets(*ids), mode="append")
    return found


def test_what_a_commit_appended_is_a_batch_and_earlier_rows_form_the_first_ones(by_commit):
    assert by_commit.score() == ["version-00000001-0001", "version-00000001-0002"]
    write_deltalake(by_commit.uri, tickets(5), mode="append")
    write_deltalake(by_commit.uri, tickets(6), mode="append")
    DeltaTable(by_commit.uri).optimize.compact()
    assert by_commit.score() == ["version-00000002", "version-00000003"]
    assert by_commit.lake.open(by_commit.tables.scored).rows() == 6
    assert [row["id"] for row in by_commit.rows("version-00000003")] == [6]
    DeltaTable(by_commit.uri).create_checkpoint()
    Path(by_commit.uri, "_delta_log", f"{1:020d}.json").unlink()
    assert by_commit.stale() == []


def test_rows_whose_commits_the_log_lost_before_a_run_saw_them_are_reported_and_answers_are_kept(by_commit):
    def problem():
        _remembered_commits.clear()  # as in a new process
        return lost_rows(by_commit.settings, by_commit.documents(), by_commit.lake.open(by_commit.tables.scored))

    by_commit.score()
    write_deltalake(by_commit.uri, tickets(5), mode="append")
    by_commit.score()
    write_deltalake(by_commit.uri, tickets(6, 7), mode="append")
    write_deltalake(by_commit.uri, tickets(8), mode="append")
    DeltaTable(by_commit.uri).create_checkpoint()
    for version in range(3):
        Path(by_commit.uri, "_delta_log", f"{version:020d}.json").unlink()
    assert problem() is None
    Path(by_commit.uri, "_delta_log", f"{3:020d}.json").unlink()
    assert "2 rows are in no batch" in problem()
    assert by_commit.score() == ["version-00000004"]
    assert by_commit.lake.open(by_commit.tables.scored).rows() == 6
    rebase(by_commit.settings)
    assert problem() is None
    by_commit.score()
    assert by_commit.lake.open(by_commit.tables.scored).rows() == 8


def test_each_commit_is_read_once_by_a_process(by_commit, monkeypatch):
    write_deltalake(by_commit.uri, tickets(5), mode="append")
    by_commit.documents().batches()
    write_deltalake(by_commit.uri, tickets(6), mode="append")
    read = []
    original = batching.read_commit
    monkeypatch.setattr(batching, "read_commit", lambda *given: read.append(given[1]) or original(*given))
    assert by_commit.documents().batches()[-1] == "version-00000003"
    assert read == [3]


def test_a_changed_type_is_kept_as_before_where_every_value_fits_and_refused_by_name_elsewhere(by_day):
    def overwrite(ids):
        changed = tickets(1, 2)
        changed = changed.set_column(changed.schema.get_field_index("ticket_id"), "ticket_id", ids)
        write_deltalake(by_day.uri, changed, mode="overwrite", schema_mode="overwrite")

    by_day.score()
    overwrite(pa.array(["7", "8"]))
    by_day.score()
    output = by_day.lake.open(by_day.tables.scored)
    assert [row["id"] for part in output.read("2026-01-01") for row in part.to_pylist()] == [7, 8]
    overwrite(pa.array(["007", "A-1"]))
    with pytest.raises(BatchAssetsError, match=r"column ticket_id of .*tickets was int64 when .*, and is string now"):
        by_day.score()
    assert by_day.lake.open(by_day.tables.scored).version == output.version


def test_a_rebase_counts_although_the_table_has_no_new_commit(by_commit):
    documents = by_commit.documents()
    assert documents.batches() == ["version-00000001-0001", "version-00000001-0002"]
    write_deltalake(by_commit.uri, tickets(5), mode="append")
    documents = by_commit.documents()
    rebase(by_commit.settings)
    again = newest_documents(by_commit.lake, by_commit.settings, by_commit.tables, documents)
    assert again.batches() == ["version-00000002-0001", "version-00000002-0002"]


@pytest.mark.parametrize(
    "change",
    [
        lambda uri: DeltaTable(uri).delete("ticket_id = 1"),
        lambda uri: write_deltalake(uri, tickets(1), mode="overwrite"),
        lambda uri: (shutil.rmtree(uri), write_deltalake(uri, tickets(1))),
    ],
    ids=["deleted rows", "overwritten", "recreated"],
)
def test_a_table_that_lost_rows_stops_a_pipeline_batched_by_commit_until_it_is_rebased(by_commit, change):
    by_commit.score()
    before = by_commit.lake.open(by_commit.tables.scored).version
    change(by_commit.uri)
    with pytest.raises(BatchAssetsError, match="'batch-assets rebase tickets', or batch by a column"):
        by_commit.documents().batches()
    assert by_commit.lake.open(by_commit.tables.scored).version == before
    rebase(by_commit.settings)
    by_commit.score()
    documents, output = by_commit.documents(), by_commit.lake.open(by_commit.tables.scored)
    assert output.batches() == documents.batches()
    assert output.rows() == documents.rows()
    assert by_commit.stale() == []


def test_keys_are_valid_tell_values_apart_and_show_them():
    values = ["a", "A b", "a.20b", "é", "-5", "x", "value..null", "", None, "null", 5, "ü" * 60, "ü" * 61, ".", "_"]
    keys = [key_of(value) for value in values]
    assert all(map(is_batch, keys))
    assert len(set(keys)) == len(values)
    assert [key_of(value) for value in ("2026-01-31", date(2026, 1, 31), "A b", "-5", None, "")] == [
        "2026-01-31",
        "2026-01-31",
        "A.20b",
        "value..-5",
        NULL_KEY,
        EMPTY_KEY,
    ]


def test_timestamps_form_batches_of_a_day_or_an_hour_in_utc(deployment):
    moments = [datetime(2026, 1, 1, 23, 59, tzinfo=UTC), datetime(2026, 1, 2, 0, 30, tzinfo=UTC), None]
    table = tickets(1, 2, 3).append_column("at", pa.array(moments, pa.timestamp("us", "UTC")))
    hourly = InPlace(deployment, batch_by="at", every="hour")
    write_deltalake(hourly.uri, table)
    assert hourly.documents().batches() == ["2026-01-01T23", "2026-01-02T00", NULL_KEY]
    assert [row["id"] for row in hourly.rows(NULL_KEY)] == [3]
    daily = InPlace(deployment, batch_by="at", every="day")
    assert daily.documents().batches() == ["2026-01-01", "2026-01-02", NULL_KEY]
    with pytest.raises(BatchAssetsError, match=r"set source\.every to day or hour"):
        InPlace(deployment, batch_by="at").documents()


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({"batch_by": "nothing"}, r"has no column nothing for source\.batch_by \(columns: ticket_id, "),
        ({"batch_by": "opened_on", "every": "day"}, r"remove source\.every, which needs a timestamp"),
        ({"batch_by": "subject", "max_batches": 2}, "makes more than 2 batches: batch by another column"),
        ({"batch_by": "score"}, "is double: batch by a string, an integer, a date or a timestamp"),
    ],
)
def test_a_column_that_cannot_name_batches_is_refused(deployment, source, message):
    found = InPlace(deployment, **source)
    write_deltalake(found.uri, tickets(1, 2, 3).append_column("score", pa.array([0.5, 1.5, 2.5])))
    with pytest.raises(BatchAssetsError, match=message):
        found.documents().batches()


def test_ids_keep_their_type_and_rows_without_one_have_no_text(by_day):
    write_deltalake(
        by_day.uri,
        tickets(None, opened_on="2026-01-01"),
        mode="append",
    )
    by_day.score()
    output = by_day.lake.open(by_day.tables.scored)
    assert output.table.arrow_schema.field("id").type == pa.int64()
    found = {row["id"]: row["document"] for row in by_day.rows("2026-01-01")}
    assert found == {1: "s1: b1", 2: "s2: b2", None: None}


def test_a_missing_table_is_an_error_and_never_no_data(deployment):
    found = InPlace(deployment, batch_by="opened_on")
    for look in (found.documents, lambda: find_documents(found.lake, found.settings, found.tables)):
        with pytest.raises(BatchAssetsError, match=r"the table .*tickets can't be read"):
            look()


def test_a_table_that_is_read_in_place_cannot_be_written(by_day):
    documents = by_day.documents()
    with pytest.raises(BatchAssetsError, match="read in place and never written"):
        documents.replace("2026-01-01", [], {})
    assert DeltaTable(by_day.uri).version() == 1


def test_a_look_at_an_unchanged_table_reads_the_end_of_its_log_only(by_day, monkeypatch):
    documents = by_day.documents()
    monkeypatch.setattr(DeltaTable, "__init__", None)
    assert newest_documents(by_day.lake, by_day.settings, by_day.tables, documents) is documents
    monkeypatch.undo()
    write_deltalake(by_day.uri, tickets(5), mode="append")
    assert newest_documents(by_day.lake, by_day.settings, by_day.tables, documents).version == 2


@pytest.mark.parametrize("partition_by", [None, ["day"]], ids=["by a plain column", "by a partition column"])
@pytest.mark.parametrize("seed", [1, 2, 3, pytest.param(range(4, 150), marks=pytest.mark.proof, id="many")])
def test_after_any_history_of_other_writers_the_answers_are_those_of_the_rows(deployment, seed, partition_by):
    for one in [seed] if isinstance(seed, int) else seed:
        folder = deployment / f"history-{one}"
        found = InPlace(folder, {"id": "ticket", "text": "text"}, f"history_{one}", batch_by="day")
        history = TableHistory(found.uri, one, partition_by)
        for _ in range(12):
            history.step()
            if history.random.random() < 0.4:
                found.score()
        found.score()
        output = found.lake.open(found.tables.scored)
        answers = [row for batch in output.batches() for part in output.read(batch) for row in part.to_pylist()]
        context = f"seed {one}: {history.steps}"
        assert sorted((row["id"], row["document"]) for row in answers) == sorted(
            (ticket, text) for ticket, text, _ in history.rows()
        ), context
        assert {(row["id"], row["batch"]) for row in answers} == {
            (ticket, key_of(day)) for ticket, _, day in history.rows()
        }, context
        assert found.stale() == [], context


@pytest.mark.parametrize("partition_by", [None, ["opened_on"]], ids=["by a plain column", "by a partition column"])
def test_rows_that_a_deletion_vector_deletes_make_their_batch_stale_and_go(deployment, partition_by):
    found = InPlace(deployment, batch_by="opened_on")
    both = pa.concat_tables(
        [tickets(1, 2, opened_on="2026-01-01"), tickets(3, opened_on="2026-01-02")]
    ).combine_chunks()
    write_deltalake(found.uri, both, partition_by=partition_by)
    write_deltalake(found.uri, tickets(4, opened_on="2026-01-02"), mode="append")
    found.score()
    # The first file loses its only row of a batch that has another row elsewhere.
    adds = DeltaTable(found.uri).get_add_actions(flatten=True).select(["path", "max.ticket_id"])
    path = next(path for path, last in zip(*(column.to_pylist() for column in adds.columns), strict=True) if last == 3)
    delete_rows(found.uri, {path: [both.num_rows - 1 if partition_by is None else 0]})
    assert "2026-01-02" in found.score()
    assert [row["id"] for row in found.rows("2026-01-02")] == [4]
    output = found.lake.open(found.tables.scored)
    assert {batch: output.rows(batch) for batch in output.batches()} == {"2026-01-01": 2, "2026-01-02": 1}
    assert found.documents().rows() == 3
    assert found.stale() == []


def test_ids_from_the_content_tell_equal_rows_apart_on_spark(deployment, spark):
    found = InPlace(deployment, {"text": "subject"}, batch_by="opened_on")
    rows = [{"subject": subject, "opened_on": "monday"} for subject in ("same", "same", "other", "same", None)]
    write_deltalake(found.uri, pa.Table.from_pylist(rows))
    frame = read_batch(spark, found.documents(), "monday")
    read = sorted((row.document or "", row.id) for row in frame.collect())
    assert [text for text, _ in read] == ["", "other", "same", "same", "same"]
    ids = [key for text, key in read if text == "same"]
    assert ids == [ids[0], f"{ids[0]}-2", f"{ids[0]}-3"]
    assert sorted((row.document or "", row.id) for row in frame.collect()) == read


def test_what_decides_the_batches_cannot_change_without_a_reset(by_day, tmp_path):
    by_day.score()
    changed = InPlace(tmp_path, batch_by="subject")
    with pytest.raises(BatchAssetsError, match=r"the pipeline tickets was set up with .*'batch-assets reset tickets'"):
        changed.lake.open(changed.tables.scored)

import dataclasses
import json
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import dagster as dg
import pyarrow as pa
import pytest
from deltalake import DeltaTable, write_deltalake

from batch_assets.errors import BatchAssetsError
from batch_assets.graph.table_checks import contract_check
from batch_assets.graph.table_metadata import totals
from batch_assets.lake.contracts import BATCH_INFERENCE, PROD_DATA, SUMMARY_QUALITY, TABLES, Column
from batch_assets.lake.lake import BatchSnapshot, Lake
from batch_assets.lake.staging import stage
from batch_assets.lake.upkeep import maintain
from batch_assets.lake.writable_table import ConcurrentCommitError
from batch_assets.names import batch_from, check_batch, check_name
from batch_assets.staleness import MODEL, is_stale

NOW = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)


def stage_rows(snapshot, batch, texts):
    rows = [
        {"id": str(n), "document": text, "summary": None, "source": "s", "landed_at": NOW}
        for n, text in enumerate(texts)
    ]
    table = pa.Table.from_pylist(rows, schema=PROD_DATA.file_schema)
    return stage([table], snapshot.staging_area(batch))


def replace(lake, batch, texts, **metadata):
    snapshot = lake.open(PROD_DATA)
    return snapshot.replace(batch, stage_rows(snapshot, batch, texts), metadata)


def texts(lake, batch):
    return [row["document"] for part in lake.open(PROD_DATA).read(batch) for row in part.to_pylist()]


@pytest.mark.parametrize("batch", ["", "-a", "a/b", "a b", "a'b", "ä", "a" * 101, "a\n", "../x", "b=1"])
def test_a_batch_key_that_could_become_a_path_or_sql_is_refused(batch, lake):
    with pytest.raises(ValueError, match="can't name a batch"):
        check_batch(batch)
    with pytest.raises(ValueError, match="can't name a batch"):
        lake.open(PROD_DATA).replace(batch, [], {})


def test_batch_keys_from_file_names_are_simplified_and_invalid_table_names_are_refused():
    assert batch_from("../Größe & Co.jsonl") == "Groe-Co.jsonl"
    with pytest.raises(ValueError, match="is not a valid name"):
        check_name("a.b")


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.name)
def test_tables_stay_readable_by_any_delta_reader(lake, table):
    lake.open(table)
    protocol = DeltaTable(lake.table_uri(table)).protocol()
    assert (protocol.min_reader_version, protocol.min_writer_version) == (1, 2)
    assert lake.difference(table) is None


def test_a_replacement_changes_only_its_own_batch(lake):
    replace(lake, "a", ["old", "older"])
    replace(lake, "b", ["other"])
    replace(lake, "a", ["new"])
    assert texts(lake, "a") == ["new"]
    assert texts(lake, "b") == ["other"]
    assert lake.open(PROD_DATA).rows() == 2


def test_an_empty_replacement_empties_the_batch_and_is_recorded(lake):
    replace(lake, "a", ["old"])
    version = replace(lake, "a", [])
    assert lake.open(PROD_DATA).rows("a") == 0
    assert lake.open(PROD_DATA).last_commit("a").version == version
    assert replace(lake, "empty", []) == lake.open(PROD_DATA).last_commit("empty").version


def test_every_add_action_has_correct_statistics(lake):
    replace(lake, "a", ["b", "a", "c" * 100])
    (action,) = lake.open(PROD_DATA).delta.add_actions().to_pylist()
    assert action["num_records"] == 3
    assert action["null_count.summary"] == 3
    assert (action["min.id"], action["max.id"]) == ("0", "2")
    assert action["min.landed_at"] <= NOW <= action["max.landed_at"]


def test_a_commit_records_its_run_and_input_version(lake):
    version = replace(lake, "a", ["x"], run_id="r1", input_version=7)
    replace(lake, "b", ["y"])
    commit = lake.open(PROD_DATA).last_commit("a")
    assert (commit.version, commit.metadata["run_id"], commit.metadata["input_version"]) == (version, "r1", 7)
    assert commit.metadata["rows"] == 1
    assert lake.open(PROD_DATA).last_commit("never") is None


def test_batch_totals_are_read_from_the_commit_or_counted_if_another_writer_changed_the_batch(lake, monkeypatch):
    table = lake.open(BATCH_INFERENCE)
    row = {"document": "d", "scored_at": NOW, "model_name": "m", "model_version": 1}
    rows = [
        row | {"id": "1", "generated_summary": "s", "request_hash": "h", "input_tokens": 7, "output_tokens": 3},
        row | {"id": "2", "error_message": "e", "request_hash": "i", "input_tokens": 5},
        row | {"id": "3", "error_message": "the document has no text"},
    ]
    written = pa.Table.from_pylist(rows, schema=BATCH_INFERENCE.file_schema)
    table.replace("a", stage([written], table.staging_area("a")), {})
    expected = {"summaries": 1, "errors": 1, "no_text": 1, "input_tokens": 12, "output_tokens": 3}
    with monkeypatch.context() as patch:
        patch.setattr(BatchSnapshot, "read", None)
        assert totals(lake.open(BATCH_INFERENCE), "a") == expected
    theirs = written.append_column("batch", pa.array(["a"] * 3)).select(BATCH_INFERENCE.column_names)
    write_deltalake(table.uri, theirs, mode="append")
    assert totals(lake.open(BATCH_INFERENCE), "a") == {name: 2 * count for name, count in expected.items()}


def test_lake_find_reads_a_missing_table_as_empty_and_creates_nothing(lake):
    found = lake.find(PROD_DATA)
    assert (found.batches(), found.rows(), found.last_commit("a"), list(found.read("a"))) == ([], 0, None, [])
    assert not Path(lake.uri).exists()
    replace(lake, "a", ["one"])
    assert lake.find(PROD_DATA).batches() == ["a"]


def test_a_batch_is_stale_until_a_commit_records_what_a_run_would_record(lake):
    assert is_stale(lake.open(PROD_DATA), "a", {"input_version": 7}, 9)
    replace(lake, "a", ["x"], input_version=7)
    assert not is_stale(lake.open(PROD_DATA), "a", {"input_version": 7}, 9)
    assert is_stale(lake.open(PROD_DATA), "a", {"input_version": 8}, 9)
    assert is_stale(lake.open(PROD_DATA), "a", {"input_version": 7, "model_version": 2}, 9)
    assert is_stale(lake.open(PROD_DATA), "b", {"input_version": 7}, 9)
    # Commits of earlier releases do not name the model.
    assert not is_stale(lake.open(PROD_DATA), "a", {"input_version": 7, MODEL: "mine"}, 9)
    replace(lake, "a", ["x"], input_version=7, model_version=1, **{MODEL: "mine"})
    assert not is_stale(lake.open(PROD_DATA), "a", {"input_version": 7, MODEL: "mine", "model_version": 1}, 9)
    assert is_stale(lake.open(PROD_DATA), "a", {"input_version": 7, MODEL: "theirs", "model_version": 1}, 9)


def test_a_batch_made_from_a_newer_input_is_not_stale_unless_the_input_table_was_recreated(lake):
    replace(lake, "a", ["x"], input_version=7)
    assert not is_stale(lake.open(PROD_DATA), "a", {"input_version": 5}, 7)
    assert is_stale(lake.open(PROD_DATA), "a", {"input_version": 5}, 6)


@pytest.mark.parametrize("held", [[], ["there"]], ids=["empty", "filled"])
def test_the_slower_of_two_replacements_of_a_batch_fails_and_names_the_winner(lake, held):
    if held:
        replace(lake, "a", held)
    slow = lake.open(PROD_DATA)
    staged = stage_rows(slow, "a", ["slow"])
    winner = replace(lake, "a", ["fast"], run_id="the-fast-run")
    with pytest.raises(ConcurrentCommitError, match=f"version {winner} by run the-fast-run"):
        slow.replace("a", staged, {"run_id": "slow"})
    assert texts(lake, "a") == ["fast"]


def test_an_error_names_the_faster_run_only_if_the_batch_was_superseded(lake):
    slow = lake.open(PROD_DATA)
    with pytest.raises(FileNotFoundError), slow.raise_if_superseded("a"):
        replace(lake, "b", ["fast"], run_id="the-fast-run")
        raise FileNotFoundError
    with pytest.raises(ConcurrentCommitError, match="by run the-fast-run"), slow.raise_if_superseded("b"):
        raise FileNotFoundError


@pytest.mark.parametrize("when", ["before", "after"])
def test_rows_appended_by_another_writer_are_never_silently_removed(lake, when):
    from deltalake import write_deltalake

    if when == "after":
        replace(lake, "a", ["ours"])
    snapshot = lake.open(PROD_DATA)
    staged = stage_rows(snapshot, "a", ["ours again"])
    theirs = {"id": "9", "document": "theirs", "summary": None, "batch": "a", "source": "x", "landed_at": NOW}
    write_deltalake(snapshot.uri, pa.Table.from_pylist([theirs], schema=PROD_DATA.arrow_schema), mode="append")
    with pytest.raises(ConcurrentCommitError, match="another writer"):
        snapshot.replace("a", staged, {})
    assert "theirs" in texts(lake, "a")
    assert not lake.open(PROD_DATA).is_written_by_us("a")


def test_a_run_can_replace_several_batches_from_one_snapshot(lake):
    for batch in ("a", "b", "c"):
        replace(lake, batch, ["old"])
    snapshot = lake.open(PROD_DATA)
    for batch in ("a", "b", "c"):
        snapshot.replace(batch, stage_rows(snapshot, batch, ["new"]), {})
    assert [texts(lake, batch) for batch in ("a", "b", "c")] == [["new"]] * 3


def test_a_concurrent_compaction_by_another_writer_is_detected_and_duplicates_no_rows(lake):
    first = lake.open(PROD_DATA)
    first.replace("a", stage_rows(first, "a", ["one"]) + stage_rows(first, "a", ["two"]), {})
    snapshot = lake.open(PROD_DATA)
    staged = stage_rows(snapshot, "a", ["new"])
    assert DeltaTable(snapshot.uri).optimize.compact()["numFilesRemoved"] == 2
    with pytest.raises(ConcurrentCommitError, match="another writer"):
        snapshot.replace("a", staged, {})
    assert sorted(texts(lake, "a")) == ["one", "two"]


def test_upkeep_neither_makes_a_batch_stale_nor_marks_it_as_written_by_another_writer(lake):
    snapshot = lake.open(PROD_DATA)
    staged = stage_rows(snapshot, "a", ["one"]) + stage_rows(snapshot, "a", ["two"])
    version = snapshot.replace("a", staged, {"input_version": 7})
    done = maintain(lake.open(PROD_DATA).delta, 168, print)
    assert (done.compacted, done.became) == (2, 1)
    after = lake.open(PROD_DATA)
    assert after.last_commit("a").version == version
    assert after.is_written_by_us("a")
    assert not is_stale(after, "a", {"input_version": 7}, 9)
    assert sorted(texts(lake, "a")) == ["one", "two"]


def test_concurrent_replacements_of_different_batches_all_succeed(lake):
    for n in range(8):
        replace(lake, f"b{n}", ["old"])
    snapshots = {f"b{n}": lake.open(PROD_DATA) for n in range(8)}
    failures = []

    def work(batch, snapshot):
        try:
            snapshot.replace(batch, stage_rows(snapshot, batch, [batch]), {})
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=item) for item in snapshots.items()]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert {batch: texts(lake, batch) for batch in snapshots} == {batch: [batch] for batch in snapshots}


def test_a_commit_is_found_in_the_log_after_its_response_was_lost(lake, monkeypatch):
    snapshot = lake.open(PROD_DATA)
    staged = stage_rows(snapshot, "a", ["x"])
    commit = DeltaTable.create_write_transaction

    def lose_the_answer(table, *arguments, **options):
        commit(table, *arguments, **options)
        raise OSError("connection reset")

    monkeypatch.setattr(DeltaTable, "create_write_transaction", lose_the_answer)
    version = snapshot.replace("a", staged, {})
    assert lake.open(PROD_DATA).last_commit("a").version == version
    assert texts(lake, "a") == ["x"]


def test_a_storage_error_during_the_commit_is_raised(lake, monkeypatch):
    replace(lake, "a", ["old"])
    snapshot = lake.open(PROD_DATA)
    staged = stage_rows(snapshot, "a", ["new"])

    def fail(table, *arguments, **options):
        raise OSError("disk full")

    monkeypatch.setattr(DeltaTable, "create_write_transaction", fail)
    with pytest.raises(OSError, match="disk full"):
        snapshot.replace("a", staged, {})
    assert texts(lake, "a") == ["old"]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ({"id": ["1"]}, "lack the column"),
        ({"id": [None], "document": ["x"], "summary": ["y"], "source": ["s"], "landed_at": [NOW]}, "must not be null"),
        ({"id": ["1"], "document": ["x"], "summary": ["y"], "source": ["s"], "landed_at": ["soon"]}, "don't fit"),
    ],
)
def test_rows_that_do_not_match_the_schema_are_refused_before_a_file_is_written(lake, tmp_path, rows, message):
    snapshot = lake.open(PROD_DATA)
    with pytest.raises(BatchAssetsError, match=message):
        stage([pa.table(rows)], snapshot.staging_area("a"))
    assert not list((tmp_path / "lake").rglob("*.parquet"))


def test_a_table_with_different_partition_columns_is_refused(lake):
    from deltalake import write_deltalake

    write_deltalake(lake.table_uri(PROD_DATA), pa.table({"id": ["1"], "day": ["x"]}), partition_by=["day"])
    with pytest.raises(BatchAssetsError, match="partitioned by day"):
        lake.open(PROD_DATA)


def test_the_contract_check_fails_if_a_column_type_differs_and_passes_otherwise(tmp_path, lake):
    from deltalake import write_deltalake

    check = contract_check(dg.AssetKey("prod_data"), PROD_DATA)
    lake.open(PROD_DATA)
    assert check.evaluate(lake, None).passed
    other = Lake(str(tmp_path / "other"))
    theirs = {"id": 9, "document": "x", "summary": "y", "batch": "a", "source": "x", "landed_at": NOW}
    write_deltalake(other.table_uri(PROD_DATA), pa.Table.from_pylist([theirs]), partition_by=["batch"])
    result = check.evaluate(other, None)
    assert not result.passed
    assert "column id is int64, not string" in result.metadata["difference"].value


def test_spark_reads_some_columns_of_one_batch_at_a_version_without_opening_other_batches(lake, spark, tmp_path):
    from batch_assets.lake.deltars import read_batch, register_deltars

    replace(lake, "a", ["one", "two"])
    replace(lake, "b", ["three"])
    first = lake.open(PROD_DATA)
    replace(lake, "a", [])
    assert [row["document"] for row in read_batch(spark, first, "b").collect()] == ["three"]
    for path in (tmp_path / "lake").rglob("batch=b/*.parquet"):
        path.write_bytes(b"nobody should read this")
    rows = read_batch(spark, first, "a").select("id", "batch", "landed_at").orderBy("id").collect()
    assert [(row["id"], row["batch"]) for row in rows] == [("0", "a"), ("1", "a")]
    assert rows[0]["landed_at"].astimezone(UTC) == NOW
    register_deltars(spark)
    some = spark.read.format("deltars").option("columns", "document, batch").load(first.uri)
    assert some.columns == ["document", "batch"]


def test_spark_reads_every_row_once_if_a_table_needs_more_tasks_than_there_are_slots(lake, spark, monkeypatch):
    from batch_assets.lake.deltars import read_table, reader

    for number in range(8):
        replace(lake, f"batch-{number}", [f"first of {number}", f"second of {number}"])
    # Opening a file counts as 4 MiB, so two files fill a task.
    monkeypatch.setattr(reader, "_TASK_BYTES", 5 * 1024 * 1024)
    frame = read_table(spark, lake.open(PROD_DATA).delta)
    assert frame.rdd.getNumPartitions() > spark.sparkContext.defaultParallelism
    found = sorted(row["document"] for row in frame.collect())
    assert found == sorted(f"{which} of {number}" for number in range(8) for which in ("first", "second"))


def test_spark_refuses_tables_with_unsupported_features(lake, spark):
    from deltalake import DeltaTable

    from batch_assets.lake.deltars import register_deltars

    replace(lake, "a", ["x"])
    uri = lake.table_uri(PROD_DATA)
    version = DeltaTable(uri).version() + 1
    protocol = {
        "protocol": {
            "minReaderVersion": 3,
            "minWriterVersion": 7,
            "readerFeatures": ["somethingNew"],
            "writerFeatures": ["somethingNew"],
        }
    }
    Path(uri, "_delta_log", f"{version:020d}.json").write_text(json.dumps(protocol))
    register_deltars(spark)
    with pytest.raises(Exception, match="somethingNew"):
        spark.read.format("deltars").load(uri).collect()


def with_column(table, name, kind, *, nullable=True):
    """The contract of a later release, with one more column in the middle."""
    return dataclasses.replace(
        table, columns=(*table.columns[:3], Column(name, kind, "New", nullable=nullable), *table.columns[3:])
    )


def write_rows(lake, table, batch, **values):
    snapshot = lake.open(table)
    row = {"table_name": "t", "model_name": "m", "documents": 1, "measured_at": NOW, **values}
    rows = pa.Table.from_pylist([row], schema=table.file_schema)
    return snapshot.replace(batch, stage([rows], snapshot.staging_area(batch)), {"input_version": 1})


def added_columns(lake, table):
    return [entry["operation"] for entry in DeltaTable(lake.table_uri(table)).history()].count("ADD COLUMN")


def test_a_missing_nullable_column_reads_as_null_and_is_added_once_before_the_first_write(lake, spark):
    from batch_assets.lake.deltars import read_batch

    version = write_rows(lake, SUMMARY_QUALITY, "a")
    later = with_column(SUMMARY_QUALITY, "bert_score", "double")
    for snapshot in (lake.find(later), lake.open(later), lake.open(later, version)):
        (row,) = (row for part in snapshot.read("a") for row in part.to_pylist())
        assert (row["bert_score"], row["documents"]) == (None, 1)
    assert read_batch(spark, lake.open(later), "a").select("bert_score").collect() == [(None,)]
    statement = dataclasses.replace(lake, contracts=(later,)).open_for_statement(lake.table_uri(later))
    assert "bert_score" in statement.schema.names
    assert lake.difference(later) is None
    assert lake.open(SUMMARY_QUALITY).version == version
    assert write_rows(lake, later, "b", bert_score=0.5) == version + 2
    assert write_rows(lake, later, "c", bert_score=0.6) == version + 3
    assert added_columns(lake, later) == 1
    found = [row["bert_score"] for batch in "abc" for part in lake.open(later).read(batch) for row in part.to_pylist()]
    assert found == [None, 0.5, 0.6]
    assert not is_stale(lake.open(later), "a", {"input_version": 1}, 9)
    # The release that made the table can still use it.
    assert write_rows(lake, SUMMARY_QUALITY, "b") == version + 4
    protocol = DeltaTable(lake.table_uri(later)).protocol()
    assert (protocol.min_reader_version, protocol.min_writer_version) == (1, 2)


def test_writers_that_add_the_same_column_at_the_same_time_all_succeed(lake):
    version = write_rows(lake, SUMMARY_QUALITY, "a")
    later = with_column(SUMMARY_QUALITY, "bert_score", "double")
    snapshots = {batch: lake.open(later) for batch in ("b", "c", "d", "e")}
    rows = pa.Table.from_pylist([{"table_name": "t", "model_name": "m", "bert_score": 0.5}], schema=later.file_schema)

    def work(item):
        batch, snapshot = item
        return snapshot.replace(batch, stage([rows], snapshot.staging_area(batch)), {})

    with ThreadPoolExecutor(len(snapshots)) as threads:
        versions = list(threads.map(work, snapshots.items()))
    assert sorted(versions) == list(range(version + 2, version + 6))
    assert added_columns(lake, later) == 1


def test_upkeep_of_a_table_that_lacks_a_column_keeps_its_rows(lake):
    replace(lake, "a", ["one"])
    later = with_column(PROD_DATA, "customer", "string")
    snapshot = lake.open(PROD_DATA)
    snapshot.replace("a", stage_rows(snapshot, "a", ["one"]) + stage_rows(snapshot, "a", ["two"]), {})
    assert maintain(lake.find(later).delta, 168, print).compacted == 2
    found = [row for part in lake.open(later).read("a") for row in part.to_pylist()]
    assert [(row["document"], row["customer"]) for row in sorted(found, key=lambda row: row["document"])] == [
        ("one", None),
        ("two", None),
    ]


def with_output(kind):
    return dataclasses.replace(
        BATCH_INFERENCE,
        owner="invoices",
        columns=tuple(
            dataclasses.replace(column, type=kind) if column.holds == "text" else column
            for column in BATCH_INFERENCE.columns
        ),
    )


def test_a_struct_gets_new_fields_at_its_end_and_nowhere_else(lake, spark):
    from batch_assets.lake.deltars import read_batch

    table, longer = with_output("struct<name:string>"), with_output("struct<name:string,amount:double>")
    snapshot = lake.open(table)
    rows = pa.Table.from_pylist([{"id": "1", "generated_summary": {"name": "x"}}], schema=table.file_schema)
    snapshot.replace("a", stage([rows], snapshot.staging_area("a")), {})
    for kind in ("struct<amount:double,name:string>", "struct<name:long,amount:double>", "string"):
        with pytest.raises(BatchAssetsError, match="generated_summary is struct<name: string>, not "):
            lake.open(with_output(kind))
    (row,) = (row for part in lake.open(longer).read("a") for row in part.to_pylist())
    assert row["generated_summary"] == {"name": "x", "amount": None}
    assert read_batch(spark, lake.open(longer), "a").select("generated_summary.*").collect() == [("x", None)]
    snapshot = lake.open(longer)
    more = pa.Table.from_pylist(
        [{"id": "2", "generated_summary": {"name": "y", "amount": 2.5}}], schema=longer.file_schema
    )
    assert snapshot.replace("b", stage([more], snapshot.staging_area("b")), {}) == snapshot.version + 2
    found = [row["generated_summary"] for batch in "ab" for row in lake.open(longer).read(batch)]
    assert [value for column in found for value in column.to_pylist()] == [
        {"name": "x", "amount": None},
        {"name": "y", "amount": 2.5},
    ]


def test_other_differences_and_tables_of_other_writers_are_still_refused(lake, tmp_path):
    from deltalake import write_deltalake

    lake.open(PROD_DATA)
    with pytest.raises(BatchAssetsError, match="it has no column customer"):
        lake.open(with_column(PROD_DATA, "customer", "string", nullable=False))
    other = Lake(str(tmp_path / "other"))
    theirs = pa.schema([field for field in PROD_DATA.arrow_schema if field.name != "summary"])
    write_deltalake(other.table_uri(PROD_DATA), theirs.empty_table(), partition_by=["batch"])
    with pytest.raises(BatchAssetsError, match="it has no column summary"):
        other.open(PROD_DATA)
    assert DeltaTable(other.table_uri(PROD_DATA)).version() == 0

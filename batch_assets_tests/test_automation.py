"""Sensors on an ephemeral instance, with real tables and a real landing folder."""

import gzip
import json
import os
import socket
import subprocess
import sys
import traceback
from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import dagster as dg
import httpx
import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result
from deltalake import DeltaTable, write_deltalake

from batch_assets.automation import schedules, sensors
from batch_assets.automation.alerts import send_alert
from batch_assets.cli import main
from batch_assets.definitions import build_defs
from batch_assets.errors import BatchAssetsError
from batch_assets.graph.partitions import busy_batches, range_tags, register_batches
from batch_assets.lake.contracts import (
    AI_QUERY_INFERENCE,
    BATCH_INFERENCE,
    DEFAULT_TABLES,
    PROD_DATA,
    PROD_DATA_REJECTED,
    SUMMARY_QUALITY,
)
from batch_assets.lake.lake import Lake
from batch_assets.lake.staging import stage
from batch_assets.operations.local_runs import close_dead_runs, close_orphaned_runs
from batch_assets.operations.rescore import describe_cost, select_batches
from batch_assets.resources.registry import ModelRegistry
from batch_assets.settings import DEFAULT_PIPELINE
from batch_assets.sources.formats import records_of
from batch_assets.sources.landing import land_batch
from batch_assets.sources.landing_folder import LandingFolder
from batch_assets.staleness import input_metadata, quality_input_metadata
from batch_assets_tests.conftest import settings_for, write_csv, write_json_lines
from batch_assets_tests.servers import s3_server

NOW = datetime.now(UTC)


class Deployment:
    """Settings, lake and instance, with a champion that needed no training."""

    def __init__(self, home, monkeypatch, **values) -> None:
        self.settings = settings_for(home, settle_seconds=0, **values)
        self.lake = Lake(self.settings.lake_uri)
        self.instance = dg.DagsterInstance.ephemeral()
        self.champion = 1
        self.cursors: dict[str, str] = {}
        for module in (sensors, schedules):
            monkeypatch.setattr(module, "champion_number", lambda registry, settings: self.champion)
        self.repository = build_defs(settings=self.settings).get_repository_def()

    def tick(self, name: str) -> list[dg.RunRequest]:
        resources = {"lake": self.lake, "registry": ModelRegistry(self.settings)}
        context = dg.build_sensor_context(
            instance=self.instance, cursor=self.cursors.get(name), repository_def=self.repository, resources=resources
        )
        result = self.repository.get_sensor_def(name).evaluate_tick(context)
        self.cursors[name] = result.cursor
        return list(result.run_requests or [])

    def land(self, batch: str, rows: int = 2) -> None:
        table = self.lake.open(PROD_DATA)
        texts = [
            {"id": str(n), "document": f"{batch} {n}", "summary": None, "source": "test", "landed_at": NOW}
            for n in range(rows)
        ]
        written = pa.Table.from_pylist(texts, schema=PROD_DATA.file_schema)
        table.replace(batch, stage([written], table.staging_area(batch)), {"documents": rows})

    def score(self, batch: str, rows: int = 0, no_text: int = 0) -> None:
        documents, output = self.lake.open(PROD_DATA), self.lake.open(BATCH_INFERENCE)
        texts = [{"id": str(n), "generated_summary": "short", "request_hash": str(n)} for n in range(rows)]
        texts += [{"id": f"no text {n}", "error_message": "the document has no text"} for n in range(no_text)]
        written = [pa.Table.from_pylist(texts, schema=BATCH_INFERENCE.file_schema)] if texts else []
        staged = stage(written, output.staging_area(batch))
        output.replace(batch, staged, {**input_metadata(documents, batch), "model_version": self.champion})

    def finish(self, batch: str) -> None:
        """Finish a scored batch: write its answers, and the metrics of both."""
        documents, scored = self.lake.open(PROD_DATA), self.lake.open(BATCH_INFERENCE)
        self.lake.open(AI_QUERY_INFERENCE).replace(batch, [], input_metadata(documents, batch))
        answered = self.lake.open(AI_QUERY_INFERENCE)
        self.lake.open(SUMMARY_QUALITY).replace(batch, [], quality_input_metadata(scored, answered, batch))

    def night(self) -> list[tuple[str, str]]:
        resources = {"lake": self.lake, "registry": ModelRegistry(self.settings)}
        context = dg.build_schedule_context(
            instance=self.instance, scheduled_execution_time=NOW, repository_def=self.repository, resources=resources
        )
        requests = self.repository.get_schedule_def("nightly_scoring").evaluate_tick(context).run_requests
        return batches_of(requests)

    def append_by_somebody_else(self, batch: str) -> None:
        row = {"id": ["x"], "document": ["theirs"], "summary": pa.array([None], pa.string()), "batch": [batch]}
        row |= {"source": ["theirs"], "landed_at": pa.array([NOW], pa.timestamp("us", tz="UTC"))}
        write_deltalake(self.lake.table_uri(PROD_DATA), pa.table(row), mode="append")


@pytest.fixture
def deployment(home, monkeypatch):
    return Deployment(home, monkeypatch)


def batches_of(requests: list[dg.RunRequest]) -> list[tuple[str, str]]:
    start, end = list(range_tags(["", ""]))
    return [(request.tags[start], request.tags[end]) for request in requests]


def test_stale_batches_are_requested_once_in_ranges_and_scored_ones_are_not(deployment):
    for batch in ("a", "b", "c", "d"):
        deployment.land(batch)
    deployment.score("b")
    requests = deployment.tick("prod_data_sensor")
    assert batches_of(requests) == [("a", "a"), ("c", "d")]
    assert {request.job_name for request in requests} == {"score_batches"}
    # A permanently failed run is not requested again, not even together with a new batch.
    assert deployment.tick("prod_data_sensor") == []
    deployment.land("e")
    assert batches_of(deployment.tick("prod_data_sensor")) == [("e", "e")]
    for batch in ("a", "c", "d", "e"):
        deployment.score(batch)
    assert deployment.tick("prod_data_sensor") == []
    # Finished batches are removed from the cursor, which every tick writes.
    assert json.loads(deployment.cursors["prod_data_sensor"])["asked"] == {}
    deployment.land("a", rows=3)
    changed = deployment.tick("prod_data_sensor")
    assert batches_of(changed) == [("a", "a")]
    assert changed[0].run_key not in {request.run_key for request in requests}


@pytest.fixture
def kept_deployment(deployment):
    """A deployment on an instance that another process could open, which schedules need."""
    with dg.instance_for_test() as instance:
        deployment.instance = instance
        yield deployment


def test_the_nightly_schedule_requests_stale_batches_and_those_left_unfinished_after_scoring(kept_deployment):
    for batch in ("done", "new", "unanswered", "unmeasured"):
        kept_deployment.land(batch)
    register_batches(kept_deployment.instance, DEFAULT_PIPELINE, kept_deployment.lake.open(PROD_DATA).batches())
    for batch in ("done", "unanswered", "unmeasured"):
        kept_deployment.score(batch, rows=2)
    for batch in ("done", "unmeasured"):
        kept_deployment.finish(batch)
    documents = kept_deployment.lake.open(PROD_DATA)
    # The batch was answered again, and its metrics still describe the earlier answers.
    kept_deployment.lake.open(AI_QUERY_INFERENCE).replace("unmeasured", [], input_metadata(documents, "unmeasured"))
    assert kept_deployment.night() == [("new", "unmeasured")]
    for batch in ("new", "unanswered", "unmeasured"):
        kept_deployment.score(batch, rows=2)
        kept_deployment.finish(batch)
    assert kept_deployment.night() == []


def test_batches_of_queued_or_running_runs_are_skipped(deployment):
    for batch in ("a", "b", "c"):
        deployment.land(batch)
    register_batches(deployment.instance, DEFAULT_PIPELINE, ["a", "b", "c"])
    run = dg.DagsterRun("score_batches", status=dg.DagsterRunStatus.STARTED, tags=range_tags(["a", "b"]))
    deployment.instance.add_run(run)
    assert busy_batches(deployment.instance, DEFAULT_PIPELINE) == {"a", "b"}
    assert batches_of(deployment.tick("prod_data_sensor")) == [("c", "c")]


def test_commits_of_another_writer_are_reported_and_upkeep_commits_are_not(deployment):
    deployment.land("a")
    deployment.score("a")
    assert deployment.tick("prod_data_sensor") == []
    deployment.append_by_somebody_else("theirs")
    deployment.append_by_somebody_else("a")
    assert batches_of(deployment.tick("prod_data_sensor")) == [("a", "theirs")]
    records = deployment.instance.fetch_materializations(dg.AssetKey("prod_data"), limit=10).records
    reported = {
        record.asset_materialization.partition: record.asset_materialization.tags["dagster/data_version"]
        for record in records
    }
    assert reported == {"a": "3", "theirs": "2"}
    assert set(deployment.instance.get_materialized_partitions(dg.AssetKey("prod_data"))) == {"a", "theirs"}
    deployment.score("a")
    deployment.score("theirs")
    before = deployment.lake.open(PROD_DATA).version
    DeltaTable(deployment.lake.table_uri(PROD_DATA)).optimize.compact()
    assert deployment.lake.open(PROD_DATA).version > before
    assert deployment.tick("prod_data_sensor") == []
    DeltaTable(deployment.lake.table_uri(PROD_DATA)).delete("id = 'x' and batch = 'a'")
    assert batches_of(deployment.tick("prod_data_sensor")) == [("a", "a")]
    deployment.score("a", rows=2)
    DeltaTable(deployment.lake.table_uri(PROD_DATA)).delete("batch = 'a'")
    assert batches_of(deployment.tick("prod_data_sensor")) == [("a", "a")]
    deployment.score("a")
    assert deployment.tick("prod_data_sensor") == []


def test_a_recreated_or_restored_table_is_recognized(deployment, tmp_path):
    import shutil

    deployment.land("a")
    deployment.score("a")
    assert deployment.tick("prod_data_sensor") == []
    uri = deployment.lake.table_uri(PROD_DATA)
    shutil.rmtree(uri)
    deployment.land("a")
    deployment.land("b")
    # Batch a was scored from version 1 of the deleted table, and it is in version 1 of the new one.
    assert batches_of(deployment.tick("prod_data_sensor")) == [("a", "b")]
    deployment.land("a", rows=5)
    deployment.score("a")
    deployment.score("b")
    assert deployment.tick("prod_data_sensor") == []
    DeltaTable(uri).restore(2)
    assert batches_of(deployment.tick("prod_data_sensor")) == [("a", "a")]


def test_a_new_champion_is_reported_and_rescores_batches_only_if_a_setting_says_so(home, monkeypatch):
    deployment = Deployment(home, monkeypatch)
    deployment.land("a")
    deployment.score("a")
    deployment.tick("champion_sensor")
    deployment.champion = 2
    deployment.tick("champion_sensor")
    event = deployment.instance.get_latest_materialization_event(dg.AssetKey("champion_model"))
    assert event.asset_materialization.tags["dagster/data_version"] == "2"
    assert deployment.tick("prod_data_sensor") == []
    everything = Deployment(home, monkeypatch, rescore="all")
    everything.champion = 2
    (second,) = everything.tick("prod_data_sensor")
    assert batches_of([second]) == [("a", "a")]
    everything.score("a")
    everything.champion = 1
    (back,) = everything.tick("prod_data_sensor")
    everything.score("a")
    everything.champion = 2
    (forth,) = everything.tick("prod_data_sensor")
    assert len({second.run_key, back.run_key, forth.run_key}) == 3


def test_an_unreachable_lake_fails_the_tick_and_no_batch_is_missed(deployment, monkeypatch):
    deployment.land("a")
    deployment.score("a")
    assert deployment.tick("prod_data_sensor") == []
    deployment.land("b")
    log = deployment.settings.home / "lake" / "main" / "default" / "m4_1_prod_data"
    log.rename(log.with_suffix(".away"))
    log.write_text("no folder")
    with pytest.raises(Exception, match="m4_1_prod_data"):
        deployment.tick("prod_data_sensor")
    log.unlink()
    log.with_suffix(".away").rename(log)
    assert batches_of(deployment.tick("prod_data_sensor")) == [("b", "b")]


def drop(folder, name: str, *texts: str):
    return write_json_lines(folder / name, [{"id": str(n), "document": text} for n, text in enumerate(texts)])


def take_all(folder: LandingFolder) -> list[str]:
    """Take the files that are there, as a sensor would, and return the batches that changed."""
    return [group.batch for group in folder.complete(folder.scan({}), 0) if folder.take(group)]


def landed(folder: LandingFolder, batch: str) -> list[str]:
    return [record.fields["document"] for record in folder.dataset_of(batch).records(batch)]


def test_files_are_taken_once_they_have_settled_and_a_changed_file_updates_its_batch(tmp_path):
    folder = LandingFolder(str(tmp_path), 100, archives=False)
    first = drop(tmp_path, "a.jsonl", "one", "two")
    drop(tmp_path, ".hidden.jsonl", "no")
    (tmp_path / "b.jsonl.part").write_text("no")
    seen = folder.scan({})
    assert list(seen) == ["a.jsonl"]
    assert folder.complete(seen, 5) == []
    old = {key: replace(file, since=file.since - 6) for key, file in seen.items()}
    assert [group.batch for group in folder.complete(folder.scan(old), 5)] == ["a"]
    os.utime(first, ns=(1, 1))
    assert folder.complete(folder.scan(old), 5) == []  # it has changed in the meantime
    assert take_all(folder) == ["a"]
    assert landed(folder, "a") == ["one", "two"]
    assert take_all(folder) == []
    drop(tmp_path, "a.jsonl", "one", "three")
    assert take_all(folder) == ["a"]
    assert landed(folder, "a") == ["one", "three"]


def test_a_folder_is_one_batch_files_of_one_scan_are_joined_and_large_batches_are_split(tmp_path):
    folder = LandingFolder(str(tmp_path), 2)
    drop(tmp_path / "reviews", "x.jsonl", "1", "2")
    drop(tmp_path / "reviews", "y.jsonl", "3")
    drop(tmp_path, "p.jsonl", "4")
    drop(tmp_path, "q.jsonl", "5", "6", "7")
    reviews, joined = take_all(folder)
    assert reviews == "reviews"
    assert folder.keys_of("reviews") == ["reviews-0001", "reviews-0002"]
    assert [text for batch in folder.keys_of(joined) for text in landed(folder, batch)] == ["4", "5", "6", "7"]
    assert not (tmp_path / "p.jsonl").exists()  # archived
    assert take_all(folder) == []
    # A file that was joined with others stays in their batch.
    drop(tmp_path, "p.jsonl", "eight")
    assert take_all(folder) == [joined]
    assert [text for batch in folder.keys_of(joined) for text in landed(folder, batch)] == ["eight", "5", "6", "7"]


def test_files_are_taken_as_the_same_batch_after_the_process_died_while_taking_them(tmp_path, monkeypatch):
    folder = LandingFolder(str(tmp_path), 100)
    drop(tmp_path, "a.jsonl", "one")
    drop(tmp_path, "b.jsonl", "two")
    (group,) = folder.complete(folder.scan({}), 0)
    with monkeypatch.context() as patch:
        patch.setattr(LandingFolder, "_write_down", lambda *arguments: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            folder.take(group)
    assert folder.pending() == {}
    assert take_all(folder) == [group.batch]
    # Once more, after the batch was recorded and before the files were archived.
    drop(tmp_path, "a.jsonl", "one")
    assert take_all(folder) == []
    assert landed(folder, group.batch) == ["one", "two"]


def test_the_parts_of_a_split_batch_keep_their_names_when_it_grows_or_shrinks(tmp_path):
    folder = LandingFolder(str(tmp_path), 2)
    drop(tmp_path, "a.jsonl", "1")
    take_all(folder)
    drop(tmp_path, "a.jsonl", "1", "2", "3", "4", "5")
    take_all(LandingFolder(str(tmp_path), 100))
    assert folder.keys_of("a") == ["a", "a-0002", "a-0003"]
    assert [landed(folder, batch) for batch in folder.keys_of("a")] == [["1", "2"], ["3", "4"], ["5"]]
    drop(tmp_path, "a.jsonl", "1", "2")
    take_all(folder)
    assert [landed(folder, batch) for batch in folder.keys_of("a")] == [["1", "2"], [], []]


def test_files_whose_names_differ_only_in_the_extension_are_separate_batches(tmp_path):
    folder = LandingFolder(str(tmp_path), 100)
    drop(tmp_path, "a.jsonl", "json")
    assert take_all(folder) == ["a"]
    write_csv(tmp_path / "a.csv", [{"id": "1", "document": "csv"}])
    (other,) = take_all(folder)
    assert (landed(folder, "a"), landed(folder, other)) == (["json"], ["csv"])
    write_csv(tmp_path / "a.csv", [{"id": "1", "document": "changed"}])
    assert take_all(folder) == [other]


@pytest.fixture
def bucket(monkeypatch):
    """The address of a bucket."""
    with s3_server("drop") as variables:
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        yield f"{variables['AWS_ENDPOINT_URL']}/drop"


def test_files_in_a_bucket_are_taken_like_files_in_a_folder(bucket):
    folder = LandingFolder("s3://drop/landing", 100)

    def put(key: str, content: bytes) -> None:
        httpx.put(f"{bucket}/landing/{key}", content=content).raise_for_status()

    put("reviews/x.csv", b"id,document\n1,csv\n")
    assert take_all(folder) == ["reviews"]
    put("a.jsonl.gz", gzip.compress(b'{"id": "1", "document": "one"}\n'))
    assert take_all(folder) == ["a"]
    assert (landed(folder, "reviews"), landed(folder, "a")) == (["csv"], ["one"])
    assert set(folder.pending()) == {"a", "reviews"}
    folder.mark_requested("reviews")
    assert (set(folder.pending()), folder.scan({})) == ({"a"}, {})
    put("a.jsonl.gz", gzip.compress(b'{"id": "1", "document": "two"}\n'))
    assert take_all(folder) == ["a"]
    assert landed(folder, "a") == ["two"]


def test_batch_names_are_unique_whatever_the_files_are_called(tmp_path):
    folder = LandingFolder(str(tmp_path), 2)
    drop(tmp_path, "sales-0002.jsonl", "other")
    assert take_all(folder) == ["sales-0002"]
    drop(tmp_path, "sales.jsonl", "1", "2", "3")
    assert take_all(folder) == ["sales"]
    cuts = folder.keys_of("sales")
    assert [text for batch in cuts for text in landed(folder, batch)] == ["1", "2", "3"]
    assert landed(folder, "sales-0002") == ["other"]
    drop(tmp_path / "a b", "x.jsonl", "spaced")
    drop(tmp_path / "a-b", "x.jsonl", "dashed")
    found = take_all(folder)
    assert sorted(landed(folder, batch)[0] for batch in found) == ["dashed", "spaced"]
    drop(tmp_path / "a b", "x.jsonl", "changed")
    (again,) = take_all(folder)
    assert (again in found, landed(folder, again)) == (True, ["changed"])


def test_a_version_that_is_being_archived_is_not_read_as_the_previous_one(tmp_path, monkeypatch):
    folder = LandingFolder(str(tmp_path), 100)
    drop(tmp_path, "a.jsonl", "old")
    take_all(folder)
    drop(tmp_path, "a.jsonl", "new")
    (group,) = folder.complete(folder.scan({}), 0)
    LandingFolder(str(tmp_path), 100, archives=False).take(group)  # a process that dies before it moves the files
    assert landed(folder, "a") == ["new"]
    drop(tmp_path, "a.jsonl", "newest")
    with pytest.raises(BatchAssetsError, match="has changed since it was taken"):
        landed(folder, "a")


def test_a_stray_quote_or_unreadable_value_only_loses_its_own_record(tmp_path):
    (tmp_path / "a.csv").write_text('id,document,,\n1,one,,\n2,"he said "hi"",,\n3,three,,\n')
    days = pa.array([0, 2**30, 1], pa.int32()).cast(pa.date32())
    pq.write_table(pa.table({"id": days, "document": ["x", "y", "z"]}), tmp_path / "b.parquet")
    table = pa.table({"document": pa.array([b"fine", b"\xff", b"too"]).cast(pa.string(), safe=False)})
    pq.write_table(table, tmp_path / "c.parquet")
    folder = LandingFolder(str(tmp_path), 100)
    (batch,) = take_all(folder)
    records = list(folder.dataset_of(batch).records(batch))
    assert [record.problem is None for record in records] == [True, False, True, True, False, True, True, False, True]
    assert "is not CSV" in records[1].problem


class FailingFiles:
    """Files in a bucket that fails once, after some reads, and is well again afterwards."""

    def __init__(self, folder: Path, good_reads: int) -> None:
        self.files = pafs.SubTreeFileSystem(str(folder), pafs.LocalFileSystem())
        self.good_reads = good_reads

    def open_input_file(self, path):
        if self.good_reads == 0:
            raise OSError("AWS Error NETWORK_CONNECTION")
        opened, files = self.files.open_input_file(path), self

        class File:
            __enter__, __exit__ = lambda self: self, lambda self, *_: None
            size, seek, tell = opened.size, opened.seek, opened.tell

            def read(self, count):
                files.good_reads -= 1
                if files.good_reads == -1:
                    raise OSError("AWS Error NETWORK_CONNECTION")
                return opened.read(count)

        return File()


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.jsonl.gz", "a.parquet"])
@pytest.mark.parametrize("good_reads", [0, 1])
def test_a_bucket_that_fails_while_a_file_is_read_is_not_bad_content(tmp_path, name, good_reads):
    texts = [f"text {number}" for number in range(20)]
    if name.endswith(".parquet"):
        pq.write_table(pa.table({"document": texts}), tmp_path / name)
    else:
        lines = ["document", *texts] if name.endswith(".csv") else [json.dumps({"document": text}) for text in texts]
        content = "".join(f"{line}\n" for line in lines).encode()
        (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    with pytest.raises(OSError, match="NETWORK_CONNECTION"):
        list(records_of(FailingFiles(tmp_path, good_reads), name, ["document"]))
    assert len(list(records_of(FailingFiles(tmp_path, 1000), name, ["document"]))) == 20


ODD_NAMES = [
    "o'neil & s\u00f6hne ..jsonl",
    "\u30c7\u30fc\u30bf.jsonl",
    "a%20b#c?.jsonl",
    '"..".jsonl',
    " spaces .jsonl",
]


@pytest.mark.parametrize("name", ODD_NAMES)
def test_a_file_may_have_any_name(tmp_path, name):
    folder = LandingFolder(str(tmp_path), 100)
    drop(tmp_path, name, "text")
    (batch,) = take_all(folder)
    assert landed(folder, batch) == ["text"]
    drop(tmp_path, name, "other")
    assert take_all(folder) == [batch]


def test_every_record_is_landed_or_rejected_whatever_the_file_contains(tmp_path, lake):
    folder = LandingFolder(str(tmp_path), 1000)
    good = {"id": "1", "document": "fine"}
    (tmp_path / "broken.jsonl").write_text(json.dumps(good) + "\n{half\n[1]\n" + json.dumps({"id": "2"}) + "\n")
    (tmp_path / "bom.csv").write_bytes('id,document\n3,"two\nlines, ""quoted"""\n'.encode("utf-8-sig"))
    (tmp_path / "latin.csv").write_bytes("id,document\n4,caf\u00e9\n5,tea\n".encode("latin-1"))
    (tmp_path / "latin.jsonl").write_bytes('{"id": "4b", "document": "caf\u00e9"}\n'.encode("latin-1"))
    (tmp_path / "wide.jsonl").write_bytes('{"id": "6", "document": "\u00fcber\u2028all"}\n'.encode("utf-16"))
    (tmp_path / "wide.csv").write_bytes("id,document\n6b,wide\n".encode("utf-16"))
    (tmp_path / "odd.jsonl").write_bytes('{"id": "6c", "document": "half"}'.encode("utf-16")[:-1])
    (tmp_path / "empty.jsonl").write_text("")
    with gzip.open(tmp_path / "zipped.jsonl.gz", "wt") as file:
        file.write(json.dumps({"document": "no id"}) + "\n")
    cut = (tmp_path / "zipped.jsonl.gz").read_bytes()
    (tmp_path / "half.jsonl.gz").write_bytes(cut[: len(cut) // 2])
    pq.write_table(pa.table({"id": ["7"], "document": ["p"]}), tmp_path / "cut.parquet")
    whole = (tmp_path / "cut.parquet").read_bytes()
    (tmp_path / "cut.parquet").write_bytes(whole[: len(whole) // 2])
    pq.write_table(pa.table({"text": ["other columns"]}), tmp_path / "other.parquet")
    take_all(folder)
    (batch,) = (batch for name in folder.pending() for batch in folder.keys_of(name))
    dataset = folder.dataset_of(batch)
    done = land_batch(dataset, lake, DEFAULT_TABLES, batch, "run")
    rejected = [row for part in lake.open(PROD_DATA_REJECTED).read(batch) for row in part.to_pylist()]
    documents = [row for part in lake.open(PROD_DATA).read(batch) for row in part.to_pylist()]
    assert (done.rows, done.rejected) == (len(documents), len(rejected))
    texts = {"fine", 'two\nlines, "quoted"', "tea", "no id", "\u00fcber\u2028all", "wide"}
    assert {row["document"] for row in documents} == texts
    assert done.rows + done.rejected == sum(part.records for part in dataset.parts())
    assert Counter(row["source"] for row in rejected) == {
        "broken.jsonl": 3, "latin.csv": 1, "latin.jsonl": 1, "odd.jsonl": 1, "half.jsonl.gz": 1, "cut.parquet": 1,
        "other.parquet": 1,
    }  # fmt: skip
    assert land_batch(dataset, lake, DEFAULT_TABLES, batch, "run").changed is False


def test_an_endless_line_and_a_gzip_bomb_are_rejected_in_bounded_memory(tmp_path):
    folder = tmp_path / "landing"
    folder.mkdir()
    line = {"id": "1", "document": "fine"}
    with (folder / "long.jsonl").open("w") as file:
        file.write('{"id": "0", "document": "')
        for _ in range(200):
            file.write("x" * 1_000_000)
        file.write('"}\n' + json.dumps(line) + "\n")
    with (folder / "long.csv").open("w") as file:
        file.write("id,document\n1,fine\n2,")
        for _ in range(200):
            file.write("x" * 1_000_000)
    with gzip.open(folder / "bomb.jsonl.gz", "wb", compresslevel=9) as bomb:
        bomb.write(json.dumps(line).encode() + b"\n")
        for _ in range(500):
            bomb.write(b" " * 1_000_000)
    script = f"""
import resource
from batch_assets.sources.landing_folder import LandingFolder
folder = LandingFolder({str(folder)!r}, 1000)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
(group,) = folder.complete(folder.scan({{}}), 0)
folder.take(group)
for record in folder.dataset_of(group.batch).records(group.batch):
    print(record.source, record.problem or record.fields["document"])
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    *records, grown = run.stdout.splitlines()
    assert records == [
        "bomb.jsonl.gz fine",
        f"bomb.jsonl.gz the file can't be read from here on: {records[1].partition('here on: ')[2]}",
        "long.csv fine",
        f"long.csv the file can't be read from here on: {records[3].partition('here on: ')[2]}",
        "long.jsonl line 1 is longer than 16777216 characters",
        "long.jsonl fine",
    ]
    assert "unpacks to more than 200 times its size" in records[1]
    assert int(grown) < 200_000  # KiB


def test_the_landing_sensor_requests_new_and_changed_batches(deployment):
    root = Path(deployment.settings.landing_folder)
    assert deployment.tick("landing_sensor") == []
    drop(root, "a.jsonl", "one")
    (request,) = deployment.tick("landing_sensor")
    assert (batches_of([request]), request.job_name) == ([("a", "a")], "land_batches")
    assert "a" in deployment.instance.get_dynamic_partitions("batch_assets/batch")
    assert deployment.tick("landing_sensor") == []
    drop(root, "a.jsonl", "two")
    (changed,) = deployment.tick("landing_sensor")
    assert (batches_of([changed]), changed.run_key != request.run_key) == ([("a", "a")], True)
    drop(root, "a.jsonl", "one")
    (back,) = deployment.tick("landing_sensor")
    assert back.run_key not in {request.run_key, changed.run_key}
    # A tick dies after it took the files. The next one requests them, starting from the previous cursor.
    drop(root, "b.jsonl", "three")
    cursor = deployment.cursors["landing_sensor"]
    assert batches_of(deployment.tick("landing_sensor")) == [("b", "b")]
    deployment.cursors["landing_sensor"] = cursor
    assert batches_of(deployment.tick("landing_sensor")) == [("b", "b")]


def test_a_file_too_large_for_a_tick_is_taken_by_a_run(deployment, monkeypatch):
    monkeypatch.setattr(sensors, "_LARGE_BYTES", 10)
    root = Path(deployment.settings.landing_folder)
    drop(root, "a.jsonl", "one")
    (request,) = deployment.tick("landing_sensor")
    assert request.job_name == "take_files"
    assert [again.run_key for again in deployment.tick("landing_sensor")] == [request.run_key]
    # A file that settles in the meantime becomes another batch: the first file belongs to the requested run.
    drop(root, "b.jsonl", "two")
    assert request.run_key in {again.run_key for again in deployment.tick("landing_sensor")}
    (root / "b.jsonl").unlink()
    job = build_defs(settings=deployment.settings).get_job_def("take_files")
    assert job.execute_in_process(instance=deployment.instance, run_config=request.run_config).success
    assert batches_of(deployment.tick("landing_sensor")) == [("a", "a")]


def test_a_run_whose_process_is_dead_is_closed_and_a_live_one_is_not(deployment):
    from dagster._core.events import EngineEventData

    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    elsewhere = {"batch_assets/machine": "another"}
    for run_id, pid, machine in (("dead", gone.pid, {}), ("alive", os.getpid(), {}), ("theirs", gone.pid, elsewhere)):
        tags = range_tags(["a", "a"]) | machine
        run = dg.DagsterRun("score_batches", run_id=run_id, status=dg.DagsterRunStatus.STARTED, tags=tags)
        deployment.instance.add_run(run)
        noted = EngineEventData({"pid": dg.MetadataValue.text(str(pid))})
        deployment.instance.report_engine_event("Executing steps in process", run, noted)
    assert close_orphaned_runs(deployment.instance) == ["dead"]
    assert deployment.instance.get_run_by_id("dead").status == dg.DagsterRunStatus.FAILURE
    for run_id in ("alive", "theirs"):
        assert deployment.instance.get_run_by_id(run_id).status == dg.DagsterRunStatus.STARTED


def test_a_manual_run_closes_only_the_dead_runs_of_its_own_home(deployment):
    here = {
        "batch_assets/launched_by": "command line",
        "batch_assets/machine": socket.gethostname(),
        "batch_assets/home": deployment.instance.root_directory,
    }
    others = {"machine": {**here, "batch_assets/machine": "another"}, "home": {**here, "batch_assets/home": "/another"}}
    for run_id, tags in {"dead": here, **others}.items():
        run = dg.DagsterRun("materialize_all", run_id=run_id, status=dg.DagsterRunStatus.STARTED, tags=tags)
        deployment.instance.add_run(run)
    assert close_dead_runs(deployment.instance, DEFAULT_PIPELINE) == ["dead"]
    statuses = {run.run_id: run.status for run in deployment.instance.get_runs()}
    assert statuses == {
        "dead": dg.DagsterRunStatus.FAILURE,
        "machine": dg.DagsterRunStatus.STARTED,
        "home": dg.DagsterRunStatus.STARTED,
    }


def test_files_can_be_landed_manually_and_a_changed_one_replaces_its_batch(tmp_path, home):
    def command(*arguments: str) -> Result:
        return CliRunner(env={"BATCH_ASSETS_HOME": str(home)}).invoke(main, arguments)

    def texts(batch: str) -> list[str]:
        read = Lake(str(home / "lake")).open(PROD_DATA).read(batch)
        return sorted(row["document"] for part in read for row in part.to_pylist())

    file = drop(tmp_path, "a.jsonl", "one", "two")
    other = write_csv(tmp_path / "b.csv", [{"id": "9", "document": "three"}])
    assert command("land", str(file), str(other), "--batch", "both").exit_code == 0
    assert texts("both") == ["one", "three", "two"]
    drop(tmp_path, "a.jsonl", "one", "changed")
    assert command("land", str(file), "--batch", "both").exit_code == 0
    assert texts("both") == ["changed", "one"]
    assert LandingFolder(str(home / "landing"), 1000).pending() == {}
    taken = command("land", str(drop(tmp_path, "both.jsonl", "another")))
    assert (taken.exit_code, "use --batch both to replace it" in taken.stderr) == (2, True)
    assert texts("both") == ["changed", "one"]
    (tmp_path / "a.txt").write_text("no")
    refused = command("land", str(tmp_path / "a.txt"))
    assert (refused.exit_code, "files end in .jsonl" in refused.stderr) == (2, True)
    unknown = command("rescore", "--batches", "both,nothing")
    assert (unknown.exit_code, "has no batch 'nothing'" in unknown.stderr) == (2, True)


def test_the_cost_of_rescoring_is_estimated_from_earlier_runs(deployment):
    for batch in ("a", "b"):
        deployment.land(batch, rows=120)
    assert describe_cost(deployment.instance, deployment.lake, deployment.settings, ["a", "b"]) == (
        "240 documents in 2 batches; the duration is not known yet"
    )
    event = dg.AssetMaterialization("batch_inference", partition="a", metadata={"documents_per_second": 2.0})
    deployment.instance.report_runless_asset_event(event)
    assert describe_cost(deployment.instance, deployment.lake, deployment.settings, ["a", "b"]) == (
        "240 documents in 2 batches; about 2 minutes at 2.0 documents a second"
    )
    assert describe_cost(deployment.instance, deployment.lake, deployment.settings, ["a"]) == (
        "120 documents in 1 batch; about 60 seconds at 2.0 documents a second"
    )
    deployment.score("a")
    assert select_batches(deployment.lake, deployment.settings, None, datetime(2026, 1, 31)) == ["a"]
    assert select_batches(deployment.lake, deployment.settings, None, None) == ["a", "b"]


def test_sensors_and_schedules_are_on_unless_a_setting_turns_them_off(home, monkeypatch):
    on = Deployment(home, monkeypatch).repository
    off = Deployment(home, monkeypatch, sensors=False).repository
    names = ["landing_sensor", "prod_data_sensor", "champion_sensor", "alert_sensor"]
    assert {on.get_sensor_def(name).default_status for name in names} == {dg.DefaultSensorStatus.RUNNING}
    assert {off.get_sensor_def(name).default_status for name in names} == {dg.DefaultSensorStatus.STOPPED}
    assert off.get_schedule_def("nightly_scoring").default_status == dg.DefaultScheduleStatus.STOPPED


def test_a_permanently_failed_run_sends_an_alert(tmp_path):
    told = tmp_path / "told.json"
    send_alert(f"tee {told}", {"run_id": "1", "job": "score_batches", "message": "no champion"})
    assert json.loads(told.read_text())["job"] == "score_batches"
    for alert in ("false secret", "/no/such/secret", "http://secret@127.0.0.1:9/secret", "http://secret:port/", "'"):
        with pytest.raises(BatchAssetsError, match=r"run 1 .*BATCH_ASSETS_ALERT$") as error:
            send_alert(alert, {"run_id": "1"})
        assert "secret" not in "".join(traceback.format_exception(error.value))

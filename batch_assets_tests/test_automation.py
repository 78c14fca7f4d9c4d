"""Sensors on an ephemeral instance, on real tables and a real landing folder."""

import gzip
import json
import os
import time
from datetime import UTC, datetime

import dagster as dg
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable, write_deltalake

from batch_assets.automation import sensors
from batch_assets.automation.runs import busy_batches, range_tags, register_batches
from batch_assets.automation.stale import input_of
from batch_assets.definitions import build_defs
from batch_assets.lake.lake import Lake
from batch_assets.lake.staging import stage
from batch_assets.lake.tables import BATCH_INFERENCE, PROD_DATA, PROD_DATA_REJECTED
from batch_assets.resources.registry import ModelRegistry
from batch_assets.sources.landing import land_batch
from batch_assets.sources.landing_folder import LandedDataset, LandingFolder
from batch_assets_tests.conftest import settings_for, write_json_lines

NOW = datetime.now(UTC)


class Deployment:
    """Settings, lake and instance, with a champion that nobody had to train."""

    def __init__(self, home, monkeypatch, **values) -> None:
        self.settings = settings_for(home, settle_seconds=0, **values)
        self.lake = Lake(self.settings.lake_uri)
        self.instance = dg.DagsterInstance.ephemeral()
        self.champion = 1
        self.cursors: dict[str, str] = {}
        monkeypatch.setattr(sensors, "_champion", lambda registry, settings: self.champion)
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

    def score(self, batch: str) -> None:
        documents, output = self.lake.open(PROD_DATA), self.lake.open(BATCH_INFERENCE)
        output.replace(batch, [], {**input_of(documents, batch), "model_version": self.champion})

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


def test_what_is_stale_is_asked_for_once_in_ranges_and_what_was_scored_is_not(deployment):
    for batch in ("a", "b", "c", "d"):
        deployment.land(batch)
    deployment.score("b")
    requests = deployment.tick("prod_data_sensor")
    assert batches_of(requests) == [("a", "a"), ("c", "d")]
    assert {request.job_name for request in requests} == {"score_batches"}
    # Dagster makes one run of a key, however often it is asked for; a run that failed is not asked for again.
    again = deployment.tick("prod_data_sensor")
    assert [request.run_key for request in again] == [request.run_key for request in requests]
    for batch in ("a", "c", "d"):
        deployment.score(batch)
    assert deployment.tick("prod_data_sensor") == []
    deployment.land("a", rows=3)
    changed = deployment.tick("prod_data_sensor")
    assert batches_of(changed) == [("a", "a")]
    assert changed[0].run_key not in {request.run_key for request in requests}


def test_batches_of_runs_that_are_queued_or_running_are_left_alone(deployment):
    for batch in ("a", "b", "c"):
        deployment.land(batch)
    register_batches(deployment.instance, ["a", "b", "c"])
    run = dg.DagsterRun("score_batches", status=dg.DagsterRunStatus.STARTED, tags=range_tags(["a", "b"]))
    deployment.instance.add_run(run)
    assert busy_batches(deployment.instance) == {"a", "b"}
    assert batches_of(deployment.tick("prod_data_sensor")) == [("c", "c")]


def test_commits_of_another_writer_are_seen_and_reported_and_upkeep_is_not(deployment):
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


def test_a_table_that_was_made_anew_or_set_back_is_recognized(deployment, tmp_path):
    import shutil

    deployment.land("a")
    deployment.score("a")
    assert deployment.tick("prod_data_sensor") == []
    uri = deployment.lake.table_uri(PROD_DATA)
    shutil.rmtree(uri)
    deployment.land("a")
    deployment.land("b")
    # Batch a was scored from version 1 of the table that is gone, and is in version 1 of the new one.
    assert batches_of(deployment.tick("prod_data_sensor")) == [("a", "b")]
    deployment.land("a", rows=5)
    deployment.score("a")
    deployment.score("b")
    assert deployment.tick("prod_data_sensor") == []
    DeltaTable(uri).restore(2)
    assert batches_of(deployment.tick("prod_data_sensor")) == [("a", "a")]


def test_a_new_champion_is_reported_and_rescored_only_by_setting(home, monkeypatch):
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
    assert batches_of(everything.tick("prod_data_sensor")) == [("a", "a")]


def test_a_lake_that_is_out_of_reach_is_a_failed_tick_and_nothing_is_missed(deployment, monkeypatch):
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


def test_files_are_taken_when_they_have_settled_and_a_changed_file_is_a_new_version_of_its_batch(tmp_path):
    folder = LandingFolder(tmp_path, archives=False)
    first = drop(tmp_path, "a.jsonl", "one", "two")
    drop(tmp_path, ".hidden.jsonl", "no")
    (tmp_path / "b.jsonl.part").write_text("no")
    taken, looked = folder.take({}, settle_seconds=5)
    assert (taken, list(looked)) == ([], ["a.jsonl"])
    settled = {key: (size, modified, since - 6) for key, (size, modified, since) in looked.items()}
    os.utime(first, ns=(1, 1))
    assert folder.take(settled, settle_seconds=5)[0] == []  # it has changed meanwhile
    _, looked = folder.take(looked, settle_seconds=0)
    dataset = LandedDataset(folder, 100)
    assert [record.fields["document"] for record in dataset.records("a")] == ["one", "two"]
    assert folder.take(looked, settle_seconds=0)[0] == []
    drop(tmp_path, "a.jsonl", "one", "three")
    assert folder.take(looked, settle_seconds=0)[0] == ["a"]
    assert [r.fields["document"] for r in LandedDataset(folder, 100).records("a")] == ["one", "three"]


def test_a_folder_names_one_batch_files_of_one_look_join_and_large_ones_are_cut(tmp_path):
    folder = LandingFolder(tmp_path)
    drop(tmp_path / "reviews", "x.jsonl", "1", "2")
    drop(tmp_path / "reviews", "y.jsonl", "3")
    drop(tmp_path, "p.jsonl", "4")
    drop(tmp_path, "q.jsonl", "5", "6", "7")
    taken, _ = folder.take({}, settle_seconds=0)
    assert taken[1] == "reviews" or taken[0] == "reviews"
    joined = next(name for name in taken if name != "reviews")
    dataset = LandedDataset(folder, 2)
    assert dataset.batches_of(["reviews"]) == ["reviews-0001", "reviews-0002"]
    texts = [r.fields["document"] for batch in dataset.batches_of([joined]) for r in dataset.records(batch)]
    assert texts == ["4", "5", "6", "7"]
    assert not (tmp_path / "p.jsonl").exists()  # archived
    assert folder.take({}, settle_seconds=0)[0] == []


def test_every_record_lands_or_is_rejected_whatever_the_file_is(tmp_path, lake):
    folder = LandingFolder(tmp_path)
    good = {"id": "1", "document": "fine"}
    (tmp_path / "broken.jsonl").write_text(json.dumps(good) + "\n{half\n[1]\n" + json.dumps({"id": "2"}) + "\n")
    (tmp_path / "bom.csv").write_bytes('id,document\n3,"two\nlines, ""quoted"""\n'.encode("utf-8-sig"))
    (tmp_path / "latin.csv").write_bytes("id,document\n4,caf\u00e9\n5,tea\n".encode("latin-1"))
    (tmp_path / "wide.jsonl").write_bytes('{"id": "6", "document": "x"}\n'.encode("utf-16"))
    (tmp_path / "empty.jsonl").write_text("")
    with gzip.open(tmp_path / "zipped.jsonl.gz", "wt") as file:
        file.write(json.dumps({"document": "no id"}) + "\n")
    pq.write_table(pa.table({"id": ["7"], "document": ["p"]}), tmp_path / "cut.parquet")
    whole = (tmp_path / "cut.parquet").read_bytes()
    (tmp_path / "cut.parquet").write_bytes(whole[: len(whole) // 2])
    pq.write_table(pa.table({"text": ["other columns"]}), tmp_path / "other.parquet")
    (tmp_path / "o'neil & s\u00f6hne ..jsonl").write_text(json.dumps({"id": 8, "document": "name"}) + "\n")
    folder.take({}, settle_seconds=0)
    dataset = LandedDataset(folder, 1000)
    (batch,) = dataset.batches()
    landed = land_batch(dataset, lake, batch, "run")
    rejected = [row for part in lake.open(PROD_DATA_REJECTED).read(batch) for row in part.to_pylist()]
    documents = [row for part in lake.open(PROD_DATA).read(batch) for row in part.to_pylist()]
    assert (landed.rows, landed.rejected) == (len(documents), len(rejected))
    assert {row["document"] for row in documents} == {"fine", 'two\nlines, "quoted"', "tea", "no id", "name"}
    assert landed.rows + landed.rejected == sum(part.records for part in dataset.parts())
    by_file = {row["source"] for row in rejected}
    assert by_file == {"broken.jsonl", "latin.csv", "wide.jsonl", "cut.parquet", "other.parquet"}
    assert land_batch(dataset, lake, batch, "run").changed is False


def test_the_landing_sensor_asks_for_new_batches_and_for_those_that_changed(deployment):
    root = deployment.settings.landing_folder
    assert deployment.tick("landing_sensor") == []
    drop(root, "a.jsonl", "one")
    deployment.tick("landing_sensor")
    deadline = time.monotonic() + 5
    requests: list[dg.RunRequest] = []
    while not requests and time.monotonic() < deadline:
        requests = deployment.tick("landing_sensor")
    assert deployment.tick("landing_sensor") == []
    assert "a" in deployment.instance.get_dynamic_partitions("batch_assets/batch")


def test_sensors_and_schedules_are_on_unless_a_setting_stops_them(home, monkeypatch):
    on = Deployment(home, monkeypatch).repository
    off = Deployment(home, monkeypatch, sensors=False).repository
    names = ["landing_sensor", "prod_data_sensor", "champion_sensor", "alert_sensor"]
    assert {on.get_sensor_def(name).default_status for name in names} == {dg.DefaultSensorStatus.RUNNING}
    assert {off.get_sensor_def(name).default_status for name in names} == {dg.DefaultSensorStatus.STOPPED}
    assert off.get_schedule_def("nightly_scoring").default_status == dg.DefaultScheduleStatus.STOPPED

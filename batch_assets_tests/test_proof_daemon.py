"""Sensors in the real daemon: every dropped file and appended row is scored, even when processes are killed."""

import json
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import dagster as dg
import psutil
import pytest

from batch_assets.graph.partitions import ACTIVE_STATUSES
from batch_assets.lake.contracts import (
    AI_QUERY_INFERENCE,
    BATCH_INFERENCE,
    PROD_DATA,
    PROD_DATA_REJECTED,
    SUMMARY_QUALITY,
)
from batch_assets.lake.lake import Lake
from batch_assets.operations.local_runs import process_of
from batch_assets_tests.conftest import BATCH_ASSETS, environment, write_json_lines
from batch_assets_tests.servers import ChatServer, completion, serve, stop
from tools.ports import free_port

pytestmark = pytest.mark.proof

# Another writer that does not use this package: it appends one row at a time to two batches of its own.
APPENDER = """
import sys, time
from datetime import UTC, datetime
import pyarrow as pa
from deltalake import write_deltalake
uri, count, pause = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
for number in range(count):
    row = {"id": [f"theirs-{number}"], "document": [f"Row {number} of somebody else."]}
    row |= {"summary": pa.array([None], pa.string()), "batch": [f"theirs-{number % 2}"], "source": ["theirs"]}
    row["landed_at"] = pa.array([datetime.now(UTC)], pa.timestamp("us", tz="UTC"))
    write_deltalake(uri, pa.table(row), mode="append")
    time.sleep(pause)
"""


class Deployment:
    """A home with a champion, served by ``batch-assets ui``."""

    def __init__(self, home: Path, server: ChatServer, **values: str) -> None:
        self.home = home
        home.mkdir(parents=True)
        endpoints = home / "endpoints.toml"
        endpoints.write_text(f'[endpoints.counted]\nbase_url = "{server.url}"\nmodel = "m"\n')
        ports = {"UI_PORT": str(free_port()), "MLFLOW_PORT": str(free_port())}
        fixed = {"EVALUATION_ROWS": "3", "SPARK_MASTER": "local[2,4]", "SETTLE_SECONDS": "1", "ENDPOINT": "counted"}
        self.env = environment(home, ENDPOINTS=str(endpoints), **fixed, **ports, **values)
        self.lake = Lake(values.get("LAKE", str(home / "lake")))
        self.log = home / "ui.log"
        self.ui: subprocess.Popen[bytes] | None = None

    def command(self, *arguments: str, **values: str) -> None:
        env = self.env | {f"BATCH_ASSETS_{key}": value for key, value in values.items()}
        run = subprocess.run([*BATCH_ASSETS, *arguments], env=env, capture_output=True, text=True, timeout=300)
        assert run.returncode == 0, run.stdout + run.stderr

    def start(self) -> None:
        with self.log.open("ab") as log:
            self.ui = subprocess.Popen([*BATCH_ASSETS, "ui"], env=self.env, stdout=log, stderr=log)

    def stop(self) -> None:
        if self.ui is not None and self.ui.poll() is None:
            self.ui.terminate()
            self.ui.wait(60)

    def processes(self, word: str) -> list[psutil.Process]:
        """Child processes of the UI whose command line contains a word."""
        assert self.ui is not None
        found = []
        for process in psutil.Process(self.ui.pid).children(recursive=True):
            try:
                if word in " ".join(process.cmdline()):
                    found.append(process)
            except psutil.Error:
                continue  # the process has already ended
        return found

    def kill(self, word: str, seconds: float = 180) -> None:
        """Wait for a process whose command line contains a word, and kill -9 it."""
        wait_until(lambda: bool(self.processes(word)), seconds, f"no process with {word}")
        self.processes(word)[0].kill()

    def kill_run(self) -> None:
        """Wait for a run in progress, and kill -9 its process."""
        pids: list[int] = []

        def is_found() -> bool:
            with dg.DagsterInstance.from_config(str(self.home / "dagster")) as instance:
                for run in instance.get_runs(
                    dg.RunsFilter(job_name="score_batches", statuses=[dg.DagsterRunStatus.STARTED])
                ):
                    pids.extend([found[0]] if (found := process_of(instance, run.run_id)) else [])
            return bool(pids)

        wait_until(is_found, 180, "no run has started")
        psutil.Process(pids[0]).kill()

    def runs(self) -> list[dg.DagsterRun]:
        with dg.DagsterInstance.from_config(str(self.home / "dagster")) as instance:
            return list(instance.get_runs())

    def rows(self, table) -> list[dict]:
        return [row for batch in self.lake.open(table).batches() for row in self.batch(table, batch)]

    def batch(self, table, batch: str) -> list[dict]:
        return [row for part in self.lake.open(table).read(batch) for row in part.to_pylist()]

    def is_quiet(self, expected: set[str]) -> bool:
        """Whether every expected row has a summary and metrics, and no run is in progress."""
        if {row["id"] for row in self.rows(BATCH_INFERENCE)} != expected:
            return False
        batches = set(self.lake.open(BATCH_INFERENCE).batches())
        asked, measured = (set(self.lake.open(table).batches()) for table in (AI_QUERY_INFERENCE, SUMMARY_QUALITY))
        return batches == asked == measured and not [run for run in self.runs() if run.status in ACTIVE_STATUSES]


def wait_until(condition: Callable[[], bool], seconds: float, otherwise: str) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, otherwise
        time.sleep(1)


def drop_files(folder: Path, count: int, seconds: float) -> set[str]:
    """Drop files of two documents each, and return all document ids."""
    ids = set()
    for number in range(count):
        rows = [{"id": f"{number}-{n}", "document": f"Document {n} of file {number}."} for n in (1, 2)]
        ids |= {row["id"] for row in rows}
        write_json_lines(folder / f"file-{number}.jsonl", rows)
        time.sleep(seconds / count)
    return ids


def check_all(deployment: Deployment, expected: set[str]) -> None:
    """Check that every row is scored, each batch by one version, and no batch more often than necessary."""
    scored = deployment.lake.open(BATCH_INFERENCE)
    documents = deployment.lake.open(PROD_DATA)
    assert Counter(row["id"] for row in deployment.rows(BATCH_INFERENCE)) == Counter(expected)
    assert {row["id"] for row in deployment.rows(PROD_DATA)} == expected
    assert deployment.rows(PROD_DATA_REJECTED) == []
    reasons: Counter[str] = Counter()
    for commit in documents.delta.commits():
        reasons.update(key for (key,) in commit.changed)
    commits: Counter[str] = Counter()
    for commit in scored.delta.commits():
        commits.update(key for (key,) in commit.changed)
    for batch in documents.batches():
        assert len({row["model_version"] for row in deployment.batch(BATCH_INFERENCE, batch)}) == 1
        assert 1 <= commits[batch] <= reasons[batch], (batch, commits, reasons)


@pytest.fixture
def server():
    with ChatServer(lambda body, n: completion("An answer.")) as server:
        yield server


@pytest.fixture
def deployment(tmp_path, server, t5_folder, documents):
    first = write_json_lines(tmp_path / "data" / "first.jsonl", documents[:2])
    deployment = Deployment(tmp_path / "home", server, MODEL=str(t5_folder), DATASET=str(first))
    try:
        yield deployment
    finally:
        deployment.stop()


def append_rows(deployment: Deployment, count: int, seconds: float) -> subprocess.Popen[bytes]:
    uri = deployment.lake.table_uri(PROD_DATA)
    return subprocess.Popen([sys.executable, "-c", APPENDER, uri, str(count), str(seconds / count)])


def test_starting_the_ui_after_a_run_starts_no_new_run(deployment):
    deployment.command("run")
    before = len(deployment.runs())
    deployment.start()
    wait_until(lambda: b"Ctrl-C" in deployment.log.read_bytes(), 120, "the UI doesn't start")

    def ticks() -> dict[str, int]:
        with dg.DagsterInstance.from_config(str(deployment.home / "dagster")) as instance:
            states = instance.all_instigator_state()
            return {
                state.instigator_name: len(instance.get_ticks(state.instigator_origin_id, state.selector_id))
                for state in states
            }

    names = ("landing_sensor", "prod_data_sensor", "champion_sensor")
    wait_until(lambda: all(ticks().get(name, 0) >= 3 for name in names), 180, "the sensors don't tick")
    assert len(deployment.runs()) == before


def test_no_killed_process_causes_rows_to_be_lost_or_scored_twice(
    tmp_path, server, t5_folder, documents, record_property
):
    mlflow = [serve(tmp_path / "mlflow", port := free_port())]
    first = write_json_lines(tmp_path / "data" / "first.jsonl", documents[:2])
    deployment = Deployment(tmp_path / "home", server, MODEL=str(t5_folder), DATASET=str(first))
    deployment.env |= {"MLFLOW_TRACKING_URI": f"http://127.0.0.1:{port}", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2"}
    expected = {row["id"] for row in documents[:2]} | {f"theirs-{number}" for number in range(20)}
    try:
        deployment.command("run")
        deployment.command("run", MAX_LENGTH="30")
        began = time.monotonic()
        deployment.start()
        appender = append_rows(deployment, 20, 60)
        dropped: set[str] = set()
        dropping = threading.Thread(
            target=lambda: dropped.update(drop_files(deployment.home / "landing", 20, 60)), daemon=True
        )
        dropping.start()
        # Kill the daemon: the command ends with it and is restarted.
        deployment.kill("dagster._daemon")
        assert deployment.ui.wait(120) != 0
        deployment.start()
        promote_the_other_version(port)
        # Kill a run in progress, then the MLflow server.
        deployment.kill_run()
        stop(mlflow.pop())
        time.sleep(20)
        mlflow.append(serve(tmp_path / "mlflow", port))
        dropping.join()
        assert appender.wait() == 0
        expected |= dropped
        wait_until(lambda: deployment.is_quiet(expected), 900, deployment.log.read_text()[-3000:])
        record_property("seconds until all was scored", round(time.monotonic() - began))
        check_all(deployment, expected)
        statuses = Counter(f"{run.job_name} {run.status.value}" for run in deployment.runs())
        record_property("runs", json.dumps(statuses))
        print(statuses)
    finally:
        deployment.stop()
        for process in mlflow:
            stop(process)


def test_a_batch_that_fails_in_a_backfill_sends_one_alert_and_does_not_stop_the_others(
    tmp_path, server, t5_folder, documents
):
    from playwright.sync_api import expect

    from tools.screenshots import launch, opened

    data, alerts = tmp_path / "data", tmp_path / "alerts"
    for key, document in zip("abc", documents[:3], strict=True):
        write_json_lines(data / f"{key}.jsonl", [document])
    values = {"MODEL": str(t5_folder), "DATASET": str(data), "ALERT": f"tee -a {alerts}", "SENSOR_SECONDS": "2"}
    deployment = Deployment(tmp_path / "home", server, **values)
    try:
        deployment.command("run")
        before = [deployment.batch(table, "b") for table in (PROD_DATA, BATCH_INFERENCE)]
        (data / "b.jsonl").unlink()
        write_json_lines(data / "a.jsonl", [documents[0], documents[3]])
        write_json_lines(data / "c.jsonl", [documents[2], documents[4]])
        deployment.start()
        wait_until(lambda: b"Ctrl-C" in deployment.log.read_bytes(), 120, "the UI doesn't start")
        url = f"http://127.0.0.1:{deployment.env['BATCH_ASSETS_UI_PORT']}"
        with opened() as page:
            launch(page, url, "prod_data")
            wait_until(alerts.exists, 240, "nobody was told")
            page.goto(f"{url}/assets/prod_data?view=partitions&partition=b")
            expect(page.get_by_text("Failed (1)")).to_be_visible()
            expect(page.get_by_text("Materialized (2)")).to_be_visible()
            page.get_by_text("View logs").click()
            expect(page.get_by_text("1 of 3 batches failed (b: the batch b is not in").first).to_be_visible()
        # The sensor has noticed the new content of the other batches.
        wait_until(lambda: deployment.is_quiet({row["id"] for row in documents[:5]}), 300, "not all was scored")
        failed = {run.run_id: run for run in deployment.runs() if run.status is dg.DagsterRunStatus.FAILURE}
        (last,) = (key for key, run in failed.items() if run.tags.get("dagster/will_retry") != "true")
        assert len(failed) == 2
        told = json.loads(alerts.read_text())  # a second alert would add a second object, and parsing would fail
        assert told["run_id"] == last
        assert "b: the batch b is not in the data set" in told["message"]
        assert [deployment.batch(table, "b") for table in (PROD_DATA, BATCH_INFERENCE)] == before
    finally:
        deployment.stop()


def promote_the_other_version(port: int) -> None:
    """Move the alias in the registry, as someone who does not use this package would."""
    program = f"""
from mlflow import MlflowClient
client = MlflowClient("http://127.0.0.1:{port}")
name = "main.default.summarizer"
champion = client.get_model_version_by_alias(name, "champion").version
other = next(v.version for v in client.search_model_versions(f"name='{{name}}'") if v.version != champion)
client.set_registered_model_alias(name, "champion", other)
"""
    env = {key: value for key, value in os.environ.items() if key != "MLFLOW_TRACKING_URI"}
    subprocess.run([sys.executable, "-c", program], check=True, env=env)

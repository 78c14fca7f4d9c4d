"""Command-line processes: runs that are killed and restarted, the UIs after a finished run, and the embedded model."""

import signal
import subprocess
import threading
import time
from datetime import UTC, datetime
from pathlib import Path

import dagster as dg
import httpx
import pyarrow as pa
import pytest
from deltalake import write_deltalake

from batch_assets.lake.contracts import AI_QUERY_INFERENCE, BATCH_INFERENCE, PROD_DATA, SUMMARY_QUALITY, Table
from batch_assets.lake.lake import Lake
from batch_assets.resources.endpoints import EndpointsResource
from batch_assets_tests.conftest import BATCH_ASSETS, batch_assets, environment, settings_for, write_json_lines
from batch_assets_tests.servers import ChatServer, completion, passing_on_to
from batch_assets_tests.test_graph import Graph, tables_of, write_endpoints
from tools.dagster_ui import graphql
from tools.ports import free_port

pytestmark = pytest.mark.proof


@pytest.fixture(scope="module")
def data(tmp_path_factory, documents) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_json_lines(folder / "a.jsonl", documents[:6])
    write_json_lines(folder / "b.jsonl", documents[6:12])
    return folder


@pytest.fixture(scope="module")
def server():
    with ChatServer(lambda body, n: completion("Answer to " + body["messages"][0]["content"][-30:])) as server:
        yield server


@pytest.fixture(scope="module")
def environment_for(data, server, t5_folder):
    def make(home: Path, **values: str) -> dict[str, str]:
        home.mkdir(parents=True, exist_ok=True)
        endpoints = home / "endpoints.toml"
        endpoints.write_text(f'[endpoints.counted]\nbase_url = "{server.url}"\nmodel = "m"\napi_key_env = "SOME_KEY"')
        return {"SOME_KEY": KEY} | environment(
            home,
            MODEL=str(t5_folder),
            DATASET=str(data),
            EVALUATION_ROWS="3",
            ENDPOINTS=str(endpoints),
            ENDPOINT="counted",
            SPARK_MASTER="local[2,4]",
            **values,
        )

    return make


KEY = "open-sesame-4711"


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, environment_for) -> Path:
    """A home after one undisturbed run."""
    home = tmp_path_factory.mktemp("undisturbed") / "home"
    run = batch_assets("run", env=environment_for(home))
    assert run.returncode == 0, run.stdout + run.stderr
    for part in ("expert summary", "ROUGE-1", "m4_1_batch_inference", "MLflow", "make ui", "Done in"):
        assert part in run.stdout
    assert "Traceback" not in run.stdout + run.stderr
    assert KEY not in run.stdout + run.stderr
    return home


def kill_at(marker: str, env: dict[str, str]) -> bool:
    """Start a run and kill -9 it when it prints the marker; False if it never prints it."""
    process = subprocess.Popen([*BATCH_ASSETS, "run"], env=env, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    for line in process.stdout:
        if marker in line.decode():
            process.send_signal(signal.SIGKILL)
            process.wait()
            return True
    process.wait()
    return False


MOMENTS = [
    "preparing the checkpoint",
    "logging the model",
    "prod_data             batch a",
    "champion_model        version 1",
    "ai_query_inference    batch a",
    "batch_inference       batch a: 6 rows committed",
    "summary_quality       batch a",
]


def test_a_repeatedly_killed_run_completes_with_the_same_tables(tmp_path, undisturbed, environment_for, server):
    home = tmp_path / "home"
    env = environment_for(home)
    asked = len(server.requests)
    for marker in MOMENTS:
        assert kill_at(marker, env), marker
    run = batch_assets("run", env=env)
    assert run.returncode == 0, run.stdout + run.stderr
    assert tables_of(home / "lake") == tables_of(undisturbed / "lake")
    # Requests answered before a kill are not repeated, except those in flight.
    assert len(server.requests) - asked <= 12 + 6
    assert "batch_inference       batch a: up to date" in run.stdout


def batches(lake: Lake, table: Table) -> set[str]:
    return set(lake.open(table).batches())


def append_row(lake: Lake) -> None:
    """Append a row as another writer would."""
    row = {"id": ["x"], "document": ["A row from another writer."], "summary": pa.array([None], pa.string())}
    row |= {"batch": ["theirs"], "source": ["theirs"]}
    row["landed_at"] = pa.array([datetime.now(UTC)], pa.timestamp("us", tz="UTC"))
    write_deltalake(lake.table_uri(PROD_DATA), pa.table(row), mode="append")


def test_the_uis_show_the_state_and_materialize_a_batch_and_new_data_is_scored_automatically(
    undisturbed, environment_for
):
    ports = {"UI_PORT": str(free_port()), "MLFLOW_PORT": str(free_port())}
    env = environment_for(undisturbed, RESCORE="all", SETTLE_SECONDS="0", SENSOR_SECONDS="3", **ports)
    ui = subprocess.Popen([*BATCH_ASSETS, "ui"], env=env, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    dagster, mlflow = (f"http://127.0.0.1:{ports[name]}" for name in ("UI_PORT", "MLFLOW_PORT"))
    lines: list[str] = []
    opened = threading.Event()

    def read() -> None:
        for line in ui.stdout:
            lines.append(line)
            if "Ctrl-C" in line:
                opened.set()

    threading.Thread(target=read, daemon=True).start()
    try:
        assert opened.wait(120), lines
        assert any(dagster in line for line in lines)
        assert any(mlflow in line for line in lines)

        rows = [{"id": str(number), "document": f"Document {number}, dropped."} for number in (1, 2)]
        write_json_lines(undisturbed / "landing" / "dropped.jsonl", rows)
        lake = Lake(str(undisturbed / "lake"))

        nodes = graphql(dagster, "{assetNodes{assetKey{path} isMaterializable groupName}}")["assetNodes"]
        assert len(nodes) == 11
        assert sum(node["isMaterializable"] for node in nodes) == 8
        runs = graphql(dagster, "{runsOrError{... on Runs{results{status jobName}}}}")["runsOrError"]["results"]
        assert {"status": "SUCCESS", "jobName": "materialize_all"} in runs

        metadata = graphql(
            dagster,
            """query($k: AssetKeyInput!){assetNodeOrError(assetKey: $k){
            ... on AssetNode{assetMaterializations(limit: 1){metadataEntries{label ... on UrlMetadataEntry{url}}}}}}""",
            k={"path": ["logged_model"]},
        )["assetNodeOrError"]["assetMaterializations"][0]["metadataEntries"]
        page = next(entry["url"] for entry in metadata if entry["label"] == "mlflow_run")
        run_id = page.rsplit("/", 1)[1]
        answer = httpx.get(f"{mlflow}/ajax-api/2.0/mlflow/runs/get", params={"run_id": run_id}, timeout=30)
        assert answer.json()["run"]["info"]["run_id"] == run_id

        launched = graphql(
            dagster,
            """mutation($e: ExecutionParams!){launchPipelineExecution(executionParams: $e){__typename
            ... on LaunchRunSuccess{run{runId}} ... on PythonError{message} ... on InvalidSubsetError{message}}}""",
            e={
                "selector": {
                    "repositoryName": "__repository__",
                    "repositoryLocationName": "batch_assets",
                    "jobName": "__ASSET_JOB",
                    "assetSelection": [{"path": ["summary_quality"]}, {"path": ["batch_inference"]}],
                    "assetCheckSelection": [],
                },
                "runConfigData": {},
                "mode": "default",
                "executionMetadata": {"tags": [{"key": "dagster/partition", "value": "b"}]},
            },
        )["launchPipelineExecution"]
        assert launched["__typename"] == "LaunchRunSuccess", launched
        deadline = time.monotonic() + 180
        while "dropped" not in batches(lake, PROD_DATA):
            assert time.monotonic() < deadline
            time.sleep(0.1)
        append_row(lake)
        status = ""
        while status not in {"SUCCESS", "FAILURE", "CANCELED"} and time.monotonic() < deadline:
            query = "query($r: ID!){runOrError(runId: $r){... on Run{status}}}"
            status = graphql(dagster, query, r=launched["run"]["runId"])["runOrError"]["status"]
            time.sleep(0.5)
        assert status == "SUCCESS"

        deadline = time.monotonic() + 180
        expected = {"a": 6, "b": 6, "dropped": 2, "theirs": 1}
        while (found := batches(lake, SUMMARY_QUALITY)) != set(expected):
            assert time.monotonic() < deadline, found
            time.sleep(0.5)
        scored = lake.open(BATCH_INFERENCE)
        assert {batch: scored.rows(batch) for batch in scored.batches()} == expected
        assert batches(lake, AI_QUERY_INFERENCE) == set(expected)
        runs = graphql(dagster, "{runsOrError{... on Runs{results{status jobName}}}}")["runsOrError"]["results"]
        assert {"land_batches", "score_batches"} <= {run["jobName"] for run in runs}
        assert "FAILURE" not in {run["status"] for run in runs}
    finally:
        ui.terminate()
        ui.wait(60)
    for url in (dagster, mlflow):
        with pytest.raises(httpx.TransportError):
            httpx.get(url, timeout=2)


def test_the_embedded_default_sends_one_request_per_row(home, smollm2_checkpoints, spark):
    home.mkdir()
    (home / "checkpoints").symlink_to(smollm2_checkpoints)
    embedded = EndpointsResource()
    try:
        with passing_on_to(embedded.get("smollm2").base_url) as server:
            # The conversion takes longest and is tested with the engines.
            small = {
                "limit": 3,
                "batch_rows": 2,
                "max_length": 8,
                "evaluation_rows": 2,
                "ai_query_limit": 1,
            }
            # The same timeouts as the embedded endpoint, which allows for busy or suspended machines.
            patient = "timeout_seconds = 1800\ndeadline_seconds = 1800\nparameters = { max_tokens = 16 }"
            endpoints = write_endpoints(home, server, patient)
            settings = settings_for(home, engine="transformers", endpoints=endpoints, endpoint="counted", **small)
            graph = Graph(settings, server, dg.DagsterInstance.ephemeral())
            assert graph.run() == []
            assert len(server.requests) == 1 + 1
    finally:
        embedded.teardown_after_execution(None)
    assert [len(graph.rows(BATCH_INFERENCE, f"aclsum-test-000{n}")) for n in (1, 2)] == [2, 1]
    for row in graph.rows(BATCH_INFERENCE, "aclsum-test-0001"):
        assert row["generated_summary"]
        assert row["finish_reason"] in {"stop", "length"}
        assert 0 < row["output_tokens"] <= 8
    for row in graph.rows(AI_QUERY_INFERENCE, "aclsum-test-0001"):
        assert row["generated_summary"]
        assert row["prompt_tokens"] > 20

"""The command line as a user has it: processes of their own, killed processes, the UIs."""

import json
import signal
import socket
import subprocess
import threading
import time
from datetime import UTC, datetime
from pathlib import Path

import httpx
import pyarrow as pa
import pytest
from click.testing import CliRunner
from deltalake import write_deltalake

from batch_assets.cli import main
from batch_assets.lake.lake import Lake
from batch_assets.lake.tables import AI_QUERY_INFERENCE, BATCH_INFERENCE, PROD_DATA, SUMMARY_QUALITY, Table
from batch_assets.settings import PREFIX
from batch_assets_tests.conftest import BATCH_ASSETS, environment, write_json_lines
from batch_assets_tests.servers import ChatServer, completion
from tools.dagster_ui import graphql
from tools.ports import free_port

WHEN = {"landed_at", "scored_at", "created_at", "measured_at"}
TABLES = (PROD_DATA, BATCH_INFERENCE, AI_QUERY_INFERENCE, SUMMARY_QUALITY)


def batch_assets(*arguments: str, env: dict[str, str], timeout: int = 300) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*BATCH_ASSETS, *arguments], env=env, capture_output=True, text=True, timeout=timeout, check=False
    )


def refused(run: subprocess.CompletedProcess[str]) -> str:
    """The one line of a command that was refused."""
    assert run.returncode == 2, run.stdout + run.stderr
    lines = [line for line in run.stderr.splitlines() if line.startswith("batch-assets: ")]
    assert len(lines) == 1, run.stderr
    assert "Traceback" not in run.stdout + run.stderr
    return lines[0]


def tables(home: Path) -> dict:
    """All rows of all tables, but for the times at which they were written."""
    lake = Lake(str(home / "lake"))
    return {
        (table.name, batch): sorted(
            json.dumps({k: v for k, v in row.items() if k not in WHEN}, default=str)
            for part in lake.open(table).read(batch)
            for row in part.to_pylist()
        )
        for table in TABLES
        for batch in lake.open(table).batches()
    }


def batches(lake: Lake, table: Table) -> set[str]:
    return set(lake.open(table).batches())


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"MODLE": "x"}, "Did you mean BATCH_ASSETS_MODEL?"),
        ({"ENGINE": "warp"}, "BATCH_ASSETS_ENGINE='warp' can't be used"),
        ({"MODEL": "./nowhere"}, "there is no model folder"),
        ({"MODEL": "~nobody-here/model"}, "there is no model folder"),
        ({"DATASET": "nowhere/*.csv"}, "no file of a data set matches"),
        ({"DATASET": "~nobody-here/x.csv"}, "no file of a data set matches"),
        ({"SPLIT": "dev"}, "has no split 'dev'"),
        ({"ENDPOINT": "gpt"}, "there is no endpoint 'gpt'"),
        ({"ENDPOINTS": "/nowhere.toml"}, "can't be read"),
        ({"MIN_LENGTH": "100"}, "more than the longest summary"),
        ({"HOME": "/dev/null/x"}, "/dev/null"),
        ({"DTYPE": "int8", "ENGINE": "transformers"}, "DTYPE int8 needs the engine ctranslate2 or openvino"),
    ],
)
def test_bad_input_is_one_clear_line_and_status_2_before_any_asset_is_touched(
    home, smollm2_checkpoints, monkeypatch, values, message
):
    home.mkdir()
    (home / "checkpoints").symlink_to(smollm2_checkpoints)
    for key, value in {"HOME": str(home), **values}.items():
        monkeypatch.setenv(f"{PREFIX}{key}", value)
    run = CliRunner().invoke(main, ["run"])
    (line,) = run.stderr.splitlines()
    assert (run.exit_code, line[:14]) == (2, "batch-assets: ")
    assert message in line
    assert not (home / "lake").exists()
    assert not (home / "dagster").exists()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"MODEL": "t5-small"}, "BATCH_ASSETS_MODEL=smollm2, which needs no hub"),
        ({"MODEL": "not a/name"}, "BATCH_ASSETS_MODEL=smollm2, which needs no hub"),
        # The library asks the hub again for half a minute.
        pytest.param(
            {"DATASET": "EdinburghNLP/xsum"}, "BATCH_ASSETS_DATASET=aclsum, which needs no hub", marks=pytest.mark.proof
        ),
    ],
)
def test_a_hub_that_is_out_of_reach_is_one_clear_line_that_names_what_needs_none(
    home, smollm2_checkpoints, values, message
):
    home.mkdir()
    (home / "checkpoints").symlink_to(smollm2_checkpoints)
    env = {**environment(home, **values), "HF_HUB_OFFLINE": "0", "HF_ENDPOINT": "http://127.0.0.1:9"}
    assert message in refused(batch_assets("run", env=env))
    assert not (home / "lake").exists()


def test_a_data_set_without_documents_is_refused_with_the_columns_it_has(tmp_path, home):
    path = write_json_lines(tmp_path / "a.jsonl", [{"id": "1", "article": "x", "highlights": "y"}])
    line = refused(batch_assets("run", env=environment(home, DATASET=str(path))))
    assert "has no column 'document' (columns: article, highlights, id)" in line


def test_missing_java_is_refused(home):
    env = {**environment(home), "JAVA_HOME": "/nowhere"}
    assert "install Java 17" in refused(batch_assets("run", env=env))


@pytest.mark.parametrize("setting", ["UI_PORT", "MLFLOW_PORT"])
def test_a_port_that_is_taken_is_refused(home, setting):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        other = {"UI_PORT", "MLFLOW_PORT"} - {setting}
        env = environment(home, **{setting: str(port), other.pop(): str(free_port())})
        assert f"port {port} is taken" in refused(batch_assets("ui", env=env))


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
    """A home after one run that nobody disturbed."""
    home = tmp_path_factory.mktemp("undisturbed") / "home"
    run = batch_assets("run", env=environment_for(home))
    assert run.returncode == 0, run.stdout + run.stderr
    for part in ("expert summary", "ROUGE-1", "m4_1_batch_inference", "MLflow", "make ui", "Done in"):
        assert part in run.stdout
    assert "Traceback" not in run.stdout + run.stderr
    assert KEY not in run.stdout + run.stderr
    return home


def kill_at(marker: str, env: dict[str, str]) -> bool:
    """Start a run, kill -9 it when it prints the marker; False where it never did."""
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


@pytest.mark.proof
def test_a_run_killed_again_and_again_completes_with_the_same_tables(tmp_path, undisturbed, environment_for, server):
    home = tmp_path / "home"
    env = environment_for(home)
    asked = len(server.requests)
    for marker in MOMENTS:
        assert kill_at(marker, env), marker
    run = batch_assets("run", env=env)
    assert run.returncode == 0, run.stdout + run.stderr
    assert tables(home) == tables(undisturbed)
    # What was answered before a kill is not asked for again, but for what was in flight.
    assert len(server.requests) - asked <= 12 + 6
    assert "batch_inference       batch a: up to date" in run.stdout


def test_a_key_is_sent_and_found_nowhere_else(undisturbed, environment_for, server):
    assert {headers["Authorization"] for _, headers in server.requests} == {f"Bearer {KEY}"}
    statement = "EXPLAIN_NOT"  # what Spark says of a plan comes with an error
    failed = batch_assets(
        "query", f"SELECT {statement}, ai_gen(id) FROM m4_1_prod_data", env=environment_for(undisturbed)
    )
    assert (failed.returncode, statement in failed.stderr) == (2, True)
    assert KEY not in failed.stdout + failed.stderr
    files = [path for path in undisturbed.rglob("*") if path.is_file()]
    assert {"m4_1_prod_data", "mlflow.db"} <= {part for path in files for part in path.parts}
    assert [path for path in files if KEY.encode() in path.read_bytes()] == []


def test_a_second_run_has_nothing_to_do_and_shows_the_same_figures(undisturbed, environment_for, server):
    report = undisturbed / "reports" / "quality_report.html"
    before, asked, written = tables(undisturbed), len(server.requests), report.stat().st_mtime_ns
    again = batch_assets("run", env=environment_for(undisturbed))
    assert again.returncode == 0, again.stdout + again.stderr
    assert "so there is nothing to do" in again.stdout
    for part in ("expert summary", "ROUGE-1", "m4_1_batch_inference", "Done in"):
        assert part in again.stdout
    assert "batch_inference       batch" not in again.stdout
    assert (tables(undisturbed), len(server.requests), report.stat().st_mtime_ns) == (before, asked, written)


def test_a_second_run_at_the_same_time_is_refused(tmp_path, environment_for):
    env = environment_for(tmp_path / "home")
    first = subprocess.Popen([*BATCH_ASSETS, "run"], env=env, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    try:
        assert first.stdout.readline()
        assert "another 'batch-assets run' is working" in refused(batch_assets("run", env=env))
    finally:
        first.kill()
        first.wait()


def append_row(lake: Lake) -> None:
    """Append a row as another writer would."""
    row = {"id": ["x"], "document": ["A row of somebody else."], "summary": pa.array([None], pa.string())}
    row |= {"batch": ["theirs"], "source": ["theirs"]}
    row["landed_at"] = pa.array([datetime.now(UTC)], pa.timestamp("us", tz="UTC"))
    write_deltalake(lake.table_uri(PROD_DATA), pa.table(row), mode="append")


@pytest.mark.proof
def test_the_uis_show_the_state_a_batch_is_materialized_from_there_and_new_data_is_scored_by_itself(
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
            ... on LaunchRunSuccess{run{runId}} ... on PythonError{message}}}""",
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


def test_upkeep_says_what_it_did_to_each_table(home):
    from batch_assets_tests.test_lake import stage_rows

    env = environment(home)
    assert "no tables" in batch_assets("upkeep", env=env).stdout
    lake = Lake(str(home / "lake"))
    snapshot = lake.open(PROD_DATA)
    snapshot.replace("a", stage_rows(snapshot, "a", ["one"]) + stage_rows(snapshot, "a", ["two"]), {})
    run = batch_assets("upkeep", env=env)
    assert run.returncode == 0, run.stderr
    assert run.stdout.splitlines() == [
        "m4_1_prod_data: 2 files became 1, 0 unneeded files removed, checkpoint written",
        "0 files of abandoned completions removed",
    ]
    assert "BATCH_ASSETS_VACUUM_HOURS" in refused(batch_assets("upkeep", env=environment(home, VACUUM_HOURS="0")))

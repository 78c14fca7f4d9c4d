"""The read-only commands, status and doctor, and what commands print for people and for programs."""

import json
import math
import re
import shutil
import subprocess
import sys
import threading
from datetime import date
from decimal import Decimal
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import dagster as dg
import pyarrow as pa
import pytest
from click.testing import CliRunner, Result
from dagster._core.events import AssetObservationData, DagsterEvent, EngineEventData
from deltalake import write_deltalake

from batch_assets.cli import main
from batch_assets.cli.common import print_json, print_table
from batch_assets.graph.partitions import range_tags, register_batches
from batch_assets.lake.contracts import PROD_DATA
from batch_assets.locks import locked
from batch_assets.models.tracking import connect
from batch_assets.operations import doctor
from batch_assets.operations.local_runs import held_pools
from batch_assets.resources.dagster_storage import prepare_dagster_home
from batch_assets.settings import DEFAULT_PIPELINE, PREFIX
from batch_assets_tests.conftest import BATCH_ASSETS, environment, settings_for, write_json_lines
from batch_assets_tests.test_automation import Deployment

KEY = "open-sesame-4711"


@pytest.fixture
def invoke(home, monkeypatch):
    """A function that calls a command with some settings."""

    def call(*arguments: str, **values: str) -> Result:
        for name, value in {"HOME": str(home), **values}.items():
            monkeypatch.setenv(f"{PREFIX}{name}", value)
        # The commands and MLflow set these; this way, they are restored after the test.
        for name in ("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "MLFLOW_HTTP_REQUEST_TIMEOUT"):
            monkeypatch.setenv(name, "1")
        result = CliRunner().invoke(main, arguments)
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        return result

    return call


@pytest.fixture(scope="module")
def dagster_home(tmp_path_factory) -> Path:
    """Dagster's storage without runs, for tests to copy: creating one takes seconds."""
    settings = settings_for(tmp_path_factory.mktemp("dagster"))
    prepare_dagster_home(settings)
    with dg.DagsterInstance.from_config(str(settings.dagster_home)):
        return settings.dagster_home


@pytest.fixture
def deployment(home, dagster_home, monkeypatch):
    """A lake, and Dagster's storage under the home."""
    deployment = Deployment(home, monkeypatch)
    shutil.copytree(dagster_home, deployment.settings.dagster_home)
    with dg.DagsterInstance.from_config(str(deployment.settings.dagster_home)) as instance:
        deployment.instance = instance
        yield deployment


def files(home: Path) -> dict[str, bytes]:
    """All files and folders under the home, with their content."""
    return {str(path): path.read_bytes() if path.is_file() else b"" for path in home.rglob("*")}


def findings(result: Result) -> dict[str, tuple[str, str]]:
    """The last finding for each subject: its level, and what was found with its remedy."""
    found = json.loads(result.stdout)["findings"]
    return {one["what"]: (one["level"], f"{one['found']}: {one['remedy']}") for one in found}


def test_the_doctor_finds_no_problem_in_a_new_home_and_creates_nothing(home, invoke):
    result = invoke("doctor", "--json")
    found = findings(result)
    assert (result.exit_code, {level for level, _ in found.values()}) == (0, {"ok"}), found
    assert "the first run creates it" in found["tracking server"][1]
    assert "not needed" in found["hub"][1]
    assert not home.exists()
    plain = invoke("doctor")
    assert len(plain.stdout.splitlines()) == len(json.loads(result.stdout)["findings"]) + 1
    assert plain.stdout.isascii()


def test_the_doctor_finds_no_problem_in_existing_state_and_changes_no_file(home, deployment, invoke):
    deployment.land("a")
    register_batches(deployment.instance, DEFAULT_PIPELINE, ["a"])
    before = files(home)
    result = invoke("doctor", "--json")
    assert (result.exit_code, files(home) == before) == (0, True), result.stdout
    assert "1 of 5 tables" in findings(result)["tables"][1]


class Server:
    """Answers GET requests with one status; ``requests`` holds the path and key of each."""

    def __init__(self, status: int) -> None:
        self.requests: list[tuple[str, str | None]] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                server.requests.append((self.path, self.headers["Authorization"]))
                self.send_response(status)
                self.send_header("Location", "http://127.0.0.1:9/elsewhere")
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *arguments: object) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}"
        threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True).start()


@pytest.fixture
def servers():
    started = {status: Server(status) for status in (200, 307, 401, 404, 503)}
    yield started
    for server in started.values():
        server.http.shutdown()
        server.http.server_close()


def test_the_doctor_calls_each_endpoint_with_its_own_key_and_reports_problems(tmp_path, invoke, servers, monkeypatch):
    monkeypatch.setenv("GOOD_KEY", KEY)
    monkeypatch.setenv("ODD_KEY", f"{KEY}\nx")
    endpoints = {
        "used": (servers[401].url, "GOOD_KEY"),
        "good": (servers[200].url, "GOOD_KEY"),
        "plain": (servers[404].url, None),
        "unset": (servers[200].url, "NO_SUCH_KEY"),
        "odd": (servers[200].url, "ODD_KEY"),
        "moved": (servers[307].url, "GOOD_KEY"),
        "sick": (servers[503].url, None),
        "gone": ("http://127.0.0.1:9", "GOOD_KEY"),
    }
    file = tmp_path / "endpoints.toml"
    file.write_text(
        "".join(
            f'[endpoints.{name}]\nbase_url = "{url}"\nmodel = "m"\n' + (f'api_key_env = "{key}"\n' if key else "")
            for name, (url, key) in endpoints.items()
        )
    )
    result = invoke("doctor", "--json", ENDPOINTS=str(file), ENDPOINT="used")
    found = {what.removeprefix("endpoint "): finding for what, finding in findings(result).items()}
    assert result.exit_code == 1
    assert {name: found[name][0] for name in endpoints} == {
        "used": "problem", "good": "ok", "plain": "ok", "unset": "warning", "odd": "warning", "moved": "warning",
        "sick": "warning", "gone": "warning",
    }  # fmt: skip
    assert "check the key in GOOD_KEY" in found["used"][1]
    assert "export NO_SUCH_KEY=" in found["unset"][1]
    assert "HTTP headers don't allow" in found["odd"][1]
    assert "start the server" in found["gone"][1]
    assert KEY not in result.output
    assert servers[200].requests == [("/models", f"Bearer {KEY}")]
    assert servers[404].requests == [("/models", None)]


def test_the_doctor_continues_after_a_failed_check(home, invoke, monkeypatch):
    lake = settings_for(home).lake_uri
    write_deltalake(f"{lake}/main/default/{PROD_DATA.name}", pa.table({"text": ["of somebody else"]}))
    (home / "mlflow").mkdir()
    (home / "mlflow" / "mlflow.db").write_text("no database" * 1000)
    (home / "dagster").mkdir()
    (home / "dagster" / "dagster.yaml").write_text("concurrency: [")
    monkeypatch.setenv("JAVA_HOME", "/nowhere")
    before = files(home)
    result = invoke("doctor", "--json", MODEL="./nowhere", DATASET="nowhere/*.csv")
    found = findings(result)
    problems = {what for what, (level, _) in found.items() if level == "problem"}
    assert problems == {
        "java", "model", "data set", "tracking server", f"table {PROD_DATA.name}", "runs"
    }  # fmt: skip
    assert (result.exit_code, files(home) == before) == (1, True)
    assert "install Java 17" in found["java"][1]
    assert "not by batch: move it away" in found[f"table {PROD_DATA.name}"][1]
    assert "file is not a database" in found["tracking server"][1]
    assert "dagster.yaml" in found["runs"][1]


@pytest.mark.parametrize("command", ["doctor", "status"])
def test_an_unreachable_tracking_server_is_reported_quickly_and_without_its_password(invoke, monkeypatch, command):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://me:{KEY}@127.0.0.1:9")
    result = invoke(command, "--json")
    assert result.exit_code == (1 if command == "doctor" else 0)
    assert "the MLflow store http://127.0.0.1:9 can't be reached" in result.stdout
    assert KEY not in result.output
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"postgresql://me:{KEY}@127.0.0.1:9/mlflow")
    result = invoke(command, "--json")
    assert "the MLflow store postgresql://127.0.0.1:9/mlflow can't be reached" in result.stdout
    assert KEY not in result.output


def test_an_unreachable_lake_is_reported_quickly_and_in_plain_text(invoke, monkeypatch):
    for name, value in {"ENDPOINT_URL": "http://127.0.0.1:9", "ALLOW_HTTP": "true", "ACCESS_KEY_ID": "somebody",
                        "SECRET_ACCESS_KEY": KEY, "REGION": "us-east-1"}.items():  # fmt: skip
        monkeypatch.setenv(f"AWS_{name}", value)
    level, found = findings(invoke("doctor", "--json", LAKE="s3://nowhere/lake"))["tables"]
    assert (level, "check BATCH_ASSETS_LAKE" in found, "\x1b" in found) == ("problem", True, False)
    result = invoke("status", LAKE="s3://nowhere/lake")
    assert (result.exit_code, "127.0.0.1:9/nowhere" in result.stderr, "Traceback" in result.output) == (2, True, False)


def test_the_doctor_reports_what_must_be_downloaded_from_the_hub(home, invoke):
    result = invoke("doctor", "--json", MODEL="nobody/nothing", DATASET="EdinburghNLP/xsum")
    found = findings(result)
    assert (result.exit_code, found["model"][0], found["hub"][0], found["memory"][0]) == (1, "problem", "problem", "ok")
    assert "BATCH_ASSETS_MODEL=smollm2" in found["model"][1]
    assert "set BATCH_ASSETS_DATASET to aclsum, which needs no hub" in found["hub"][1]
    (home / "datasets" / "EdinburghNLP___xsum").mkdir(parents=True)
    result = invoke("doctor", "--json", MODEL="smollm2", DATASET="EdinburghNLP/xsum")
    assert findings(result)["hub"] == ("ok", "the data set EdinburghNLP/xsum is already downloaded: ")


@pytest.mark.parametrize(
    ("gibibytes", "level", "remedy"),
    [(5, "ok", ""), (3.5, "warning", "BATCH_ASSETS_SPARK_MASTER=local[1,4]"), (2.2, "problem", "a smaller model")],
)
def test_the_doctor_compares_the_model_with_the_available_memory(home, monkeypatch, gibibytes, level, remedy):
    monkeypatch.setattr(doctor, "available_memory", lambda: int(gibibytes * 1024**3))
    monkeypatch.setattr(doctor, "cores", lambda: 2)
    (finding,) = doctor._memory(settings_for(home, spark_master="local[*,4]"))
    assert (finding.level, remedy in finding.remedy) == (level, True)
    assert "each of 2 workers 0.5 GiB of weights in float32" in finding.found


def add_run(instance: dg.DagsterInstance, name: str, batches: list[str], status: dg.DagsterRunStatus) -> dg.DagsterRun:
    run = dg.DagsterRun("score_batches", run_id=name, status=status, tags=range_tags([batches[0], batches[-1]]))
    instance.add_run(run)
    return run


def test_the_doctor_reports_dead_runs_held_pools_and_an_active_run_and_frees_none(home, deployment, invoke):
    instance = deployment.instance
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    dead = add_run(instance, "dead", ["a"], dg.DagsterRunStatus.STARTED)
    noted = EngineEventData({"pid": dg.MetadataValue.text(str(gone.pid))})
    instance.report_engine_event("Executing steps in process", dead, noted)
    add_run(instance, "over", ["a"], dg.DagsterRunStatus.FAILURE)
    instance.event_log_storage.set_concurrency_slots("spark", 1)
    instance.event_log_storage.claim_concurrency_slot("spark", "over", "step")
    with locked(home / ".run.lock"):
        result = invoke("doctor", "--json")
    found = [one for one in json.loads(result.stdout)["findings"] if one["level"] != "ok"]
    assert [(one["level"], one["what"]) for one in found] == [
        ("warning", "lock"), ("problem", "runs"), ("warning", "runs"),
    ]  # fmt: skip
    assert ["run dead" in one["found"] for one in found] == [False, True, False]
    assert "run over has ended but still holds the pool spark" in found[2]["found"]
    assert instance.get_run_by_id("dead").status == dg.DagsterRunStatus.STARTED
    assert instance.event_log_storage.get_concurrency_info("spark").claimed_slots
    assert held_pools(instance) == []
    assert not instance.event_log_storage.get_concurrency_info("spark").claimed_slots
    assert "lock" not in findings(invoke("doctor", "--json"))


def test_status_describes_a_new_home_and_creates_nothing(home, invoke):
    result = invoke("status")
    assert result.exit_code == 0
    assert result.stdout.splitlines() == [
        "no batches yet: run 'batch-assets run', or land files", "no champion yet", "no runs yet",
    ]  # fmt: skip
    assert not home.exists()
    prepare_dagster_home(settings_for(home))  # a command that dies before its first run
    before = files(home)
    assert json.loads(invoke("status", "--json").stdout)["batches"] == []
    assert invoke("doctor").exit_code == 0
    assert files(home) == before


def test_status_shows_the_state_of_every_batch(home, deployment, invoke):
    instance = deployment.instance
    for batch in ("bad", "done", "half", "late", "mixed", "new", "old", "queued", "worked"):
        deployment.land(batch)
    register_batches(instance, DEFAULT_PIPELINE, [*deployment.lake.open(PROD_DATA).batches(), "awaited", "emptied"])
    for batch in ("done", "late"):
        deployment.score(batch, rows=2)
    deployment.score("old", rows=1, no_text=1)
    deployment.land("old", rows=3)
    add_run(instance, "r0", ["half"], dg.DagsterRunStatus.FAILURE)
    deployment.score("half", rows=2)
    failed_answers = dg.AssetObservation("ai_query_inference", partition="half", metadata={"failed": "no answer"})
    event = DagsterEvent("ASSET_OBSERVATION", "score_batches", event_specific_data=AssetObservationData(failed_answers))
    instance.report_dagster_event(event, "r0")
    add_run(instance, "r1", ["late", "mixed"], dg.DagsterRunStatus.FAILURE)
    add_run(instance, "r2", ["bad"], dg.DagsterRunStatus.FAILURE)
    add_run(instance, "r3", ["queued"], dg.DagsterRunStatus.NOT_STARTED)
    add_run(instance, "r4", ["worked"], dg.DagsterRunStatus.STARTED)
    deployment.score("mixed", rows=2)
    deployment.finish("mixed")
    deployment.land("emptied")
    deployment.score("emptied", rows=2)
    deployment.land("emptied", rows=0)
    deployment.score("emptied")
    before = files(home)
    result = invoke("status", "--json")
    assert (result.exit_code, files(home) == before) == (1, True)
    found = json.loads(result.stdout)
    assert {one["batch"]: one["state"] for one in found["batches"]} == {
        "awaited": "empty", "bad": "failed", "done": "scored", "emptied": "empty", "half": "failed", "late": "failed",
        "mixed": "scored", "new": "landed", "old": "stale", "queued": "queued", "worked": "running",
    }  # fmt: skip
    assert found["counts"] == {
        "empty": 2, "failed": 3, "landed": 1, "queued": 1, "running": 1, "scored": 2, "stale": 1,
    }  # fmt: skip
    assets = {one["batch"]: list(one["assets"].values()) for one in found["batches"]}
    assert assets["half"] == ["done", "done", "failed", "waiting"]
    assert assets["bad"] == ["done", "failed", "waiting", "waiting"]
    assert assets["mixed"] == ["done"] * 4
    old = next(one for one in found["batches"] if one["batch"] == "old")
    figures = ("documents", "rejected", "summaries", "errors", "no_text", "model_version")
    assert [old[key] for key in figures] == [3, 0, 1, 0, 1, 1]
    runs = [(run["run_id"], run["status"], run["batches"]) for run in found["runs"]]
    assert runs[0] == ("r4", "STARTED", ["worked"])
    assert runs[3] == ("r1", "FAILURE", ["late", "mixed"])
    plain = invoke("status").stdout
    assert re.search(r"^old +stale +3 +0 +1 +0 +1 +1 +\d{4}-", plain, re.MULTILINE)
    assert (
        "batch half: prod_data done, batch_inference done, ai_query_inference failed, summary_quality waiting" in plain
    )
    assert plain.isascii()


def test_try_refuses_a_document_without_text(home, invoke):
    result = invoke("try", " \u200b\n")
    assert (result.exit_code, result.stderr) == (2, "batch-assets: the document has no text\n")
    assert not home.exists()


@pytest.mark.parametrize(
    ("arguments", "values", "has_traceback"),
    [
        (("try", " "), {}, False),
        (("try", " ", "--debug"), {}, True),
        (("--debug", "try", " "), {}, True),
        (("try", " "), {"DEBUG": "1"}, True),
    ],
)
def test_an_error_is_one_line_unless_debugging(home, invoke, arguments, values, has_traceback):
    result = invoke(*arguments, **values)
    assert result.stderr.splitlines()[-1] == "batch-assets: the document has no text"
    assert ("Traceback" in result.stderr) == has_traceback
    assert has_traceback or len(result.stderr.splitlines()) == 1


def test_a_lost_file_is_not_reported_as_a_mistake_of_the_user(home, monkeypatch):
    monkeypatch.setenv(f"{PREFIX}HOME", str(home))
    monkeypatch.setattr("batch_assets.cli.state.load_all", lambda: open(home / "lost"))  # noqa: PTH123, SIM115
    result = CliRunner().invoke(main, ["status"])
    assert isinstance(result.exception, FileNotFoundError)


def test_status_shows_the_champion_its_score_and_its_start_time(deployment, invoke):
    client = connect(deployment.settings)
    name = deployment.settings.registered_model
    run = client.create_run(client.get_experiment_by_name("batch_assets").experiment_id)
    client.log_metric(run.info.run_id, "rouge1", 0.25)
    client.create_registered_model(name)
    for _ in range(2):
        client.create_model_version(name, "file:///nowhere", run.info.run_id)
    client.set_registered_model_alias(name, "champion", "2")
    for number in ("1", "2"):
        tags = {"dagster/data_version": number}
        deployment.instance.report_runless_asset_event(dg.AssetMaterialization("champion_model", tags=tags))
    before = files(deployment.settings.home)
    champion = json.loads(invoke("status", "--json").stdout)["champion"]
    tracking = findings(invoke("doctor", "--json"))["tracking server"]
    assert (tracking[0], "the experiment batch_assets exists" in tracking[1]) == ("ok", True)
    assert files(deployment.settings.home) == before
    since = champion.pop("since")
    assert (champion.pop("model"), champion.pop("pipeline")) == (name, "summaries")
    assert champion == {"version": 2, "score_name": "rouge1", "score": 0.25}
    assert f"version 2 of {name}, rouge1 0.250, since {since}" in invoke("status").stdout
    client.set_registered_model_alias(name, "champion", "1")
    assert json.loads(invoke("status", "--json").stdout)["champion"]["since"] is None
    client.set_registered_model_alias(name, "previous", "2")
    back = invoke("rollback", "--json")
    assert json.loads(back.stdout) == {"model": name, "champion": 2}
    assert back.stderr.startswith(f"version 2 of {name} is the champion again")


def test_status_only_counts_scored_batches_if_there_are_many(deployment, invoke):
    names = [f"b{number:02}" for number in range(24)]
    for name in names:
        deployment.land(name, rows=1)
    for name in names[:2]:
        deployment.score(name)
    plain = invoke("status").stdout
    assert "24 batches: 22 landed, 2 scored" in plain
    assert re.findall(r"^b\d\d", plain, re.MULTILINE) == names[2:22]
    assert "4 more batches are not shown" in plain
    assert len(json.loads(invoke("status", "--json").stdout)["batches"]) == 24


def test_landing_manually_counts_documents_and_rejection_reasons(tmp_path, home, invoke):
    def land(*arguments: str) -> subprocess.CompletedProcess[str]:
        # In its own process: Dagster takes over the output streams of a process that executes a run.
        command = [*BATCH_ASSETS, "land", str(file), *arguments]
        return subprocess.run(command, env=environment(home), capture_output=True, text=True)

    rows = [{"id": "1", "document": "one"}, {"id": "1", "document": "two"}, {"text": "x"}, {"text": "y"}]
    file = write_json_lines(tmp_path / "a.jsonl", rows)
    result = land("--json")
    reasons = {"there is no field 'document'": 2, "the id '1' is in this batch already": 1}
    landed = [{"batch": "a", "documents": 1, "rejected": 3, "reasons": reasons}]
    assert json.loads(result.stdout) == {"batches": landed, "failed": []}
    assert "1 documents landed, 3 records rejected" in result.stderr
    plain = land().stdout.splitlines()
    assert plain[-1].split(maxsplit=3)[:3] == ["a", "1", "3"]
    assert "2 x there is no field 'document'; 1 x the id '1'" in plain[-1]
    nothing = invoke("rescore", "--since", "2126-01-31", "--json")
    assert json.loads(nothing.stdout) == {"batches": [], "failed": []}
    assert "0 documents in 0 batches" in nothing.stderr
    unnamed = invoke("rescore", "--batches", "", "--yes")
    assert (unnamed.exit_code, "has no batch ''" in unnamed.stderr) == (2, True)


def test_values_that_json_cannot_represent_are_still_printed_as_json(capsys):
    print_json({"a": [math.nan, {date(2026, 1, 31): b"\x00"}], "b": Decimal("1.5"), "c": (True, None, 2)})
    assert json.loads(capsys.readouterr().out) == {
        "a": ["nan", {"2026-01-31": "AA=="}],
        "b": "1.5",
        "c": [True, None, 2],
    }


def test_control_characters_in_a_document_do_not_reach_the_terminal(capsys):
    print_table(["text"], [["a\x1b[31m\x07\x9b2J\tb"]])
    assert capsys.readouterr().out.splitlines()[1] == "a\ufffd[31m\ufffd\ufffd2J b"


@pytest.mark.parametrize("name", sorted(main.commands))
def test_the_help_of_every_command_shows_its_exit_status_and_an_example(name):
    shown = CliRunner().invoke(main, [name, "--help"]).stdout
    assert "Exit status: 0" in " ".join(shown.split())
    assert re.search(rf"^  (BATCH_ASSETS_\S+ )?batch-assets {name}\b", shown, re.MULTILINE)

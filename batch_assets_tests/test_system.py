"""What the command line refuses, and the messages it prints."""

import socket
import subprocess

import pytest
from click.testing import CliRunner, Result

from batch_assets.cli import main
from batch_assets.lake.contracts import PROD_DATA
from batch_assets.lake.lake import Lake
from batch_assets.locks import locked
from batch_assets.settings import PREFIX
from batch_assets_tests.conftest import BATCH_ASSETS, environment, write_json_lines
from tools.ports import free_port


@pytest.fixture
def command(home, t5_folder, monkeypatch):
    """A function that runs a command in this process with settings; the result includes the output."""

    def run(*words: str, **settings: str) -> Result:
        for key, value in {"HOME": str(home), "MODEL": str(t5_folder), **settings}.items():
            monkeypatch.setenv(f"{PREFIX}{key}", value)
        return CliRunner().invoke(main, words)

    return run


def refused(run: Result) -> str:
    """The single error line of a refused command."""
    assert run.exit_code == 2, run.output
    (line,) = run.stderr.splitlines()
    assert line.startswith("batch-assets: ")
    return line


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"MODLE": "x"}, "Did you mean BATCH_ASSETS_MODEL?"),
        ({"ENGINE": "warp"}, "BATCH_ASSETS_ENGINE='warp' is invalid"),
        ({"MODEL": "./nowhere"}, "there is no model folder"),
        ({"MODEL": "~nobody-here/model"}, "there is no model folder"),
        ({"DATASET": "nowhere/*.csv"}, "no file matches"),
        ({"DATASET": "~nobody-here/x.csv"}, "no file matches"),
        ({"SPLIT": "dev"}, "has no split 'dev'"),
        ({"ENDPOINT": "gpt"}, "there is no endpoint 'gpt'"),
        ({"ENDPOINTS": "/nowhere.toml"}, "can't be read"),
        ({"MIN_LENGTH": "100"}, "above the maximum length"),
        ({"HOME": "/dev/null/x"}, "/dev/null"),
        ({"DTYPE": "int8", "ENGINE": "transformers"}, "DTYPE int8 needs the engine ctranslate2 or openvino"),
    ],
)
def test_bad_input_is_refused_with_one_clear_line_and_status_2_before_any_asset_is_touched(
    command, home, values, message
):
    assert message in refused(command("run", **values))
    assert not (home / "lake").exists()
    assert not (home / "dagster").exists()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"MODEL": "t5-small"}, "BATCH_ASSETS_MODEL=smollm2"),
        ({"MODEL": "not a/name"}, "BATCH_ASSETS_MODEL=smollm2"),
        # The library retries the hub for half a minute.
        pytest.param({"DATASET": "EdinburghNLP/xsum"}, "BATCH_ASSETS_DATASET=aclsum", marks=pytest.mark.proof),
    ],
)
def test_an_unreachable_hub_is_reported_in_one_clear_line_that_names_an_offline_alternative(
    home, t5_folder, values, message
):
    # A separate process, because the library reads the hub's address at import.
    env = {**environment(home, **{"MODEL": str(t5_folder), **values}), "HF_HUB_OFFLINE": "0"}
    env["HF_ENDPOINT"] = "http://127.0.0.1:9"
    run = subprocess.run([*BATCH_ASSETS, "run"], env=env, capture_output=True, text=True, check=False)
    lines = [line for line in run.stderr.splitlines() if line.startswith("batch-assets: ")]
    assert (run.returncode, len(lines), "Traceback" in run.stderr) == (2, 1, False), run.stderr
    assert message in lines[0]
    assert not (home / "lake").exists()


def test_a_data_set_without_a_document_column_is_refused_with_a_list_of_its_columns(tmp_path, command):
    path = write_json_lines(tmp_path / "a.jsonl", [{"id": "1", "article": "x", "highlights": "y"}])
    line = refused(command("run", DATASET=str(path)))
    assert "has no column 'document' (columns: article, highlights, id)" in line


def test_missing_java_is_refused(command, monkeypatch):
    monkeypatch.setenv("JAVA_HOME", "/nowhere")
    assert "install Java 17" in refused(command("run"))


@pytest.mark.parametrize("setting", ["UI_PORT", "MLFLOW_PORT"])
def test_a_port_in_use_is_refused(command, setting):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        other = {"UI_PORT", "MLFLOW_PORT"} - {setting}
        line = refused(command("ui", **{setting: str(port), other.pop(): str(free_port())}))
    assert f"port {port} is in use" in line


def test_a_second_concurrent_run_is_refused(command, home):
    with locked(home / ".run.lock"):
        assert "another 'batch-assets run' is running" in refused(command("run"))


def test_upkeep_reports_what_it_did_to_each_table(command, home):
    from batch_assets_tests.test_lake import stage_rows

    assert "no tables" in command("upkeep").stdout
    lake = Lake(str(home / "lake"))
    snapshot = lake.open(PROD_DATA)
    snapshot.replace("a", stage_rows(snapshot, "a", ["one"]) + stage_rows(snapshot, "a", ["two"]), {})
    run = command("upkeep")
    assert run.exit_code == 0, run.output
    assert run.stdout.splitlines() == [
        "m4_1_prod_data: compacted 2 files into 1, removed 0 unneeded files, wrote a checkpoint",
        "removed 0 files of abandoned completions",
    ]
    assert "BATCH_ASSETS_VACUUM_HOURS" in refused(command("upkeep", VACUUM_HOURS="0"))

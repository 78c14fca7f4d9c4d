"""Shared state: a lake, landing folder and MLflow artifacts in a bucket, and compose.yaml."""

import re
import subprocess
import sys
import threading
from collections import Counter
from importlib.util import find_spec
from pathlib import Path
from zipfile import ZipFile

import boto3
import click
import pytest
import yaml
from botocore.exceptions import ClientError
from click.testing import CliRunner

from batch_assets.cli import main
from batch_assets.lake.contracts import BATCH_INFERENCE, PROD_DATA, SUMMARY_QUALITY
from batch_assets.lake.lake import Lake
from batch_assets.lake.writable_table import ConcurrentCommitError
from batch_assets.resources.dagster_storage import prepare_dagster_home
from batch_assets_tests import delta_processes as writers
from batch_assets_tests.conftest import batch_assets, environment, settings_for, write_json_lines
from batch_assets_tests.delta_processes import race, replace, whole
from batch_assets_tests.docs_pages import ROOT
from batch_assets_tests.servers import ChatServer, completion, free_port, serve, stop


def keys(bucket: str) -> list[str]:
    pages = boto3.client("s3").get_paginator("list_objects_v2").paginate(Bucket=bucket)
    return [found["Key"] for page in pages for found in page.get("Contents", [])]


def test_only_one_of_many_concurrent_conditional_puts_of_a_key_succeeds(s3):
    """Delta commits rely on conditional puts; without them, the other tests on this server would prove nothing."""
    rounds, contenders = 30, 12
    clients = [boto3.client("s3") for _ in range(contenders)]
    # Appending to a list is atomic; counting is not.
    barrier, outcomes = threading.Barrier(contenders), []

    def contend(client) -> None:
        for number in range(rounds):
            barrier.wait(60)
            try:
                client.put_object(Bucket="lake", Key=f"key-{number}", Body=b"x" * 10_000, IfNoneMatch="*")
                outcomes.append((number, "put"))
            except ClientError as error:
                outcomes.append((number, error.response["Error"]["Code"]))

    threads = [threading.Thread(target=contend, args=(client,)) for client in clients]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    expected = {"put": 1, "PreconditionFailed": contenders - 1}
    assert Counter(outcomes) == {(number, code): count for number in range(rounds) for code, count in expected.items()}


def test_concurrent_replacements_of_partitions_in_a_bucket_are_neither_lost_nor_mixed(s3):
    uri = "s3://lake/table"
    writers.make_table(uri)
    replace(uri, "a", "old")
    results = race([(replace, uri, part, f"run-{number}") for number, part in enumerate("aaabcd")])
    refused = [result for result in results if isinstance(result, ConcurrentCommitError)]
    versions = [result for result in results if isinstance(result, int)]
    assert len(refused) + len(versions) == len(results)
    assert len(set(versions)) == len(versions)
    winners = sorted((version, number) for number, version in enumerate(results[:3]) if isinstance(version, int))
    assert whole(uri, "a") == f"run-{winners[-1][1]}"
    assert [whole(uri, part) for part in "bcd"] == ["run-3", "run-4", "run-5"]


@pytest.mark.proof
def test_the_graph_runs_with_lake_landing_folder_and_artifacts_in_a_bucket(s3, tmp_path, home, t5_folder, documents):
    data = write_json_lines(tmp_path / "data" / "a.jsonl", documents[:2])
    dropped = write_json_lines(tmp_path / "b.jsonl", documents[2:4])
    server = serve(tmp_path / "mlflow", port := free_port(), "--artifacts-destination", "s3://artifacts/mlflow")
    try:
        with ChatServer(lambda body, number: completion("An answer.")) as chat:
            (tmp_path / "endpoints.toml").write_text(f'[endpoints.counted]\nbase_url = "{chat.url}"\nmodel = "m"\n')
            places = {"LAKE": "s3://lake/lake", "LANDING": "s3://lake/landing", "DATASET": str(data)}
            asked = {"ENDPOINTS": str(tmp_path / "endpoints.toml"), "ENDPOINT": "counted"}
            small = {"EVALUATION_ROWS": "3", "SPARK_MASTER": "local[2,4]", "MODEL": str(t5_folder)}
            env = environment(home, **places, **asked, **small)
            env["MLFLOW_TRACKING_URI"] = f"http://127.0.0.1:{port}"
            for words in (["run"], ["land", str(dropped)], ["upkeep"]):
                run = batch_assets(*words, env=env)
                assert run.returncode == 0, run.stdout + run.stderr
    finally:
        stop(server)
    lake = Lake("s3://lake/lake")
    assert (lake.open(PROD_DATA).batches(), lake.open(PROD_DATA).rows("b")) == (["a", "b"], 2)
    (scored,) = [part.to_pylist() for part in lake.open(BATCH_INFERENCE).read("a")]
    assert all(row["generated_summary"] and row["model_version"] == 1 for row in scored)
    assert sorted(row["id"] for row in scored) == sorted(row["id"] for row in documents[:2])
    assert lake.open(SUMMARY_QUALITY).rows("a") == 2
    assert "landing/.taken/b/b.jsonl" in keys("lake")
    assert not [key for key in keys("lake") if "_completions" in key]
    assert [key for key in keys("artifacts") if key.endswith("model.safetensors")]
    assert not list(Path(home).rglob("*.safetensors"))
    assert not (home / "lake").exists()
    assert not (home / "landing").exists()


DEPLOY = ROOT / "deploy"


@pytest.fixture(scope="module")
def compose() -> dict:
    return yaml.safe_load((DEPLOY / "compose.yaml").read_text())


def test_the_postgresql_configuration_differs_from_the_default_only_in_its_storage(home, monkeypatch):
    monkeypatch.setenv("DAGSTER_HOME", "")
    prepare_dagster_home(settings_for(home))
    ours = yaml.safe_load((home / "dagster" / "dagster.yaml").read_text())
    storage = {"storage": {"postgres": {"postgres_url": {"env": "DAGSTER_POSTGRES_URL"}}}}
    assert yaml.safe_load((DEPLOY / "dagster.yaml").read_text()) == storage | ours


@pytest.mark.parametrize("missing", ["dagster_postgres", "psycopg"])
def test_postgresql_without_its_libraries_fails_with_one_line_naming_the_extra(home, monkeypatch, missing):
    monkeypatch.setitem(sys.modules, missing, None)
    monkeypatch.setenv("BATCH_ASSETS_HOME", str(home))
    monkeypatch.setenv("DAGSTER_POSTGRES_URL", "postgresql://me:open-sesame@127.0.0.1:9/dagster")
    (home / "dagster").mkdir(parents=True)
    (home / "dagster" / "dagster.yaml").write_text((DEPLOY / "dagster.yaml").read_text())
    result = CliRunner().invoke(main, ["status"])
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("batch-assets: ")]
    assert result.exit_code == 2
    assert "pip install 'batch_assets[postgres]', and start the address with postgresql+psycopg2://" in line
    assert "open-sesame" not in result.output


def test_compose_refers_only_to_existing_files_and_contains_no_secret(compose):
    for service in compose["services"].values():
        if "build" in service:
            assert (DEPLOY / service["build"]["context"]).resolve() == ROOT
            assert (ROOT / service["build"]["dockerfile"]).is_file()
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            assert (DEPLOY / source).exists() if source.startswith(".") else source in compose["volumes"]
        assert set(service.get("secrets", [])) <= set(compose["secrets"])
        assert set(service.get("depends_on", [])) <= set(compose["services"])
        for name, value in service.get("environment", {}).items():
            assert name.endswith("_FILE") or not re.search("PASSWORD|SECRET|TOKEN|_KEY", name), name
            assert "@" not in value
    ignored = (ROOT / ".gitignore").read_text().split()
    assert "deploy/secrets/" in ignored
    for secret in compose["secrets"].values():
        assert secret["file"].startswith("./secrets/")


def test_the_image_copies_only_existing_files_and_does_not_run_as_root():
    lines = (DEPLOY / "Dockerfile").read_text().replace("\\\n", " ").splitlines()
    let_in = {line[1:] for line in (DEPLOY / "Dockerfile.dockerignore").read_text().split() if line[0] == "!"}
    copied = [
        word for line in lines if line.startswith("COPY ") for word in line.split()[1:-1] if not word.startswith("--")
    ]
    assert {word.removeprefix("./") for word in copied} == let_in
    assert all((ROOT / name).exists() for name in let_in)
    users = [line.split()[1] for line in lines if line.startswith("USER ")]
    assert users
    assert users[-1] not in {"root", "0"}
    (install,) = (line for line in lines if "tools/install.sh /usr" in line)
    sets = re.findall(r"--(?:extra|group) (\w+)", install)
    assert sets
    for name in sets:
        assert f"\n{name} = [" in (ROOT / "pyproject.toml").read_text()


def test_ports_are_published_only_on_loopback(compose):
    published = [port for service in compose["services"].values() for port in service.get("ports", [])]
    assert published
    assert all(port.startswith("127.0.0.1:") for port in published)


def test_every_command_in_compose_exists_and_accepts_its_options(compose):
    # Here, because importing them takes seconds in each process that collects these tests.
    import dagster_webserver.cli
    import mlflow.cli
    from dagster._cli import cli as dagster_cli
    from dagster._daemon.cli import cli as daemon_cli

    programs = {
        "mlflow": mlflow.cli.cli,
        "dagster": dagster_cli,
        "dagster-daemon": daemon_cli,
        "dagster-webserver": dagster_webserver.cli.dagster_webserver,
    }
    jars = Path(find_spec("pyspark").origin).parent / "jars"
    for name, service in compose["services"].items():
        commands = [service.get("command", []), service.get("healthcheck", {}).get("test", [])[1:]]
        for program, *arguments in filter(None, commands):
            if program in programs:
                here = [word.replace("/opt/batch_assets", str(DEPLOY)) for word in arguments]
                parse(programs[program], here)
            elif program == "spark-class":
                (jar,) = jars.glob("spark-core_*.jar")
                assert arguments[0].replace(".", "/") + ".class" in ZipFile(jar).namelist()
            else:
                assert program in {"pg_isready", "python3"}, name


def parse(command: click.Command, arguments: list[str]) -> None:
    """Parse the arguments of a command; unknown commands and options are errors."""
    context = command.make_context("command", arguments)
    if isinstance(command, click.Group):
        _, subcommand, rest = command.resolve_command(context, [*context._protected_args, *context.args])
        parse(subcommand, rest)


def test_the_password_from_a_file_appears_only_in_the_addresses(tmp_path):
    (tmp_path / "password").write_text("open-sesame\n")
    env = {"PATH": "/usr/bin:/bin", "POSTGRES_PASSWORD_FILE": str(tmp_path / "password")}
    said = subprocess.run([DEPLOY / "entrypoint.sh", "env"], env=env, capture_output=True, text=True, check=True).stdout
    address = "postgresql+psycopg2://batch_assets:open-sesame@postgres:5432"
    assert f"DAGSTER_POSTGRES_URL={address}/dagster\n" in said
    assert said.count("open-sesame") == 1

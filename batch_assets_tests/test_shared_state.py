"""State that others share: lake, landing folder and MLflow's artifacts in a bucket, compose.yaml."""

import subprocess
import threading
from collections import Counter
from pathlib import Path

import boto3
import pytest
from botocore.exceptions import ClientError

from batch_assets.lake.lake import Lake
from batch_assets.lake.snapshot import ConcurrentCommitError
from batch_assets.lake.tables import BATCH_INFERENCE, PROD_DATA, SUMMARY_QUALITY
from batch_assets_tests import delta_processes as writers
from batch_assets_tests.conftest import BATCH_ASSETS, environment, write_json_lines
from batch_assets_tests.delta_processes import race, replace, whole
from batch_assets_tests.servers import ChatServer, completion, free_port, s3_server, serve, stop


@pytest.fixture
def s3(monkeypatch):
    """A server with the buckets lake and artifacts, found by whatever this test starts."""
    with s3_server("lake", "artifacts") as variables:
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        yield variables


def keys(bucket: str) -> list[str]:
    pages = boto3.client("s3").get_paginator("list_objects_v2").paginate(Bucket=bucket)
    return [found["Key"] for page in pages for found in page.get("Contents", [])]


def test_of_many_who_put_a_key_only_where_there_is_none_one_succeeds(s3):
    """What Delta commits stand on; without it, the other tests on this server would prove nothing."""
    rounds, contenders = 30, 12
    clients = [boto3.client("s3") for _ in range(contenders)]
    barrier, outcomes = threading.Barrier(contenders), Counter()

    def contend(client) -> None:
        for number in range(rounds):
            barrier.wait(60)
            try:
                client.put_object(Bucket="lake", Key=f"key-{number}", Body=b"x" * 10_000, IfNoneMatch="*")
                outcomes[number, "put"] += 1
            except ClientError as error:
                outcomes[number, error.response["Error"]["Code"]] += 1

    threads = [threading.Thread(target=contend, args=(client,)) for client in clients]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    expected = {"put": 1, "PreconditionFailed": contenders - 1}
    assert outcomes == {(number, code): count for number in range(rounds) for code, count in expected.items()}


def test_of_processes_that_replace_partitions_in_a_bucket_at_once_none_is_lost_or_mixed(s3):
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
            for words in (["run"], ["land", str(dropped)], ["doctor"], ["upkeep"]):
                run = subprocess.run([*BATCH_ASSETS, *words], env=env, capture_output=True, text=True, timeout=300)
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

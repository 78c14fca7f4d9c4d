"""Two deployments on one lake: tables and artifacts in a bucket, MLflow and Dagster on PostgreSQL, with daemons."""

import json
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise

import boto3
import dagster as dg
import pytest

from batch_assets.lake.contracts import BATCH_INFERENCE, PROD_DATA, SUMMARY_QUALITY
from batch_assets_tests.conftest import BATCH_ASSETS, write_json_lines
from batch_assets_tests.docs_pages import ROOT
from batch_assets_tests.servers import ChatServer, completion, free_port, postgres_server, s3_server, serve, stop
from batch_assets_tests.test_proof_daemon import Deployment, wait_until

pytestmark = pytest.mark.proof

OVERTAKEN = "by run "


@pytest.fixture
def deployments(tmp_path, t5_folder, documents, monkeypatch) -> Iterator[list[Deployment]]:
    """Two deployments with separate homes and Dagster databases that share everything else."""
    data = tmp_path / "data"
    for number, batch in enumerate("ab"):
        write_json_lines(data / f"{batch}.jsonl", documents[number * 4 : number * 4 + 4])
    with (
        s3_server("lake", "artifacts") as variables,
        postgres_server("mlflow", "dagster0", "dagster1") as postgres,
        ChatServer(lambda body, number: completion("An answer.")) as chat,
    ):
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        store = ["--backend-store-uri", f"{postgres}/mlflow"]
        # Clients write artifacts directly to the bucket.
        store += ["--default-artifact-root", "s3://artifacts/mlflow", "--no-serve-artifacts"]
        mlflow = serve(tmp_path / "mlflow", port := free_port(), *store)
        found = []
        try:
            for number in range(2):
                places = {"LAKE": "s3://lake/lake", "LANDING": f"s3://lake/landing{number}", "DATASET": str(data)}
                small = {"MODEL": str(t5_folder), "BATCHES_PER_RUN": "1", "SENSOR_SECONDS": "3"}
                deployment = Deployment(tmp_path / f"home{number}", chat, **places, **small)
                folder = deployment.home / "dagster"
                folder.mkdir()
                # The names differ because this process reads both databases.
                text = (ROOT / "deploy" / "dagster.yaml").read_text()
                (folder / "dagster.yaml").write_text(text.replace("DAGSTER_POSTGRES_URL", f"DAGSTER_{number}"))
                monkeypatch.setenv(f"DAGSTER_{number}", f"{postgres}/dagster{number}")
                deployment.env |= {f"DAGSTER_{number}": f"{postgres}/dagster{number}"}
                deployment.env |= {"MLFLOW_TRACKING_URI": f"http://127.0.0.1:{port}", **variables}
                found.append(deployment)
            yield found
        finally:
            for deployment in found:
                deployment.stop()
            stop(mlflow)


def check(deployment: Deployment, expected: dict[str, list[str]]) -> None:
    """Check that every document exists once and was scored once, each batch by one version, and has metrics."""
    for table in (PROD_DATA, BATCH_INFERENCE):
        found = {batch: sorted(row["id"] for row in deployment.batch(table, batch)) for batch in expected}
        assert found == {batch: sorted(ids) for batch, ids in expected.items()}
        assert set(deployment.lake.open(table).batches()) == set(expected)
    for batch in expected:
        rows = deployment.batch(BATCH_INFERENCE, batch)
        assert len({row["model_version"] for row in rows}) == 1
        assert all(row["generated_summary"] for row in rows)
        measured = [(row["table_name"], row["model_version"]) for row in deployment.batch(SUMMARY_QUALITY, batch)]
        assert len(measured) == len(set(measured)) >= 2


def failures(deployment: Deployment) -> list[str]:
    """Error messages of failed steps."""
    with dg.DagsterInstance.from_config(str(deployment.home / "dagster")) as instance:
        events = [
            entry.dagster_event
            for run in instance.get_runs()
            for entry in instance.all_logs(run.run_id, of_type=dg.DagsterEventType.STEP_FAILURE)
        ]
    return [f"{event.step_key}: {event.step_failure_data.error_display_string}" for event in events if event]


def test_two_deployments_running_at_once_on_one_lake_produce_what_a_single_one_would(
    deployments, documents, record_property
):
    expected = {"a": [row["id"] for row in documents[:4]], "b": [row["id"] for row in documents[4:8]]}
    for turn in ("first", "second"):
        # In the first round, the faster run creates the tables, the experiment and the registered model.
        runs = [
            subprocess.Popen(
                [*BATCH_ASSETS, "run"], env=deployment.env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
            )
            for deployment in deployments
        ]
        said = [run.communicate(timeout=600)[0] for run in runs]
        record_property(f"exit statuses of the {turn} runs", str([run.returncode for run in runs]))
        for run, lines in zip(runs, said, strict=True):
            print(turn, run.returncode, lines[-3000:])
            assert run.returncode in {0, 1}, lines
            # The loser of a race names the faster run.
            assert run.returncode == 0 or OVERTAKEN in lines, lines
    for deployment in deployments:
        deployment.command("run")
        deployment.command("status")
        deployment.command("doctor")
    record_property("failures", str([failure.splitlines()[0] for one in deployments for failure in failures(one)]))
    check(deployments[0], expected)
    assert not list(deployments[0].home.rglob("*.db"))


def steps(deployment: Deployment, pool_steps: set[str]) -> tuple[list[tuple[float, float]], list[tuple[float, float]]]:
    """The start and end times of the runs, and of their steps that use Spark."""
    whole, parts = [], []
    with dg.DagsterInstance.from_config(str(deployment.home / "dagster")) as instance:
        for record in instance.get_run_records(dg.RunsFilter(job_name="score_batches")):
            whole.append((record.start_time, record.end_time))
            for stats in instance.get_run_step_stats(record.dagster_run.run_id):
                if stats.step_key in pool_steps and stats.start_time and stats.end_time:
                    parts.append((stats.start_time, stats.end_time))
    return sorted(whole), sorted(parts)


def overlap(spans: list[tuple[float, float]]) -> bool:
    return any(later[0] < earlier[1] for earlier, later in pairwise(spans))


def test_two_daemons_with_several_run_workers_score_each_landed_batch_once(deployments, documents, record_property):
    first = deployments[0]
    first.command("run")
    began = time.monotonic()
    for deployment in deployments:
        deployment.start()
    expected = {"a": [row["id"] for row in documents[:4]], "b": [row["id"] for row in documents[4:8]]}
    s3 = boto3.client("s3")
    for number, batch in enumerate("cde"):
        rows = documents[8 + number * 2 : 10 + number * 2]
        expected[batch] = [row["id"] for row in rows]
        content = "".join(json.dumps(row) + "\n" for row in rows).encode()
        s3.put_object(Bucket="lake", Key=f"landing{number % 2}/{batch}/x.jsonl", Body=content)
    ids = {one for part in expected.values() for one in part}
    wait_until(lambda: all(one.is_quiet(ids) for one in deployments), 900, first.log.read_text()[-3000:])
    record_property("seconds until all was scored", round(time.monotonic() - began))
    check(first, expected)
    for deployment in deployments:
        runs, with_spark = steps(deployment, {"batch_inference", "ai_query_inference", "summary_quality"})
        statuses = Counter(f"{run.job_name} {run.status.value}" for run in deployment.runs())
        record_property(f"runs in {deployment.home.name}", json.dumps(statuses))
        print(deployment.home.name, statuses, runs, with_spark, failures(deployment))
        assert all(OVERTAKEN in failure for failure in failures(deployment))
        assert not overlap(with_spark)
    assert any(overlap(steps(deployment, set())[0]) for deployment in deployments)

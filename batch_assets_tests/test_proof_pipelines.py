"""Two pipelines in one deployment, as a user sees them: from the command line and in the browser."""

import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from batch_assets_tests.conftest import batch_assets, environment, write_json_lines
from batch_assets_tests.ticket_t5 import LABELS, tickets

pytestmark = pytest.mark.proof

TICKET_T5 = Path(__file__).with_name("ticket-t5")
NAMES = ("prod_data", "logged_model", "champion_model", "batch_inference", "answer_quality", "quality_report")


def tickets_file(folder: Path) -> None:
    """A folder with tickets, held-out ones, a model, and the file of a pipeline that names them relative to itself."""
    write_json_lines(folder / "mine" / "tickets.jsonl", tickets(9, seed=5))
    write_json_lines(folder / "mine" / "held_out.jsonl", tickets(6, seed=6))
    shutil.copytree(TICKET_T5, folder / "models" / "tickets")
    attributes = {
        "name": "tickets",
        "source": {"dataset": "mine/tickets.jsonl"},
        "columns": {"id": "ticket_id", "text": "{subject}\n\n{body}", "reference": "category", "carry": ["customer"]},
        "task": {"kind": "classification", "labels": list(LABELS)},
        "model": {"checkpoint": "models/tickets"},
        "evaluation": {"dataset": "mine/held_out.jsonl"},
    }
    (folder / "pipelines").mkdir()
    content = {"type": "batch_assets.InferencePipeline", "attributes": attributes}
    (folder / "pipelines" / "tickets.yaml").write_text(yaml.safe_dump(content))


@pytest.fixture(scope="module")
def deployment(tmp_path_factory) -> dict[str, str]:
    """The environment of a deployment in which the tickets have run once."""
    folder = tmp_path_factory.mktemp("deployment")
    tickets_file(folder)
    env = environment(folder / "home", PIPELINES=str(folder / "pipelines"), SENSORS="false")
    run = batch_assets("run", "tickets", env=env)
    assert run.returncode == 0, run.stdout + run.stderr
    return env


@pytest.fixture(scope="module")
def dagster(deployment) -> Iterator[str]:
    from tools.dagster_ui import served

    with served(deployment) as url:
        yield url


def test_a_second_run_of_a_pipeline_has_nothing_to_do(deployment):
    run = batch_assets("run", "tickets", env=deployment)
    assert "nothing has changed since run" in run.stdout


def test_both_graphs_are_in_the_ui_and_a_batch_of_the_second_can_be_materialized(dagster, tmp_path, record_property):
    from playwright.sync_api import expect

    from tools.dagster_ui import graphql
    from tools.screenshots import launch, opened

    runs = "{runsOrError(limit: 1){... on Runs{results{runId status jobName}}}}"
    with opened() as page:
        page.goto(f"{dagster}/asset-groups", wait_until="networkidle")
        for group in ("data", "model", "summaries", "tickets"):
            expect(page.get_by_text(group, exact=True).first).to_be_visible()
        page.screenshot(path=tmp_path / "groups.png")
        page.goto(f"{dagster}/assets/tickets/batch_inference?view=lineage", wait_until="networkidle")
        for name in ("prod_data", "champion_model", "answer_quality"):
            expect(page.get_by_text(name).last).to_be_visible()
        page.screenshot(path=tmp_path / "lineage.png")
        launch(page, dagster, "tickets/batch_inference")
        deadline, run = time.monotonic() + 240, {"status": ""}
        while run["status"] not in {"SUCCESS", "FAILURE"}:
            assert time.monotonic() < deadline, run
            (run,) = graphql(dagster, runs)["runsOrError"]["results"]
            time.sleep(1)
        assert run["status"] == "SUCCESS"
        page.goto(
            f"{dagster}/assets/tickets/batch_inference?view=partitions&partition=tickets", wait_until="networkidle"
        )
        expect(page.get_by_text("rows_scored", exact=True).first).to_be_visible()
        page.screenshot(path=tmp_path / "batch.png")
        page.goto(f"{dagster}/assets/tickets/answer_quality?view=checks", wait_until="networkidle")
        expect(page.get_by_text("error_rate", exact=True).first).to_be_visible()
        page.screenshot(path=tmp_path / "checks.png")
    keys = graphql(dagster, "{assetNodes{assetKey{path}}}")["assetNodes"]
    paths = {"/".join(node["assetKey"]["path"]) for node in keys}
    assert {f"tickets/{name}" for name in NAMES} | {"prod_data", "batch_inference", "summary_quality"} <= paths
    record_property("screenshots", str(tmp_path))

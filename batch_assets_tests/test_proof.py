"""Full-size runs, many kills and a real browser: run by `make proof`, skipped by `make test`."""

import random
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from batch_assets_tests.conftest import BATCH_ASSETS, batch_assets, environment
from batch_assets_tests.test_graph import tables_of
from tools.dagster_ui import graphql

pytestmark = pytest.mark.proof

KILLS = 4
# Seconds; on two idle cores, a run takes 260.
FULL_SIZE = 1500


@pytest.fixture(scope="module")
def full_size(tmp_path_factory, record_testsuite_property) -> Path:
    """A home after `make run` with default settings."""
    home = tmp_path_factory.mktemp("full") / "home"
    started = time.monotonic()
    run = batch_assets("run", env=environment(home), timeout=FULL_SIZE)
    assert run.returncode == 0, run.stdout + run.stderr
    record_testsuite_property("seconds of a first run", round(time.monotonic() - started))
    print(run.stdout)
    return home


def test_the_embedded_default_scores_every_document_once(full_size):
    content = tables_of(full_size / "lake")
    batches = [f"aclsum-test-000{number}" for number in (1, 2, 3, 4)]
    assert {key: len(rows) for key, rows in content.items()} == {
        **{("m4_1_prod_data", batch): 25 for batch in batches},
        **{("m4_1_batch_inference", batch): 25 for batch in batches},
        **{("ai_query_inference", batch): 10 for batch in batches},
        **{("summary_quality", batch): 2 for batch in batches},
    }


def test_a_second_run_does_nothing(full_size, record_property):
    before = tables_of(full_size / "lake")
    started = time.monotonic()
    run = batch_assets("run", env=environment(full_size), timeout=FULL_SIZE)
    record_property("seconds", round(time.monotonic() - started, 1))
    assert run.returncode == 0, run.stdout + run.stderr
    assert "committed" not in run.stdout
    assert tables_of(full_size / "lake") == before


def test_a_run_killed_at_any_moment_completes_with_the_same_tables(full_size, tmp_path, record_property):
    home = tmp_path / "home"
    home.mkdir()
    shutil.copytree(full_size / "checkpoints", home / "checkpoints")
    moments = random.Random(2026)
    kills = []
    for _ in range(KILLS):
        process = subprocess.Popen([*BATCH_ASSETS, "run"], env=environment(home), stdout=subprocess.DEVNULL)
        seconds = moments.uniform(5, 75)
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            kills.append(round(seconds))
    record_property("killed after seconds", str(kills))
    run = batch_assets("run", env=environment(home), timeout=FULL_SIZE)
    assert run.returncode == 0, run.stdout + run.stderr
    assert kills
    assert tables_of(home / "lake") == tables_of(full_size / "lake")


@pytest.fixture(scope="module")
def dagster(full_size) -> Iterator[str]:
    """Address of a Dagster UI that shows the full-size home."""
    from tools.dagster_ui import served

    with served(environment(full_size)) as url:
        yield url


EDGES = {
    *(("source_dataset", asset) for asset in ("prod_data", "logged_model", "model_evaluation", "champion_model")),
    ("base_checkpoint", "logged_model"),
    ("logged_model", "model_evaluation"),
    ("model_evaluation", "champion_model"),
    ("champion_model", "batch_inference"),
    ("prod_data", "batch_inference"),
    ("prod_data", "ai_query_inference"),
    ("chat_endpoint", "ai_query_inference"),
    ("batch_inference", "summary_quality"),
    ("ai_query_inference", "summary_quality"),
    ("summary_quality", "quality_report"),
}


def test_the_ui_shows_all_assets_and_their_dependencies(dagster, tmp_path, record_property):
    from playwright.sync_api import expect

    from tools.screenshots import edges, opened, show_graph

    assert edges(dagster) == EDGES
    with opened() as page:
        show_graph(page, dagster)
        for asset in {asset for edge in EDGES for asset in edge}:
            expect(page.get_by_text(asset, exact=True).last).to_be_visible()
        assert page.locator("svg path[marker-end]").count() == len(EDGES)
        page.screenshot(path=tmp_path / "graph.png")
    record_property("screenshots", str(tmp_path))


def test_batches_can_be_materialized_in_the_ui_which_shows_their_metadata(dagster, tmp_path, record_property):
    from playwright.sync_api import expect

    from tools.screenshots import launch, opened, show_batch, show_text

    runs = "{runsOrError(limit: 1){... on Runs{results{runId status tags{key}}}}}"
    with opened() as page:
        launch(page, dagster, "batch_inference")
        deadline, run = time.monotonic() + 240, {"status": ""}
        while run["status"] not in {"SUCCESS", "FAILURE"} or {"key": "dagster/backfill"} not in run["tags"]:
            assert time.monotonic() < deadline, run
            (run,) = graphql(dagster, runs)["runsOrError"]["results"]
            time.sleep(1)
        page.goto(f"{dagster}/runs/{run['runId']}")
        expect(page.get_by_text("Success", exact=True).first).to_be_visible()

        show_batch(page, dagster, "batch_inference", "aclsum-test-0001")
        for label in ("model_version", "engine", "dagster/partition_row_count"):
            expect(page.get_by_text(label, exact=True).first).to_be_visible()
        show_text(page, "sample")
        expect(page.get_by_role("dialog").get_by_text("generated_summary")).to_be_visible()
        page.screenshot(path=tmp_path / "sample.png")
    record_property("screenshots", str(tmp_path))


def test_the_ui_shows_the_plot_of_the_quality_report(dagster):
    from playwright.sync_api import expect

    from tools.screenshots import opened

    with opened() as page:
        page.goto(f"{dagster}/assets/quality_report?view=events", wait_until="networkidle")
        image = page.locator("img[src^='data:image']")
        for text in page.get_by_text("Show Markdown").all():
            if image.count():
                break
            text.click()
            dialog = page.get_by_role("dialog")
            dialog.locator("table, img, p").first.wait_for()
            if not image.count():
                page.keyboard.press("Escape")
                dialog.wait_for(state="hidden")
        expect(image.first).to_be_visible()
        # The browser can decode the image.
        assert image.first.evaluate("image => image.decode().then(() => image.naturalWidth)") > 100

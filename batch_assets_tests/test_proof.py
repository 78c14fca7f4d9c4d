"""Full sizes, many kills, a real browser: what `make proof` runs and `make test` leaves out."""

import random
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from batch_assets_tests.conftest import BATCH_ASSETS, environment
from batch_assets_tests.test_system import batch_assets, free_port, graphql, tables

pytestmark = pytest.mark.proof

KILLS = 4


@pytest.fixture(scope="module")
def full_size(tmp_path_factory, record_testsuite_property) -> Path:
    """A home after `make run` with nothing set."""
    home = tmp_path_factory.mktemp("full") / "home"
    started = time.monotonic()
    run = batch_assets("run", env=environment(home))
    assert run.returncode == 0, run.stdout + run.stderr
    record_testsuite_property("seconds of a first run", round(time.monotonic() - started))
    print(run.stdout)
    return home


def test_the_embedded_default_scores_every_document_once(full_size):
    content = tables(full_size)
    batches = [f"aclsum-test-000{number}" for number in (1, 2, 3, 4)]
    assert {key: len(rows) for key, rows in content.items()} == {
        **{("m4_1_prod_data", batch): 25 for batch in batches},
        **{("m4_1_batch_inference", batch): 25 for batch in batches},
        **{("ai_query_inference", batch): 10 for batch in batches},
        **{("summary_quality", batch): 2 for batch in batches},
    }


def test_a_second_run_does_nothing(full_size, record_property):
    before = tables(full_size)
    started = time.monotonic()
    run = batch_assets("run", env=environment(full_size))
    record_property("seconds", round(time.monotonic() - started, 1))
    assert run.returncode == 0, run.stdout + run.stderr
    assert "committed" not in run.stdout
    assert tables(full_size) == before


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
    run = batch_assets("run", env=environment(home))
    assert run.returncode == 0, run.stdout + run.stderr
    assert kills
    assert tables(home) == tables(full_size)


@pytest.fixture(scope="module")
def dagster(full_size) -> Iterator[str]:
    """Address of the Dagster UI on the full-size state."""
    ports = {"UI_PORT": str(free_port()), "MLFLOW_PORT": str(free_port())}
    env = environment(full_size, **ports)
    ui = subprocess.Popen([*BATCH_ASSETS, "ui"], env=env, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    opened = threading.Event()

    def read() -> None:
        for line in ui.stdout:
            if "Ctrl-C" in line:
                opened.set()

    threading.Thread(target=read, daemon=True).start()
    assert opened.wait(120)
    yield f"http://127.0.0.1:{ports['UI_PORT']}"
    ui.terminate()
    ui.wait(60)


def test_a_person_sees_the_graph_and_materializes_batches_by_clicking(dagster, tmp_path, record_property):
    from playwright.sync_api import expect, sync_playwright

    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    assert chromium, "install a browser first: apt-get install chromium"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=chromium, args=["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        )
        page = browser.new_page(viewport={"width": 1700, "height": 1000})
        page.goto(f"{dagster}/locations/batch_assets/asset-groups/summaries/lineage", wait_until="domcontentloaded")
        for asset in ("batch_inference", "ai_query_inference", "summary_quality", "quality_report", "champion_model"):
            expect(page.get_by_text(asset, exact=True).first).to_be_visible(timeout=60_000)
        page.screenshot(path=tmp_path / "graph.png")

        page.goto(f"{dagster}/assets/batch_inference", wait_until="domcontentloaded")
        page.get_by_role("button", name="Materialize").first.click(timeout=60_000)
        dialog = page.get_by_role("dialog")
        dialog.get_by_role("button", name="All", exact=True).click()
        dialog.get_by_role("button", name="Launch").last.click()
        query = "{partitionBackfillsOrError{... on PartitionBackfills{results{status numPartitions}}}}"
        deadline, found = time.monotonic() + 240, []
        while time.monotonic() < deadline:
            found = graphql(dagster, query)["partitionBackfillsOrError"]["results"]
            if found and found[0]["status"].startswith("COMPLETED"):
                break
            time.sleep(1)
        assert found, "no backfill was launched"
        assert (found[0]["status"], found[0]["numPartitions"]) == ("COMPLETED_SUCCESS", 4)
        page.goto(f"{dagster}/assets/batch_inference?view=partitions&partition=aclsum-test-0001")
        expect(page.get_by_text("model_version").first).to_be_visible(timeout=60_000)
        page.screenshot(path=tmp_path / "materialization.png")
        browser.close()
    record_property("screenshots", str(tmp_path))

"""A table that two other writers fill beside a running daemon ends up scored, whatever they did."""

import time

import polars as pl
import pytest
import yaml

from batch_assets.graph.partitions import ACTIVE_STATUSES
from batch_assets.sources.batch_keys import key_of
from batch_assets_tests.conftest import SMALL_T5, write_json_lines
from batch_assets_tests.servers import ChatServer, completion
from batch_assets_tests.table_history import TableHistory
from batch_assets_tests.test_proof_daemon import Deployment, wait_until

pytestmark = pytest.mark.proof

STEPS = 25


@pytest.mark.parametrize("seed", [11, 12])
def test_a_random_history_beside_a_running_daemon_ends_with_the_answers_of_its_rows(tmp_path, seed):
    with ChatServer(lambda body, n: completion("unused")) as server:
        folder = tmp_path / "pipelines"
        folder.mkdir()
        held_out = [{"text": f"text {n}", "title": f"text {n}"} for n in range(3)]
        write_json_lines(tmp_path / "held_out.jsonl", held_out)
        history = TableHistory(str(tmp_path / "tickets"), seed, None)
        attributes = {
            "name": "titles",
            "source": {"url": history.uri, "batch_by": "day"},
            "columns": {"id": "ticket", "text": "text", "reference": "title"},
            "task": {"kind": "generation", "prompt": "Title of {document}"},
            "model": {"checkpoint": str(SMALL_T5), "max_length": 4, "engine": "transformers"},
            "evaluation": {"dataset": "held_out.jsonl", "rows": 3},
        }
        content = {"type": "batch_assets.InferencePipeline", "attributes": attributes}
        (folder / "titles.yaml").write_text(yaml.safe_dump(content))
        deployment = Deployment(tmp_path / "home", server, PIPELINES=str(folder), SENSOR_SECONDS="5")
        deployment.command("run", "titles")
        deployment.start()
        try:
            for _ in range(STEPS):
                history.step()
                time.sleep(history.random.uniform(0, 4))  # writers pause; nothing depends on how long

            def answers() -> set[tuple[object, ...]]:
                rows = pl.read_delta(str(tmp_path / "home" / "lake" / "main" / "default" / "titles_predictions"))
                return {(row["id"], row["document"], row["batch"]) for row in rows.to_dicts()}

            def is_done() -> bool:
                expected = {(ticket, text, key_of(day)) for ticket, text, day in history.rows()}
                return answers() == expected and not [run for run in deployment.runs() if run.status in ACTIVE_STATUSES]

            wait_until(is_done, 900, f"seed {seed}: {history.steps}")
        finally:
            deployment.stop()

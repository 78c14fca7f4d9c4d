"""Twenty rounds of eight different commands started at once in a home that does not exist yet."""

import sqlite3
import subprocess
import time
from contextlib import closing
from pathlib import Path

import pytest

from batch_assets.errors import ExitStatus
from batch_assets.graph.partitions import known_batches
from batch_assets.lake.contracts import BATCH_INFERENCE, PROD_DATA
from batch_assets.lake.lake import Lake
from batch_assets.resources.dagster_storage import existing_instance
from batch_assets.settings import DEFAULT_PIPELINE
from batch_assets_tests.conftest import BATCH_ASSETS, environment, settings_for, write_json_lines
from batch_assets_tests.servers import ChatServer, completion

pytestmark = pytest.mark.proof

ROUNDS = 20
# Seconds; all eight commands together take 80 to 150 on two cores.
LIMIT = 600
# Take turns as the eighth command: they must refuse the same input as in an existing home.
LAST = (
    (["upkeep"], ExitStatus.DONE, "files of abandoned completions"),
    (["promote", "1"], ExitStatus.REFUSED, "main.default.summarizer has no version 1"),
    (["rescore", "--batches", "nowhere", "--yes"], ExitStatus.REFUSED, "nowhere"),
    (["rollback"], ExitStatus.REFUSED, "main.default.summarizer"),
)


@pytest.mark.parametrize("number", range(ROUNDS))
def test_eight_commands_can_start_at_once_in_a_new_home(tmp_path, home, t5_folder, documents, number, record_property):
    data = write_json_lines(tmp_path / "data" / "scored.jsonl", documents[:2])
    one, other = (write_json_lines(tmp_path / f"{name}.jsonl", documents[2:5]) for name in ("one", "other"))
    with ChatServer(lambda body, number: completion("An answer.")) as chat:
        (tmp_path / "endpoints.toml").write_text(f'[endpoints.counted]\nbase_url = "{chat.url}"\nmodel = "m"\n')
        small = {"MODEL": str(t5_folder), "DATASET": str(data), "EVALUATION_ROWS": "2", "SPARK_MASTER": "local[1,4]"}
        small |= {"ENGINE": "transformers"}
        env = environment(home, ENDPOINTS=str(tmp_path / "endpoints.toml"), ENDPOINT="counted", **small)
        done = ExitStatus.DONE
        expected = [
            (["land", str(one)], done, "one"),
            (["land", str(one)], done, "one"),
            (["land", str(other)], done, "other"),
            (["status"], done, "champion"),
            (["doctor"], done, "tracking server"),
            (["models"], done, "version"),
            (["run"], done, "Done in"),
            LAST[number % len(LAST)],
        ]
        started = time.monotonic()
        commands = [
            subprocess.Popen(
                [*BATCH_ASSETS, *words], env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
            )
            for words, _, _ in expected
        ]
        said = [command.communicate(timeout=LIMIT)[0] for command in commands]
        record_property("seconds", round(time.monotonic() - started))
    for command, output, (words, status, part) in zip(commands, said, expected, strict=True):
        assert (command.returncode, part in output, "Traceback" in output) == (status, True, False), (
            f"{words}: {output}"
        )
    landed = {batch: Lake(str(home / "lake")).open(PROD_DATA).rows(batch) for batch in ("one", "other", "scored")}
    assert landed == {"one": 3, "other": 3, "scored": 2}
    ids = [
        row["id"] for part in Lake(str(home / "lake")).open(PROD_DATA).read("one", ["id"]) for row in part.to_pylist()
    ]
    assert sorted(ids) == sorted(document["id"] for document in documents[2:5])
    assert Lake(str(home / "lake")).open(BATCH_INFERENCE).rows("scored") == 2
    with existing_instance(settings_for(home)) as instance:
        assert sorted(known_batches(instance, DEFAULT_PIPELINE)) == ["one", "other", "scored"]
        jobs = sorted(run.job_name for run in instance.get_runs() if run.is_success)
        assert jobs == ["land_batches"] * 3 + ["materialize_all"]
    for database in ("history/runs.db", "history/runs/index.db", "schedules/schedules.db"):
        assert len(revisions(home / "dagster" / database)) == 1


def revisions(database: Path) -> list[tuple]:
    with closing(sqlite3.connect(database)) as connection:
        return connection.execute("SELECT version_num FROM alembic_version").fetchall()

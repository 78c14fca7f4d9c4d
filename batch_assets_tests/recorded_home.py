"""A home from release 0.1: two batches from a run, one landed file scored by the sensors, and one switch.

``python -m batch_assets_tests.recorded_home`` made ``recorded-home.tar.xz`` with that release. Do not make it again
with a later one: tests open it to check that homes from earlier releases keep working.
"""

import shutil
import socket
import sqlite3
import subprocess
import sys
import tarfile
from contextlib import closing
from pathlib import Path

from batch_assets_tests.conftest import SMALL_T5, environment, write_json_lines
from batch_assets_tests.servers import ChatServer, completion
from batch_assets_tests.test_proof_daemon import Deployment, wait_until

ROOT = Path(__file__).parent.parent
ARCHIVE = Path(__file__).with_name("recorded-home.tar.xz")
# The folder in which it was recorded, because MLflow stores absolute artifact addresses.
RECORDED_IN = Path("/tmp/recorded-home")
BATCHES = ("monday", "tuesday", "wednesday")
# Settings shared by the run and the later commands. They use one engine, so that no conversion has to be stored.
_VALUES = {"ENGINE": "transformers", "MODEL_NAME": "summarizer", "SAMPLES": "1"}
_WEIGHTS = "model.safetensors"


def documents(day: str, count: int) -> list[dict[str, str | None]]:
    """The documents of one batch; the last one has no text."""
    texts = [f"On {day}, the council met for the {number}th time and agreed on a budget." for number in range(count)]
    rows: list[dict[str, str | None]] = [
        {"id": f"{day}-{number}", "document": text, "summary": f"The council agreed on {day}."}
        for number, text in enumerate(texts)
    ]
    return [*rows, {"id": f"{day}-empty", "document": None, "summary": None}]


def values_in(folder: Path) -> dict[str, str]:
    """The settings that the home was made with, by name without the prefix."""
    data, model = folder / "data" / "*.jsonl", folder / "small-t5"
    return {**_VALUES, "MODEL": str(model), "DATASET": str(data), "EVALUATION_DATASET": str(data)}


def record(folder: Path) -> None:
    """Make the home in a folder and save it as the archive."""
    shutil.copytree(SMALL_T5, folder / "small-t5")
    for day in BATCHES[:2]:
        write_json_lines(folder / "data" / f"{day}.jsonl", documents(day, 3))
    with (folder / "data" / f"{BATCHES[1]}.jsonl").open("a") as file:
        file.write("{broken\n")
    with ChatServer(lambda body, n: completion(f"Answer {n % 1000}")) as server:
        deployment = Deployment(folder / "home", server, **values_in(folder))
        deployment.command("run")
        deployment.start()
        try:
            wait_until((deployment.home / "landing").is_dir, 120, "the landing sensor has not started")
            write_json_lines(deployment.home / "landing" / f"{BATCHES[2]}.jsonl", documents(BATCHES[2], 2))
            ids = {row["id"] for day, count in zip(BATCHES, (3, 3, 2), strict=True) for row in documents(day, count)}
            wait_until(lambda: deployment.is_quiet({str(name) for name in ids}), 300, "the landed file is not scored")
        finally:
            deployment.stop()
    # Use the code location that the UI serves, because switches and cursors belong to a code location.
    stop = ["-m", "dagster", "schedule", "stop", "weekly_upkeep", "-w", str(ROOT / "workspace.yaml")]
    env = deployment.env | {"DAGSTER_HOME": str(deployment.home / "dagster")}
    subprocess.run([sys.executable, *stop], env=env, check=True)
    for path in [*folder.rglob(_WEIGHTS), *folder.rglob("*.log"), *folder.rglob("*.lock")]:
        path.unlink()
    for part in ("storage", "logs"):
        shutil.rmtree(deployment.home / "dagster" / part, ignore_errors=True)
    for database in folder.rglob("*.db"):
        # Remove all traces of the machine on which it was recorded.
        _replace_texts(
            database, {sys.prefix: "/opt/venv", str(ROOT): "/opt/batch_assets", socket.gethostname(): "host"}
        )
        with closing(sqlite3.connect(database)) as connection:
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            connection.execute("VACUUM")

    def without_owner(member: tarfile.TarInfo) -> tarfile.TarInfo:
        member.uid = member.gid = 0
        member.uname = member.gname = ""
        return member

    with tarfile.open(ARCHIVE, "w:xz") as archive:
        archive.add(folder, ".", filter=without_owner)


def _replace_texts(database: Path, texts: dict[str, str]) -> None:
    """Replace texts in all columns of an SQLite database."""
    with closing(sqlite3.connect(database)) as connection, connection:
        tables = [name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        for table in tables:
            for _, column, kind, *_ in connection.execute(f'PRAGMA table_info("{table}")').fetchall():
                for old, new in texts.items() if kind.startswith(("VARCHAR", "TEXT")) else ():
                    statement = (
                        f'UPDATE "{table}" SET "{column}" = replace("{column}", ?, ?) WHERE instr("{column}", ?)'
                    )
                    connection.execute(statement, (old, new, old))


def unpack(folder: Path) -> dict[str, str]:
    """Unpack the home into its own folder; returns the environment for commands that open it."""
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(folder, filter="data")
    for config in folder.rglob("config.json"):
        shutil.copy(SMALL_T5 / _WEIGHTS, config.with_name(_WEIGHTS))
    _replace_texts(folder / "home" / "mlflow" / "mlflow.db", {str(RECORDED_IN): str(folder)})
    return environment(folder / "home", ENDPOINT="counted", EVALUATION_ROWS="3", **values_in(folder))


if __name__ == "__main__":
    shutil.rmtree(RECORDED_IN, ignore_errors=True)
    record(RECORDED_IN)

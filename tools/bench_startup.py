"""Benchmark short commands: their median times, and the ratios to floors from the same run.

Run it with ``make bench-startup``, or ``python -m tools.bench_startup [runs]``. A floor is the minimum that any command
needs: importing Dagster with MLflow or with delta-rs, or a bare Spark session that counts a Parquet file with the same
number of rows. The commands use a new home with two batches that a small T5 has scored.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from batch_assets.settings import PREFIX
from batch_assets_tests.conftest import SMALL_T5

_PYTHON = sys.executable
_COMMAND = [_PYTHON, "-m", "batch_assets"]
_DOCUMENTS = 20
_ASK = "SELECT id, ai_query('bench', document) AS answer FROM (SELECT * FROM m4_1_prod_data ORDER BY id LIMIT 10)"
_SPARK = """
import sys
from pyspark.sql import SparkSession
spark = SparkSession.builder.master("local[2]").config("spark.ui.enabled", "false").getOrCreate()
assert spark.read.parquet(sys.argv[1]).count() == int(sys.argv[2])
"""


def main(runs: int) -> None:
    """Measure floors and commands in turns, and print a line for each."""
    with tempfile.TemporaryDirectory() as name, _chat_server() as url:
        folder = Path(name)
        environment = _home(folder, url)
        parquet = folder / "rows.parquet"
        _parquet(parquet)
        imports = [_PYTHON, "-c", "import dagster, mlflow"]
        landing = [_PYTHON, "-c", "import dagster, deltalake"]
        spark = [_PYTHON, "-c", _SPARK, str(parquet), str(_DOCUMENTS)]
        floors = {"imports of Dagster and MLflow": imports, "imports of Dagster and delta-rs": landing, "Spark": spark}
        count = "SELECT count(*) FROM m4_1_prod_data"
        # By name: the command, its floor, and its limit as a multiple of the floor plus some seconds.
        commands: dict[str, tuple[list[str], str, float, float]] = {
            "status": (["status"], "imports of Dagster and MLflow", 1.5, 0),
            "models": (["models"], "imports of Dagster and MLflow", 1.5, 0),
            "doctor": (["doctor"], "imports of Dagster and MLflow", 1.5, 0),
            "land": (["land", str(folder / "landed.jsonl")], "imports of Dagster and delta-rs", 1.5, 1),
            "query, a count": (["query", count], "Spark", 2, 0),
            "query, ten calls": (["query", _ASK], "Spark", 2, 5),
            "run, nothing to do": (["run"], "imports of Dagster and MLflow", 1, 5),
        }
        seconds: dict[str, list[float]] = {name: [] for name in (*floors, *commands)}
        for _ in range(runs):
            for name, command in floors.items():
                seconds[name].append(_seconds(command, dict(os.environ)))
            for name, (words, *_) in commands.items():
                seconds[name].append(_seconds([*_COMMAND, *words], environment))
        medians = {name: statistics.median(values) for name, values in seconds.items()}
        for name in floors:
            print(f"{name:<34} {medians[name]:6.1f} s", flush=True)
        for name, (_, floor, times, more) in commands.items():
            limit = times * medians[floor] + more
            print(
                f"batch-assets {name:<21} {medians[name]:6.1f} s, {medians[name] / medians[floor]:4.1f} times {floor}, "
                f"wanted: at most {limit:.1f} s",
                flush=True,
            )


def _seconds(command: list[str], environment: dict[str, str]) -> float:
    began = time.monotonic()
    subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.monotonic() - began


def _home(folder: Path, url: str) -> dict[str, str]:
    """Create a home and fill it with a run. Returns the environment for commands."""
    _documents(folder / "scored.jsonl", _DOCUMENTS)
    _documents(folder / "landed.jsonl", 1)
    (folder / "endpoints.toml").write_text(f'[endpoints.bench]\nbase_url = "{url}"\nmodel = "m"\n')
    settings = {
        "HOME": str(folder / "home"),
        "MODEL": str(SMALL_T5),
        "DATASET": str(folder / "scored.jsonl"),
        "BATCH_ROWS": str(_DOCUMENTS // 2),
        "EVALUATION_ROWS": "5",
        "ENDPOINTS": str(folder / "endpoints.toml"),
        "ENDPOINT": "bench",
    }
    environment = {**os.environ, **{f"{PREFIX}{name}": value for name, value in settings.items()}}
    # Land the file and run, so that the measured commands have nothing left to do.
    for words in (["land", str(folder / "landed.jsonl")], ["run"]):
        subprocess.run([*_COMMAND, *words], env=environment, check=True)
    return environment


def _documents(path: Path, count: int) -> None:
    from batch_assets.sources.aclsum import ACLSumDataset

    some = ACLSumDataset("validation", 25).held_out(count)
    rows = [{"id": item.id, "document": item.document, "summary": item.reference} for item in some]
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))


def _parquet(path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"id": range(_DOCUMENTS)}), path)


@contextmanager
def _chat_server() -> Iterator[str]:
    """Run a server that answers immediately; yields its address."""
    command = [_PYTHON, "-m", "tools.chat_server", "0", "64"]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin is not None and process.stdout is not None
    yield json.loads(process.stdout.readline())["url"]
    process.stdin.close()
    process.wait()


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 5)

"""Measure how times and sizes grow with the lake, with documents of 2 KB and an engine that only echoes.

    python -m tools.size 10 100 1000

One lake grows to each number of batches in turn, through the asset ``batch_inference`` itself, in one Spark session and
with Dagster's storage on SQLite. At each number, the program measures the waiting times and sizes of such a deployment.
The last column is the growth of a value relative to the growth of its work: 1 is in step, below 1 is slower.
"""

import argparse
import json
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from unittest.mock import patch

import dagster as dg
import psutil
import pyarrow as pa

from batch_assets.automation.jobs import pipeline_jobs
from batch_assets.automation.sensors import pipeline_sensors
from batch_assets.engines.contract import Completion, ScoringModel
from batch_assets.graph import observation
from batch_assets.graph.batch_inference import build_batch_inference
from batch_assets.graph.champion_model import build_champion_model
from batch_assets.graph.partitions import range_tags, register_batches
from batch_assets.graph.pipeline_names import AssetKeys
from batch_assets.graph.prod_data import build_prod_data
from batch_assets.lake.contracts import BATCH_INFERENCE, PROD_DATA
from batch_assets.lake.lake import Lake
from batch_assets.lake.staging import stage
from batch_assets.models.registry import Version
from batch_assets.operations.status import status_of
from batch_assets.resources.registry import ModelRegistry
from batch_assets.resources.spark import SparkResource
from batch_assets.scoring.scorer import score_batch
from batch_assets.settings import DEFAULT_PIPELINE, Settings
from batch_assets.staleness import input_metadata, stale_batches
from tools.dagster_ui import asset_page, graphql, webserver

ROWS, BYTES = 1000, 2048
_SCORED = AssetKeys(DEFAULT_PIPELINE).scored
_MODEL = ScoringModel("echo", 1, "0" * 64, "", {}, None, "echo", "none", 0, device_map="cpu")
_WORDS = [f"word{number}" for number in range(1000)]

# Values that should not grow at all, and values that may grow with the number of batches.
PER_BATCH = ("seconds a batch, last tenth", "driver MiB", "JVM MiB")
PER_LAKE = (
    "data files",
    "commits",
    "commits MiB",
    "checkpoint MiB",
    "seconds to open a table",
    "seconds of stale_batches",
    "seconds of the first tick",
    "seconds of a tick with nothing new",
    "seconds of a tick with a new batch",
    "cursor bytes",
    "seconds of the asset page",
    "seconds of the asset page again",
    "seconds of status",
)


class Echo:
    """An engine that writes the beginning of each document."""

    def __init__(self, model: ScoringModel, threads: int) -> None:
        self._characters = 100

    def stream(self, documents: Sequence[str], batch_tokens: int | None = None) -> Iterator[tuple[int, Completion]]:
        """Yield the first characters of each document."""
        for place, document in enumerate(documents):
            yield place, Completion(document[: self._characters], None, "stop", len(document), self._characters)


class Deployment:
    """A lake, Dagster's storage on SQLite and a Spark session, to which batches are added."""

    def __init__(self, home: Path, spark: SparkResource | None, rows: int = ROWS) -> None:
        self.settings = Settings(home=home, samples=3, mlflow_tracking_uri=None, mlflow_registry_uri=None)
        self.lake: Lake = Lake.of(self.settings)
        self._rows, self._spark = rows, spark
        self.seconds: list[float] = []
        self.scored = 0
        self._cursor: str | None = None
        folder = self.settings.dagster_home
        folder.mkdir(parents=True)
        (folder / "dagster.yaml").write_text("telemetry:\n  enabled: false\n")
        self._instance = dg.DagsterInstance.from_config(str(folder))

    def close(self) -> None:
        """Close Dagster's storage."""
        self._instance.dispose()

    def land(self, batch: str) -> None:
        """Write a batch of documents."""
        words, documents = random.Random(batch), self.lake.open(PROD_DATA)
        texts = [" ".join(words.choices(_WORDS, k=BYTES // 7))[:BYTES] for _ in range(self._rows)]
        table = pa.table(
            {
                "id": [f"{number:06}" for number in range(self._rows)],
                "document": texts,
                "summary": pa.nulls(self._rows, pa.string()),
                "source": pa.repeat("size", self._rows),
                "landed_at": pa.repeat(pa.scalar(datetime.now(UTC), pa.timestamp("us", tz="UTC")), self._rows),
            }
        )
        documents.replace(batch, stage([table], documents.staging_area(batch)), {"documents": self._rows})

    def score(self, batches: Sequence[str]) -> None:
        """Run ``batch_inference`` over a range of batches."""
        began = time.monotonic()
        if self._spark is None:
            self._commit(batches)
            self.seconds.append((time.monotonic() - began) / len(batches))
            return
        scored = build_batch_inference(self.settings)
        result = dg.materialize(
            [build_prod_data(self.settings), build_champion_model(self.settings), scored],
            selection=[scored],
            tags=range_tags(batches),
            instance=self._instance,
            resources={
                "lake": self.lake,
                "registry": ModelRegistry(self.settings),
                "spark": self._spark,
            },
        )
        self.seconds.append((time.monotonic() - began) / len(batches))
        for event in result.get_asset_materialization_events():
            self.scored += int(str(event.materialization.metadata["rows_scored"].value))

    def _commit(self, batches: Sequence[str]) -> None:
        """Commit and record batches like a run of ``batch_inference``, but without Spark."""
        output, documents = self.lake.open(BATCH_INFERENCE), self.lake.open(PROD_DATA)
        for batch in batches:
            missing = BATCH_INFERENCE.file_schema.names[len(PROD_DATA.file_schema.names) :]
            rows = pa.Table.from_batches(list(documents.read(batch, PROD_DATA.file_schema.names)))
            for name in missing:
                rows = rows.append_column(name, pa.nulls(len(rows), BATCH_INFERENCE.file_schema.field(name).type))
            recorded = {**input_metadata(documents, batch), "model_version": 1}
            version = output.replace(batch, stage([rows], output.staging_area(batch)), recorded)
            metadata = {"rows": self.lake.open(BATCH_INFERENCE).rows(batch)}
            tags = {"dagster/data_version": str(version)}
            self._instance.report_runless_asset_event(
                dg.AssetMaterialization(_SCORED, partition=batch, metadata=metadata, tags=tags)
            )

    def grow(self, size: int) -> None:
        """Land and score batches until there are ``size`` batches."""
        there = len(self.lake.open(PROD_DATA).batches())
        keys = [f"batch-{number:06}" for number in range(there, size)]
        self.seconds = []
        each = min(self.settings.batches_per_run, max(len(keys) // 5, 1))
        for first in range(0, len(keys), each):
            some = keys[first : first + each]
            for key in some:
                self.land(key)
            register_batches(self._instance, DEFAULT_PIPELINE, some)
            self.score(some)

    def tick(self) -> float:
        """Evaluate ``prod_data_sensor`` once. Returns the seconds."""
        jobs = {job.name: job for job in pipeline_jobs(self.settings)}
        sensor = next(one for one in pipeline_sensors(self.settings, jobs) if one.name == "prod_data_sensor")
        resources = {"lake": self.lake, "registry": ModelRegistry(self.settings)}

        def evaluate() -> None:
            context = dg.build_sensor_context(instance=self._instance, cursor=self._cursor, resources=resources)
            self._cursor = sensor.evaluate_tick(context).cursor

        return _seconds(evaluate)

    def asset_page(self) -> dict[str, float]:
        """Load the page of ``batch_inference`` twice. Returns the seconds of both."""
        key, batches = _SCORED.path[-1], self.lake.open(BATCH_INFERENCE).batches()
        with webserver(self.settings) as url:
            graphql(url, "{ assetNodes { id } }")  # loads the code, which is not part of the measurement
            pages: list[int] = []
            first, again = (_seconds(lambda: pages.append(asset_page(url, key, batches[-1]))) for _ in range(2))
        if pages != [len(batches)] * 2:
            raise RuntimeError(f"Dagster shows {pages} batches as materialized, but there are {len(batches)}")
        return {"seconds of the asset page": first, "seconds of the asset page again": again}

    def measure(self) -> dict[str, float]:
        """All values at the current size of the lake."""
        tables = (PROD_DATA, BATCH_INFERENCE)
        places = [Path(self.lake.table_uri(table)) for table in tables]
        tenth = max(len(self.seconds) // 10, 1)
        java = [child for child in psutil.Process().children(recursive=True) if child.name() == "java"]
        figures = {
            "documents": float(self.lake.open(BATCH_INFERENCE).rows()),
            "seconds a batch, first tenth": sum(self.seconds[:tenth]) / tenth,
            "seconds a batch, last tenth": sum(self.seconds[-tenth:]) / tenth,
            "driver MiB": psutil.Process().memory_info().rss / 2**20,
            "JVM MiB": sum(process.memory_info().rss for process in java) / 2**20,
            "data files": float(sum(len(list(place.glob("batch=*/*.parquet"))) for place in places)),
            "commits": float(sum(self.lake.open(table).version for table in tables)),
            "commits MiB": _mebibytes([path for place in places for path in place.glob("_delta_log/*.json")]),
            # Only the newest, because upkeep removes the others.
            "checkpoint MiB": _mebibytes([max(p.glob("_delta_log/*.checkpoint*.parquet"), default=p) for p in places]),
            "seconds to open a table": _seconds(lambda: self.lake.open(BATCH_INFERENCE).files("none")),
            "seconds of stale_batches": _seconds(
                lambda: stale_batches(self.lake.open(PROD_DATA), self.lake.open(BATCH_INFERENCE), frozenset())
            ),
        }
        observation._last_snapshots.clear()
        self._cursor = None
        figures["seconds of the first tick"] = self.tick()
        figures["seconds of a tick with nothing new"] = self.tick()
        self.land("new")
        figures["seconds of a tick with a new batch"] = self.tick()
        figures["cursor bytes"] = float(len(self._cursor or ""))
        documents = self.lake.open(PROD_DATA)
        documents.replace("new", [], {})
        figures |= self.asset_page()
        figures["seconds of status"] = _seconds(lambda: status_of(self.settings))
        return figures


def _mebibytes(files: Sequence[Path]) -> float:
    return sum(file.stat().st_size for file in files if file.is_file()) / 2**20


def _seconds(work: Callable[[], object]) -> float:
    began = time.monotonic()
    work()
    return time.monotonic() - began


def measured(
    home: Path, spark: SparkResource | None, sizes: Sequence[int], rows: int = ROWS
) -> Iterator[dict[str, float]]:
    """Grow one lake to each size in turn, and yield its values."""
    from pyspark import cloudpickle

    cloudpickle.register_pickle_by_value(sys.modules[__name__])  # type: ignore[no-untyped-call]
    version = Version("echo", 1, "0", {})
    registry = "batch_assets.models.registry"
    with ExitStack() as stack:
        for name, stand_in in {
            f"{registry}.RegisteredModel.champion": lambda model: version,
            f"{registry}.RegisteredModel.version": lambda model, number: version,
            f"{registry}.scoring_model": lambda client, version, settings: _MODEL,
            "batch_assets.automation.sensors.champion_number": lambda registry, settings: version.number,
            "batch_assets.scoring.scorer.score_batch": partial(score_batch, load=Echo),
        }.items():
            stack.enter_context(patch(name, stand_in))
        deployment = Deployment(home, spark, rows)
        stack.callback(deployment.close)
        for size in sizes:
            deployment.grow(size)
            yield {"batches": float(size), "rows scored": float(deployment.scored), **deployment.measure()}


def growth(figures: Sequence[dict[str, float]], name: str) -> float:
    """The growth of a value relative to its work, from the first size to the last."""
    first, last = figures[0], figures[-1]
    work = last["batches"] / first["batches"] if name in PER_LAKE else 1.0
    return last[name] / max(first[name], 1e-9) / work


def table(figures: Sequence[dict[str, float]]) -> str:
    """Format the values: a line for each value, a column for each size."""
    lines = []
    for name in figures[0]:
        columns = "".join(f"{each[name]:>14,.2f}" for each in figures)
        known = name in (*PER_BATCH, *PER_LAKE)
        lines.append(f"{name:<38}{columns}" + (f"{growth(figures, name):>10.2f}" if known else ""))
    return "\n".join(lines)


def main() -> None:
    """Print the table after each size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sizes", nargs="+", type=int, help="numbers of batches, rising")
    parser.add_argument("--rows", type=int, default=ROWS, help="documents of a batch")
    parser.add_argument("--no-spark", action="store_true", help="commit and record without scoring")
    arguments = parser.parse_args()
    spark = None if arguments.no_spark else SparkResource(master="local[2,4]")
    figures = []
    try:
        with tempfile.TemporaryDirectory(prefix="size-") as folder:
            for each in measured(Path(folder), spark, arguments.sizes, arguments.rows):
                figures.append(each)
                print(table(figures), flush=True)
                print(json.dumps(each), flush=True)
    finally:
        if spark is not None:
            spark.stop()


if __name__ == "__main__":
    main()

"""Measure the scoring stage against the talk's own path, ``mlflow.pyfunc.spark_udf``, in the same run.

Both sides run the same registered SmolLM2 on the same Spark session, model load included, Spark's start not.
The baseline gets fewer rows: it takes one at a time, so its cost per row does not depend on how many there are.
"""

import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa

from batch_assets.inference.completions import CompletionStore
from batch_assets.inference.scorer import score_batch
from batch_assets.lake.deltars import read_batch
from batch_assets.lake.lake import Lake
from batch_assets.lake.staging import stage
from batch_assets.lake.tables import BATCH_INFERENCE, PROD_DATA
from batch_assets.models.checkpoint import load_checkpoint
from batch_assets.models.logged import log_checkpoint
from batch_assets.models.registry import register, scoring_model
from batch_assets.models.tracking import connect
from batch_assets.resources.spark import SparkResource
from batch_assets.settings import Settings, load_settings
from batch_assets.sources.aclsum import ACLSumDataset

_RUNS, _BASELINE_ROWS, _OUR_ROWS = 3, 4, 48


def main() -> None:
    """Print documents a second of both sides, their ratio, and memory."""
    checkpoints = load_settings().home / "checkpoints"
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        checkpoints.mkdir(parents=True, exist_ok=True)
        (home / "checkpoints").symlink_to(checkpoints)
        _measure(Settings(home=home))


def _measure(settings: Settings) -> None:
    import mlflow

    client = connect(settings)
    dataset = ACLSumDataset("test", _OUR_ROWS)
    documents = dataset.held_out(_OUR_ROWS)
    checkpoint = load_checkpoint(settings)
    logged = log_checkpoint(client, settings, checkpoint, dataset, documents[0].document or "", lambda line: None)
    version, _ = register(client, settings.registered_model, logged.run, {})
    model = scoring_model(client, version, settings)
    spark = SparkResource(master="local[*,4]").session
    lake = Lake(settings.lake_uri)
    for batch, rows in (("baseline", _BASELINE_ROWS), ("ours", _OUR_ROWS)):
        snapshot = lake.open(PROD_DATA)
        now = datetime.now(UTC)
        table = pa.Table.from_pylist(
            [
                {"id": d.id, "document": d.document, "summary": d.summary, "source": d.source, "landed_at": now}
                for d in documents[:rows]
            ],
            schema=PROD_DATA.file_schema,
        )
        staged = stage([table], snapshot.staging_area(batch))
        snapshot.replace(batch, staged, {})
    source = lake.open(PROD_DATA)

    def baseline() -> None:
        udf = mlflow.pyfunc.spark_udf(spark, version.uri, result_type="string")
        frame = read_batch(spark, source, "baseline").repartition(2)
        assert len(frame.withColumn("generated_summary", udf("document")).collect()) == _BASELINE_ROWS

    def ours() -> None:
        output = lake.open(BATCH_INFERENCE)
        if output.rows("ours"):
            output.replace("ours", [], {})
            output = lake.open(BATCH_INFERENCE)
        store = CompletionStore.of(lake, BATCH_INFERENCE, "ours", model.digest)
        scored = score_batch(spark, source, output, "ours", model, store, {}, lambda line: None)
        assert scored.scored == _OUR_ROWS

    before = _rate(baseline, _BASELINE_ROWS)
    after = _rate(ours, _OUR_ROWS)
    print(f"spark_udf      {before:6.2f} documents/s ({_BASELINE_ROWS} documents, median of {_RUNS})")
    print(f"batch_assets   {after:6.2f} documents/s ({_OUR_ROWS} documents, median of {_RUNS})")
    print(f"ratio          {after / before:6.1f}")
    workers = spark.range(8).repartition(8).mapInArrow(_peak_memory, "mebibytes double").collect()
    print(f"peak memory    {max(row['mebibytes'] for row in workers):6.0f} MiB in the largest Python worker")
    spark.stop()


def _peak_memory(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    for _ in batches:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        yield pa.RecordBatch.from_pydict({"mebibytes": [peak]})


def _rate(work: Callable[[], None], rows: int) -> float:
    seconds = []
    for _ in range(_RUNS):
        started = time.monotonic()
        work()
        seconds.append(time.monotonic() - started)
    return rows / statistics.median(seconds)


if __name__ == "__main__":
    main()

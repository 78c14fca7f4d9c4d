"""Score one batch on Spark: finish what is missing, put the rows together, commit once.

Workers write finished completions as they go, so a run that was killed goes on where it stopped. Rows
never pass through the driver.
"""

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from batch_assets.errors import BatchAssetsError
from batch_assets.inference.completions import Completion, CompletionStore, FinishedWork, refuse_if_all_failed
from batch_assets.inference.contract import Engine, ScoringModel
from batch_assets.inference.engines import load_engine
from batch_assets.inference.progress import progress
from batch_assets.lake.lake import BatchSnapshot
from batch_assets.lake.tables import BATCH_INFERENCE, PROD_DATA

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

# Columns of the output and the fields of a completion that they hold.
_COLUMNS = {
    "request_hash": "request_hash",
    "generated_summary": "text",
    "error_message": "error_message",
    "finish_reason": "finish_reason",
    "input_tokens": "input_tokens",
    "output_tokens": "output_tokens",
    "input_truncated": "input_truncated",
    "model_name": "model",
    "model_version": "model_version",
    "scored_at": "completed_at",
}

# A worker that is killed loses at most what it finished since its last flush.
_FLUSH_SECONDS = 2.0
_FIRST_ROWS, _MOST_ROWS = 8, 512


@dataclass(frozen=True)
class ScoredBatch:
    """What scoring one batch came to; ``scored`` rows ran through the model in this run."""

    version: int
    rows: int
    scored: int
    errors: int
    seconds: float


def score_batch(
    spark: "SparkSession",
    documents: BatchSnapshot,
    output: BatchSnapshot,
    batch: str,
    model: ScoringModel,
    store: CompletionStore,
    metadata: Mapping[str, Any],
    report: Callable[[str], None],
) -> ScoredBatch:
    """Write one summary for every document of a batch, and commit the batch once.

    Args:
        spark: the session.
        documents: ``m4_1_prod_data`` at the version to be scored.
        output: ``m4_1_batch_inference``, opened before the versions were resolved.
        batch: key of the batch.
        model: the version that writes.
        store: where finished completions go.
        metadata: what the commit records.
        report: takes lines on the progress.

    Raises:
        BatchAssetsError: the rows that were made are not those that were there.
        ConcurrentCommitError: somebody else has replaced the batch meanwhile.
    """
    from batch_assets.lake.deltars import read_batch, stage_frame

    started = time.monotonic()
    frame = read_batch(spark, documents, batch)
    finished = FinishedWork.of(store, output, batch, _COLUMNS)
    rows = documents.rows(batch)
    with progress(f"batch {batch}", rows, store.count, report):
        scored = _complete(spark, frame, model, finished)
    refuse_if_all_failed(store, batch)
    staged = stage_frame(_assemble(frame, model, finished), output, batch)
    staged_rows = sum(file.rows for file in staged)
    if staged_rows != rows:
        raise BatchAssetsError(
            f"batch {batch} has {rows} documents, but {staged_rows} rows were scored; nothing was committed"
        )
    version = output.replace(batch, staged, metadata)
    store.clear()
    errors = sum(file.rows - file.null_counts["error_message"] for file in staged)
    return ScoredBatch(version, rows, scored, errors, time.monotonic() - started)


def _complete(spark: "SparkSession", frame: "DataFrame", model: ScoringModel, finished: FinishedWork) -> int:
    """Make the completions that are missing, equal requests once; the number that was made."""
    slots = spark.sparkContext.defaultParallelism
    threads = _threads_per_worker(spark, slots)

    def hashed(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for rows in batches:
            texts = [text for text in rows.column("document").to_pylist() if text is not None]
            hashes = [model.request_hash(text) for text in texts]
            yield pa.RecordBatch.from_pydict({"request_hash": hashes, "document": texts}, schema=_REQUEST_SCHEMA)

    def score(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        known = finished.load()
        made = 0
        for rows in batches:
            missing = [row for row in rows.to_pylist() if row["request_hash"] not in known]
            if missing:
                made += _generate(missing, model, finished.store, threads)
        yield pa.RecordBatch.from_pydict({"scored": [made]})

    requests = frame.select("document").mapInArrow(hashed, "request_hash string, document string")
    spread = requests.dropDuplicates(["request_hash"]).repartition(slots)
    counts = spread.mapInArrow(score, "scored long").collect()
    return sum(row["scored"] for row in counts)


_REQUEST_SCHEMA = pa.schema([("request_hash", pa.string()), ("document", pa.string())])


def _assemble(frame: "DataFrame", model: ScoringModel, finished: FinishedWork) -> "DataFrame":
    """Rows of the output: the documents, each with its completion."""
    schema = BATCH_INFERENCE.arrow_schema

    def join(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        known = finished.load()
        for rows in batches:
            joined = []
            for row in rows.to_pylist():
                if row["document"] is None:
                    joined.append({**row, "model_name": model.name, "model_version": model.version})
                    continue
                completion = known[model.request_hash(row["document"])]
                joined.append({**row, **{name: getattr(completion, key) for name, key in _COLUMNS.items()}})
            yield pa.RecordBatch.from_pylist(joined, schema=schema)

    return frame.select(*PROD_DATA.column_names).mapInArrow(join, BATCH_INFERENCE.spark_ddl)


def _generate(requests: Sequence[dict[str, str]], model: ScoringModel, store: CompletionStore, threads: int) -> int:
    """Score requests, shortest first, and write what is finished every few seconds."""
    engine = _engine(model, threads)
    requests = sorted(requests, key=lambda request: len(request["document"]))
    start = 0
    # Parts are bounded by length, not by rows: after many short documents come the long ones.
    size = sum(len(request["document"]) for request in requests[:_FIRST_ROWS])
    finished: list[Completion] = []
    flushed = time.monotonic()
    while start < len(requests):
        part = _take(requests[start:], size)
        began = time.monotonic()
        generations = engine.generate([request["document"] for request in part])
        now = datetime.now(UTC)
        finished += [
            Completion(
                request_hash=request["request_hash"],
                text=generation.text,
                error_message=generation.error_message,
                finish_reason=generation.finish_reason,
                input_tokens=generation.input_tokens,
                output_tokens=generation.output_tokens,
                input_truncated=generation.input_truncated,
                model=model.name,
                model_version=model.version,
                completed_at=now,
            )
            for request, generation in zip(part, generations, strict=True)
        ]
        start += len(part)
        if time.monotonic() - began < _FLUSH_SECONDS:
            size *= 2
        if time.monotonic() - flushed >= _FLUSH_SECONDS:
            store.write(finished)
            finished, flushed = [], time.monotonic()
    store.write(finished)
    return len(requests)


def _take(requests: Sequence[dict[str, str]], size: int) -> Sequence[dict[str, str]]:
    """The first requests with no more than ``size`` characters, at least one and not too many."""
    total = 0
    for count, request in enumerate(requests[:_MOST_ROWS]):
        total += len(request["document"])
        if total > size and count:
            return requests[:count]
    return requests[:_MOST_ROWS]


# The engine of this worker process, kept for all batches of a run.
_loaded: dict[str, Engine] = {}


def _engine(model: ScoringModel, threads: int) -> Engine:
    key = f"{model.path} {model.request_hash('')} {model.device_map}"
    if key not in _loaded:
        _loaded.clear()
        _loaded[key] = load_engine(model, threads)
    return _loaded[key]


def _threads_per_worker(spark: "SparkSession", slots: int) -> int:
    """Threads of one worker, so that workers times threads is no more than the cores."""
    if str(spark.sparkContext.master).startswith("local"):
        return max((os.cpu_count() or 1) // slots, 1)
    return int(spark.conf.get("spark.task.cpus", "1") or 1)

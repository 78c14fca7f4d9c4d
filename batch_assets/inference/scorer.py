"""Score one batch on Spark: finish what is missing, put the rows together, commit once.

Workers write finished completions as they go, so a run that was killed goes on where it stopped. Rows
never pass through the driver.
"""

import gc
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from batch_assets.inference.artifacts import Artifact
from batch_assets.inference.completions import (
    COMPLETION_SCHEMA,
    CompletionStore,
    FinishedWork,
    refuse_if_all_failed,
)
from batch_assets.inference.contract import Engine, RowError, ScoringModel
from batch_assets.inference.encoding import texts_of
from batch_assets.inference.engines import MLFLOW, load_engine
from batch_assets.inference.progress import progress
from batch_assets.inference.spark_udf import score_with_spark_udf
from batch_assets.inference.worker import CAREFUL_ATTEMPT, REPORT_DDL, Scoring
from batch_assets.lake.counts import Counts, check_rows, counts_of
from batch_assets.lake.lake import BatchSnapshot
from batch_assets.lake.tables import BATCH_INFERENCE, PROD_DATA
from batch_assets.sessions import cores_of, is_connect, is_local, slots_of
from batch_assets.text import has_text

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession
    from pyspark.sql.types import StructType

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
_HASH = "_request_hash"


@dataclass(frozen=True)
class Workers:
    """The worker processes of a scoring job: how often a model was loaded, the longest load, the largest peak."""

    processes: int
    loads: int
    load_seconds: float
    mebibytes: float


@dataclass(frozen=True)
class ScoredBatch:
    """The outcome of scoring one batch; ``scored`` completions were made in this run, by what was written down."""

    version: int
    rows: int
    scored: int
    counts: Counts
    seconds: float
    workers: Workers | None


def score_batch(
    spark: "SparkSession",
    documents: BatchSnapshot,
    output: BatchSnapshot,
    batch: str,
    model: ScoringModel,
    store: CompletionStore,
    metadata: Mapping[str, Any],
    report: Callable[[str], None],
    load: Callable[[ScoringModel, int], Engine] = load_engine,
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
        load: makes the engine of a worker from a model and a number of threads.

    Raises:
        BatchAssetsError: every request failed, rows are missing, or rows have neither a summary nor an error.
        ConcurrentCommitError: somebody else has replaced the batch meanwhile.
    """
    from batch_assets.lake.deltars import read_batch, stage_frame

    started = time.monotonic()
    frame = read_batch(spark, documents, batch).select(*PROD_DATA.column_names)
    hashed = frame.mapInArrow(_with_hash(model), f"{PROD_DATA.spark_ddl}, {_HASH} string")
    finished = FinishedWork.of(store, output, batch, _COLUMNS)
    with output.saying_if_overtaken(batch):
        scored, workers = _complete(spark, hashed, batch, model, finished, report, load)
        staged = stage_frame(_assemble(spark, hashed, model, finished), output, batch)
        counts, rows = counts_of(staged), documents.rows(batch)
        refuse_if_all_failed(store, batch, counts.summaries)
        check_rows(batch, staged, rows)
    version = output.replace(batch, staged, metadata)
    store.clear_batch()
    return ScoredBatch(version, rows, scored, counts, time.monotonic() - started, workers)


def _with_hash(model: ScoringModel) -> Callable[[Iterator[pa.RecordBatch]], Iterator[pa.RecordBatch]]:
    """Add the hash of each document's request; null for a document without text, which makes none."""

    def add_hash(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for rows in batches:
            hashes = [
                model.request_hash(text) if has_text(text) else None for text in texts_of(rows.column("document"))
            ]
            yield pa.RecordBatch.from_arrays(
                [*rows.columns, pa.array(hashes, pa.string())], names=[*rows.schema.names, _HASH]
            )

    return add_hash


def _complete(
    spark: "SparkSession",
    hashed: "DataFrame",
    batch: str,
    model: ScoringModel,
    finished: FinishedWork,
    report: Callable[[str], None],
    load: Callable[[ScoringModel, int], Engine],
) -> tuple[int, Workers | None]:
    """Make the completions that are missing, equal requests once; the number that was made, and by whom."""
    slots, threads, gpus = _resources(spark, model)
    requests = hashed.where(hashed[_HASH].isNotNull()).select(hashed[_HASH].alias("request_hash"), "document")
    requests = requests.dropDuplicates(["request_hash"])
    known = _completions(spark, finished)
    if known is not None:
        requests = requests.join(known, "request_hash", "left_anti")
    missing = requests.repartition(slots).persist()
    try:
        total = missing.count()
        if not total:
            return 0, None
        report(f"batch {batch}: {total} documents to score with {model.engine} in {model.dtype}")
        before = finished.store.count()
        with progress(f"batch {batch}", total, finished.store.count, report):
            if model.engine == MLFLOW:
                score_with_spark_udf(spark, missing, model, finished.store)
                return finished.store.count() - before, None
            scoring = Scoring(
                job=uuid.uuid4().hex,
                first_attempt=0,
                model=model,
                artifacts={} if is_local(spark) else _artifacts(model),
                store=finished.store,
                threads=threads,
                gpus=gpus,
                gpus_each=max(gpus // slots, 1),
                load=load,
            )
            workers = _score(spark, missing, scoring)
        report(
            f"batch {batch}: {workers.processes} workers, {workers.mebibytes:.0f} MiB at most"
            + (f", model loaded in {workers.load_seconds:.1f} s" if workers.loads else "")
        )
        return finished.store.count() - before, workers
    finally:
        missing.unpersist()


def _score(spark: "SparkSession", missing: "DataFrame", scoring: Scoring) -> Workers:
    """Run the job, again where rows have killed their workers so often that Spark gave up."""
    deaths = 0
    while True:
        try:
            with _own_workers(spark, scoring.threads):
                job = missing.mapInArrow(scoring.run, REPORT_DDL)
            tasks = job.collect()
        except Exception:
            died = scoring.store.tried(scoring.job).total()
            if died <= deaths or scoring.store.error_of_all() is not None:
                raise
            deaths = died
            scoring = replace(scoring, first_attempt=CAREFUL_ATTEMPT)
            continue
        return Workers(
            processes=len({task["worker"] for task in tasks if task["scored"]}),
            loads=sum(task["loads"] for task in tasks),
            load_seconds=max(task["load_seconds"] for task in tasks),
            mebibytes=max(task["mebibytes"] for task in tasks),
        )


@contextmanager
def _own_workers(spark: "SparkSession", threads: int) -> Iterator[None]:
    """Functions made within run in Python processes of their own.

    Spark hands out idle Python processes in turn; without this, every process that ever read a file would one day load
    the model too. It keeps them apart by their environment.
    """
    if is_connect(spark):  # the server's own
        yield
        return
    environment = spark.sparkContext.environment
    before = dict(environment)
    environment.update({"BATCH_ASSETS_WORKERS": "scoring", "OMP_NUM_THREADS": str(threads)})
    try:
        yield
    finally:
        environment.clear()
        environment.update(before)


def _completions(spark: "SparkSession", finished: FinishedWork) -> "DataFrame | None":
    """All finished completions, one for each request; None if there are none."""
    from pyspark.sql import functions as F  # noqa: N812 - as Spark's documentation has it

    paths = [("store", path) for path in finished.store.paths()]
    paths += [("output", path) for path in finished.output_files]
    if not paths:
        return None

    def read(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for files in batches:
            for file in files.to_pylist():
                reader = finished.read_store if file["kind"] == "store" else finished.read_output
                for rows in reader(file["path"]):
                    yield rows.cast(COMPLETION_SCHEMA)

    # As an Arrow table: Spark would start Python workers of another kind for a list.
    files = spark.createDataFrame(pa.table({"kind": [kind for kind, _ in paths], "path": [path for _, path in paths]}))
    spread = files.repartition(min(len(paths), slots_of(spark)))
    made = spread.mapInArrow(read, _completion_type())
    # Of two completions of the same request, that with a text: a worker that was given up may still have finished.
    best = made.groupBy("request_hash").agg(
        F.min_by(F.struct(*made.columns), F.col("error_message").isNotNull()).alias("best")
    )
    return best.select("best.*")


def _completion_type() -> "StructType":
    from pyspark.sql.pandas.types import from_arrow_schema

    return from_arrow_schema(COMPLETION_SCHEMA)


def _assemble(spark: "SparkSession", hashed: "DataFrame", model: ScoringModel, finished: FinishedWork) -> "DataFrame":
    """Rows of the output: the documents, each with its completion."""
    from pyspark.sql import functions as F  # noqa: N812 - as Spark's documentation has it

    completions = _completions(spark, finished)
    if completions is None:
        completions = spark.createDataFrame([], _completion_type())
    joined = hashed.join(completions, hashed[_HASH] == completions["request_hash"], "left")
    scored = {name: F.col(field) for name, field in _COLUMNS.items()}
    scored["error_message"] = F.when(F.col(_HASH).isNull(), RowError.NO_TEXT.value).otherwise(F.col("error_message"))
    # A document without text went through no model, but its row belongs to this one's batch.
    scored["model_name"] = F.coalesce(F.col("model"), F.lit(model.name))
    scored["model_version"] = F.coalesce(F.col("model_version"), F.lit(model.version))
    return joined.select(
        *[scored.get(name, F.col(name)).alias(name) for name in BATCH_INFERENCE.column_names],
    )


def _resources(spark: "SparkSession", model: ScoringModel) -> tuple[int, int, int]:
    """Tasks at a time, CPU threads of each so that their product is no more than the cores, GPUs to share."""
    slots = slots_of(spark)
    if not is_local(spark):
        return slots, int(spark.conf.get("spark.task.cpus", "1") or 1), 0
    cores = cores_of(spark)
    gpus = _gpus() if model.device_map == "auto" else 0
    slots = min(slots, gpus) if gpus else 1 if model.device_map.startswith(("cuda", "mps")) else min(slots, cores)
    return slots, max(cores // slots, 1), gpus


def _artifacts(model: ScoringModel) -> dict[str, Artifact]:
    """What workers on other hosts fetch, by the field of the model that names its folder."""
    found = {"path": Artifact.of(model.path, model.uri)}
    if model.engine_path:
        found["engine_path"] = Artifact.of(model.engine_path, model.engine_uri)
    return found


def _gpus() -> int:
    """GPUs that workers may have; what the driver's models held of their memory is given back."""
    import torch

    if torch.cuda.is_available():
        gc.collect()
        torch.cuda.empty_cache()
    return int(torch.cuda.device_count())

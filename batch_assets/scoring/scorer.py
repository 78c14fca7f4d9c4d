"""Score one batch on Spark: complete the missing requests, assemble the rows, commit once.

Workers write finished completions as they go, so a killed run resumes where it stopped. Rows never pass
through the driver.
"""

import gc
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from batch_assets.engines.catalog import MLFLOW, load_engine
from batch_assets.engines.choice import is_cpu_build
from batch_assets.engines.contract import FINAL_ERRORS, SYSTEMIC_ERRORS, Engine, RowError, ScoringModel
from batch_assets.errors import BatchAssetsError
from batch_assets.isolation import end_isolated_process
from batch_assets.lake.contracts import Table
from batch_assets.lake.counts import Counts, check_rows, counts_of
from batch_assets.lake.lake import BatchSnapshot
from batch_assets.scoring.completions import (
    COMPLETION_SCHEMA,
    CompletionStore,
    FinishedWork,
    refuse_if_all_failed,
)
from batch_assets.scoring.model_artifacts import Artifact
from batch_assets.scoring.progress import progress
from batch_assets.scoring.spark_udf import score_with_spark_udf
from batch_assets.scoring.worker import CAREFUL_ATTEMPT, MANY_ROWS, REPORT_DDL, Scoring
from batch_assets.spark_sessions import available_cores, is_connect, is_local, task_slots
from batch_assets.text import has_text, texts_of

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession
    from pyspark.sql.types import StructType

# A batch fails if more than one in this many of its requests, and more than a few, killed their workers.
_BLAMED_SHARE = 10
_HASH = "_request_hash"
# Columns of completions: whether this run wrote it, whether it is finished, and the attempts of all runs.
_IS_NEW, _IS_FINISHED, _ATTEMPTS = "_is_new", "_is_finished", "_attempts"


@dataclass(frozen=True)
class Workers:
    """The worker processes of a scoring job, with the number of model loads, the longest load and the memory peak."""

    processes: int
    loads: int
    load_seconds: float
    mebibytes: float


@dataclass(frozen=True)
class ScoredBatch:
    """The outcome of scoring one batch; ``scored`` counts the completions that this run wrote."""

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
    *,
    retry_errors: bool = False,
) -> ScoredBatch:
    """Write one answer for every document of a batch, and commit the batch once.

    Args:
        spark: the session.
        documents: the documents, at the version to score.
        output: the table of the answers, opened before the versions were resolved.
        batch: key of the batch.
        model: the version that writes the answers.
        store: where finished completions are written.
        metadata: what the commit records.
        report: called with each progress message.
        load: creates the engine of a worker from a model and a number of threads.
        retry_errors: request all failed rows of the current output again, even if they would fail again.

    Raises:
        BatchAssetsError: every request failed, rows are missing, or rows have neither an answer nor an error.
        ConcurrentCommitError: another writer replaced the batch in the meantime.
    """
    from batch_assets.lake.deltars import read_batch, stage_frame

    started = time.monotonic()
    frame = read_batch(spark, documents, batch).select(*documents.table.column_names)
    hashed = frame.mapInArrow(_with_hash(model), f"{documents.table.spark_ddl}, {_HASH} string")
    finished = FinishedWork.of(store, output, batch, retry_errors=retry_errors)
    with output.raise_if_superseded(batch):
        scored, workers = _score_missing(spark, hashed, batch, model, finished, report, load)
        staged = stage_frame(_assemble(spark, hashed, output.table, model, finished), output, batch)
        counts, rows = counts_of(staged), documents.rows(batch)
        refuse_if_all_failed(store, batch, counts.summaries)
        check_rows(batch, staged, rows, output.table.output_column)
    version = output.replace(batch, staged, metadata)
    store.clear_batch()
    return ScoredBatch(version, rows, scored, counts, time.monotonic() - started, workers)


def _with_hash(model: ScoringModel) -> Callable[[Iterator[pa.RecordBatch]], Iterator[pa.RecordBatch]]:
    """Add the hash of each document's request; null for a document without text, which needs no request."""

    def add_hash(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for rows in batches:
            hashes = [
                model.request_hash(text) if has_text(text) else None for text in texts_of(rows.column("document"))
            ]
            yield pa.RecordBatch.from_arrays(
                [*rows.columns, pa.array(hashes, pa.string())], names=[*rows.schema.names, _HASH]
            )

    return add_hash


def _score_missing(
    spark: "SparkSession",
    hashed: "DataFrame",
    batch: str,
    model: ScoringModel,
    finished: FinishedWork,
    report: Callable[[str], None],
    load: Callable[[ScoringModel, int], Engine],
) -> tuple[int, Workers | None]:
    """Score the missing requests, equal ones once. Returns the number of new completions, and the workers."""
    slots, threads, gpus = _resources(spark, model)
    requests = hashed.where(hashed[_HASH].isNotNull()).select(hashed[_HASH].alias("request_hash"), "document")
    requests = requests.dropDuplicates(["request_hash"])
    known = _completions(spark, finished)
    if known is not None:
        requests = requests.join(known.where(known[_IS_FINISHED]), "request_hash", "left_anti")
    missing = requests.repartition(slots).persist()
    try:
        total = missing.count()
        if not total:
            return 0, None
        report(f"batch {batch}: {total} documents to score with {model.engine} in {model.dtype}")
        before = finished.store.count()
        with progress(f"batch {batch}", total, finished.store.count, report):
            if model.engine == MLFLOW.name:
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
            workers = _run_job(spark, missing, total, scoring)
        report(
            f"batch {batch}: {workers.processes} workers, {workers.mebibytes:.0f} MiB at most"
            + (f", model loaded in {workers.load_seconds:.1f} s" if workers.loads else "")
        )
        return finished.store.count() - before, workers
    finally:
        missing.unpersist()


def _run_job(spark: "SparkSession", missing: "DataFrame", requests: int, scoring: Scoring) -> Workers:
    """Run the scoring job for a number of requests, and again if rows killed so many workers that Spark gave up.

    With a master such as local[2], Spark gives up after one, and kills the workers of other tasks too. So the rows that
    were being scored are scored first, in one task: only a row that kills its worker is found there twice.

    Raises:
        BatchAssetsError: too many rows killed their workers to blame the documents.
    """
    deaths = Counter[str]()
    tasks: list[Any] = []
    while True:
        suspects = [request for request in deaths if request != MANY_ROWS]
        try:
            with _dedicated_workers(spark, scoring.threads):
                if suspects:
                    alone = missing.where(missing["request_hash"].isin(suspects)).coalesce(1)
                    tasks += alone.mapInArrow(scoring.run, REPORT_DDL).collect()
                tasks += missing.mapInArrow(scoring.run, REPORT_DDL).collect()
        except Exception:
            died = scoring.store.attempts(scoring.job)
            blamed = len(scoring.store.blamed())
            if blamed > max(SYSTEMIC_ERRORS, requests // _BLAMED_SHARE):
                scoring.store.forget_blamed()
                raise BatchAssetsError(
                    f"{blamed} documents killed their workers, so the cause is probably the model, the memory or the "
                    "device, and nothing was committed; the next run scores them again"
                ) from None
            if died.total() <= deaths.total():
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
def _dedicated_workers(spark: "SparkSession", threads: int) -> Iterator[None]:
    """Run Spark functions that are created in this block in separate Python processes.

    Spark reuses idle Python processes with the same environment. Without this, every process that ever read a file
    would sooner or later load the model too.
    """
    if is_connect(spark):  # the environment is the server's
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
    """All completions, one per request, with a column that says whether it is finished. None if there are none."""
    from pyspark.sql import functions as F  # noqa: N812 - the name in Spark's documentation

    paths = [("store", path) for path in finished.store.paths()]
    paths += [("output", path) for path in finished.output_files]
    if not paths:
        return None

    def read(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for files in batches:
            for file in files.to_pylist():
                is_new = file["kind"] == "store"
                for rows in finished.read_store(file["path"]) if is_new else finished.read_output(file["path"]):
                    yield rows.cast(COMPLETION_SCHEMA).append_column(_IS_NEW, pa.repeat(is_new, len(rows)))

    # An Arrow table, because Spark would start another kind of Python workers for a list.
    files = spark.createDataFrame(pa.table({"kind": [kind for kind, _ in paths], "path": [path for _, path in paths]}))
    spread = files.repartition(min(len(paths), task_slots(spark)))
    completions = spread.mapInArrow(read, _completion_type())
    is_failed = F.col("error_message").isNotNull()
    # Prefer a completion with a text: a worker that Spark gave up on may still have finished. Prefer the newer error.
    rank = F.when(~is_failed, 0).when(F.col(_IS_NEW), 1).otherwise(2)
    # Equal documents have the same attempts in the output.
    # Tasks that Spark repeats count once.
    earlier, now = F.max(F.when(~F.col(_IS_NEW), F.col("attempts"))), F.max(F.when(F.col(_IS_NEW), F.col("attempts")))
    best = completions.groupBy("request_hash").agg(
        F.min_by(F.struct(*completions.columns), rank).alias("best"),
        (F.coalesce(earlier, F.lit(0)) + F.coalesce(now, F.lit(0))).alias(_ATTEMPTS),
    )
    is_final = F.col("error_class").isin(*FINAL_ERRORS)
    if finished.retry_errors:
        is_final = is_final & F.col(_IS_NEW)
    found = best.select("best.*", _ATTEMPTS)
    return found.withColumn("attempts", F.when(F.col("attempts").isNotNull(), F.col(_ATTEMPTS))).withColumn(
        _IS_FINISHED, ~is_failed | F.coalesce(is_final, F.lit(False))
    )


def _completion_type() -> "StructType":
    from pyspark.sql.pandas.types import from_arrow_schema

    return from_arrow_schema(COMPLETION_SCHEMA).add(_IS_NEW, "boolean")


def _assemble(
    spark: "SparkSession", hashed: "DataFrame", table: Table, model: ScoringModel, finished: FinishedWork
) -> "DataFrame":
    """Join the documents with their completions into output rows."""
    from pyspark.sql import functions as F  # noqa: N812 - the name in Spark's documentation

    completions = _completions(spark, finished)
    if completions is None:
        completions = spark.createDataFrame([], _completion_type())
    joined = hashed.join(completions, hashed[_HASH] == completions["request_hash"], "left")
    scored = {name: F.col(field) for name, field in table.completion_fields.items()}
    if table.has_typed_output:
        scored[table.output_column] = F.from_json("text", table.output_type)
    scored["error_message"] = F.when(F.col(_HASH).isNull(), RowError.NO_TEXT.value).otherwise(F.col("error_message"))
    # No model scored a document without text, but its row belongs to this model's batch.
    scored["model_name"] = F.coalesce(F.col("model"), F.lit(model.name))
    scored["model_version"] = F.coalesce(F.col("model_version"), F.lit(model.version))
    return joined.select(
        *[scored.get(name, F.col(name)).alias(name) for name in table.column_names],
    )


def _resources(spark: "SparkSession", model: ScoringModel) -> tuple[int, int, int]:
    """Concurrent tasks, CPU threads per task (at most all cores together), and GPUs to share."""
    slots = task_slots(spark)
    if not is_local(spark):
        return slots, int(spark.conf.get("spark.task.cpus", "1") or 1), 0
    cores = available_cores(spark)
    gpus = _gpus() if model.device_map == "auto" else 0
    slots = min(slots, gpus) if gpus else 1 if model.device_map.startswith(("cuda", "mps")) else min(slots, cores)
    return slots, max(cores // slots, 1), gpus


def _artifacts(model: ScoringModel) -> dict[str, Artifact]:
    """The artifacts that workers on other hosts fetch, by the model field that names their folder."""
    found = {"path": Artifact.of(model.path, model.uri)}
    if model.engine_path:
        found["engine_path"] = Artifact.of(model.engine_path, model.engine_uri)
    return found


def _gpus() -> int:
    """Count the GPUs for workers, and release the GPU memory of the driver's models."""
    if is_cpu_build():
        return 0
    import torch

    if torch.cuda.is_available():
        end_isolated_process()
        gc.collect()
        torch.cuda.empty_cache()
    return int(torch.cuda.device_count())

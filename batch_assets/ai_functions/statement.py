"""Run a statement with ai_query over one batch, and commit its answers once."""

import hashlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from batch_assets.ai_functions.endpoints import Endpoint
from batch_assets.ai_functions.sql import ai_sql
from batch_assets.errors import BatchAssetsError
from batch_assets.inference.completions import CompletionStore, FinishedWork, refuse_if_all_failed
from batch_assets.inference.progress import progress
from batch_assets.lake.lake import BatchSnapshot, Lake
from batch_assets.lake.tables import AI_QUERY_INFERENCE

if TYPE_CHECKING:
    from pyspark.sql import SparkSession


@dataclass(frozen=True)
class AnsweredBatch:
    """What one batch came to; ``asked`` requests were answered in this run."""

    version: int
    rows: int
    asked: int
    errors: int
    seconds: float


def answer_batch(
    spark: "SparkSession",
    lake: Lake,
    documents: BatchSnapshot,
    output: BatchSnapshot,
    batch: str,
    endpoint: Endpoint,
    statement: str,
    limit: int,
    metadata: Mapping[str, Any],
    report: Callable[[str], None],
) -> AnsweredBatch:
    """Run the statement and replace the batch of ``ai_query_inference`` by its rows.

    Args:
        spark: the session; the batch of ``m4_1_prod_data`` becomes a view in it.
        lake: where finished answers are kept until the commit.
        documents: ``m4_1_prod_data`` at the version to be read.
        output: ``ai_query_inference``, opened before the input's version was resolved.
        batch: key of the batch.
        endpoint: the server that the statement names.
        statement: gives the columns ``id``, ``batch``, ``request`` and ``answer``.
        limit: rows that the statement asks for at most, 0 for all.
        metadata: what the commit records.
        report: takes lines on the progress.

    Raises:
        BatchAssetsError: the endpoint is out of reach, or rows are missing; nothing is committed.
    """
    from batch_assets.ai_functions.functions import COLUMNS, register_ai_functions, to_ai_query_inference
    from batch_assets.lake.deltars import read_batch, stage_frame

    started = time.monotonic()
    digest = hashlib.sha256(f"{endpoint.request_hash('')} {statement}".encode()).hexdigest()
    store = CompletionStore.of(lake, AI_QUERY_INFERENCE, batch, digest)
    finished = FinishedWork.of(store, output, batch, COLUMNS)
    # With a limit, Spark gathers the rows in one task.
    tasks = 1 if limit else spark.sparkContext.defaultParallelism
    register_ai_functions(spark, {endpoint.name: endpoint}, finished, tasks)
    read_batch(spark, documents, batch).createOrReplaceTempView("m4_1_prod_data")
    rows = min(limit, documents.rows(batch)) if limit else documents.rows(batch)
    before = store.count()
    with progress(f"batch {batch}", rows, store.count, report):
        answered = to_ai_query_inference(ai_sql(spark, statement), endpoint, finished)
        staged = stage_frame(answered, output, batch)
    refuse_if_all_failed(store, batch)
    staged_rows = sum(file.rows for file in staged)
    if staged_rows != rows:
        raise BatchAssetsError(f"batch {batch}: {rows} rows were to be answered, but there are {staged_rows}")
    version = output.replace(batch, staged, metadata)
    asked = store.count() - before
    store.clear()
    errors = sum(file.rows - file.null_counts["error_message"] for file in staged)
    return AnsweredBatch(version, rows, asked, errors, time.monotonic() - started)

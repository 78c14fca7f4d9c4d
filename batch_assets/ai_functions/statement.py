"""Run a statement once, with its answers kept until its result is: for a batch of an asset, or for a user."""

import hashlib
import json
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from batch_assets.ai_functions.endpoints import Endpoint
from batch_assets.ai_functions.requests import AiFunctionError
from batch_assets.ai_functions.sql import parse, run
from batch_assets.errors import BatchAssetsError, reason
from batch_assets.inference.completions import CompletionStore, FinishedWork, refuse_if_all_failed
from batch_assets.inference.contract import RowError
from batch_assets.inference.encoding import texts_of
from batch_assets.inference.progress import progress
from batch_assets.lake.counts import Counts, check_rows, counts_of
from batch_assets.lake.lake import BatchSnapshot, Lake
from batch_assets.lake.tables import AI_QUERY_INFERENCE, PROD_DATA
from batch_assets.text import has_text

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

    from batch_assets.ai_functions.functions import AiFunctions

# Columns of ai_query_inference and the fields of a completion that they hold.
_COLUMNS = {
    "request_hash": "request_hash",
    "generated_summary": "text",
    "error_message": "error_message",
    "model": "model",
    "prompt_tokens": "input_tokens",
    "completion_tokens": "output_tokens",
    "finish_reason": "finish_reason",
    "created_at": "completed_at",
}
# The same columns, and where the statement's answers hold them.
_ANSWERS = {
    "request_hash": "requestHash",
    "generated_summary": "result",
    "error_message": "errorMessage",
    "model": "model",
    "prompt_tokens": "promptTokens",
    "completion_tokens": "completionTokens",
    "finish_reason": "finishReason",
    "created_at": "createdAt",
}


@dataclass(frozen=True)
class Usage:
    """What the requests of a statement came to.

    ``answers`` are those without an error; seconds are those of single answers.
    """

    requests: int = 0
    answers: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    median_seconds: float = 0.0
    slowest_seconds: float = 0.0

    @classmethod
    def of(cls, store: CompletionStore) -> "Usage":
        """The usage of everything in a store."""
        rows = list(store.rows(["error_message", "input_tokens", "output_tokens", "seconds"]))
        seconds = [row["seconds"] for row in rows if row["seconds"] is not None] or [0.0]
        return cls(
            requests=len(rows),
            answers=sum(row["error_message"] is None for row in rows),
            prompt_tokens=sum(row["input_tokens"] or 0 for row in rows),
            completion_tokens=sum(row["output_tokens"] or 0 for row in rows),
            median_seconds=statistics.median(seconds),
            slowest_seconds=max(seconds),
        )


@dataclass(frozen=True)
class AnsweredBatch:
    """The outcome of one batch."""

    version: int
    rows: int
    usage: Usage
    counts: Counts
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
        spark: the session; the batch of ``m4_1_prod_data`` becomes a view in it, in which documents without text are
            null.
        lake: where finished answers are kept until the commit.
        documents: ``m4_1_prod_data`` at the version to be read.
        output: ``ai_query_inference``, opened before the input's version was resolved.
        batch: key of the batch.
        endpoint: the server that the statement names.
        statement: gives the columns ``id``, ``batch`` and ``answer``, the last from
            ``ai_query(..., failOnError => false)``.
        limit: rows that the statement asks for at most, 0 for all.
        metadata: what the commit records.
        report: takes lines on the progress.

    Raises:
        BatchAssetsError: the endpoint is out of reach, rows are missing, or rows have neither an answer nor an error;
            nothing is committed.
    """
    from batch_assets.ai_functions.functions import register_ai_functions
    from batch_assets.lake.deltars import read_batch, stage_frame

    started = time.monotonic()
    digest = hashlib.sha256(json.dumps([endpoint.identity, statement]).encode()).hexdigest()
    store = CompletionStore.of(lake, AI_QUERY_INFERENCE, batch, digest)
    finished = FinishedWork.of(store, output, batch, _COLUMNS)
    functions = register_ai_functions(spark, {endpoint.name: endpoint})
    asked = _null_without_text(read_batch(spark, documents, batch))
    rows = min(limit, documents.rows(batch)) if limit else documents.rows(batch)
    with output.saying_if_overtaken(batch):
        with progress(f"batch {batch}", rows, store.count, report), _ended_by(store), _view(asked, PROD_DATA.name):
            answered = run(spark, functions, statement, finished, details=True)
            staged = stage_frame(_to_ai_query_inference(answered, endpoint), output, batch)
        counts = counts_of(staged)
        refuse_if_all_failed(store, batch, counts.summaries)
        check_rows(batch, staged, rows)
    version = output.replace(batch, staged, {**metadata, "errors": counts.errors})
    usage = Usage.of(store)
    store.clear_batch()
    return AnsweredBatch(version, rows, usage, counts, time.monotonic() - started)


@contextmanager
def _view(frame: "DataFrame", name: str) -> Iterator[None]:
    """Within it, statements of the session find a data frame by a name, which means a table of the lake elsewhere."""
    frame.createOrReplaceTempView(name)
    try:
        yield
    finally:
        frame.sparkSession.catalog.dropTempView(name)


def _null_without_text(documents: "DataFrame") -> "DataFrame":
    """The same rows, with null for each document without text: a prompt made of it is null, and makes no request."""
    from pyspark.sql import functions as F  # noqa: N812 - as Spark's documentation has it
    from pyspark.sql.functions import arrow_udf  # type: ignore[attr-defined]

    def text_or_null(column: pa.Array) -> pa.Array:
        return pa.array([text if has_text(text) else None for text in texts_of(column)], column.type)

    return documents.withColumn("document", arrow_udf(text_or_null, "string")(F.col("document")))


def _to_ai_query_inference(answered: "DataFrame", endpoint: Endpoint) -> "DataFrame":
    from pyspark.sql import functions as F  # noqa: N812 - as Spark's documentation has it

    columns = {"id": F.col("id"), "batch": F.col("batch"), "endpoint": F.lit(endpoint.name)}
    columns |= {name: F.col(f"answer.{field}") for name, field in _ANSWERS.items()}
    unasked = F.col("answer").isNull()  # because the request is null, see _null_without_text
    columns["error_message"] = F.when(unasked, RowError.NO_TEXT.value).otherwise(columns["error_message"])
    return answered.select(*(columns[name].alias(name) for name in AI_QUERY_INFERENCE.column_names))


def run_for_user(
    spark: "SparkSession",
    functions: "AiFunctions",
    statement: str,
    lake: Lake,
    report: Callable[[str], None],
    *,
    resume: bool = False,
) -> "tuple[DataFrame, list[Any] | None, Usage]":
    """Run a statement to its end.

    Answers are kept in the lake until then; a statement that was interrupted goes on with ``resume``.

    Returns:
        The data frame; its rows, None for those of a table that was made; what its requests came to.

    Raises:
        BatchAssetsError: the statement can't be run, or didn't come to its end.
    """
    from pyspark.errors import PySparkException
    from sqlglot import exp

    tree = parse(statement)
    identities = [functions.endpoints[name].identity for name in sorted(functions.endpoints)]
    digest = hashlib.sha256(json.dumps([tree.sql(dialect="spark"), identities]).encode()).hexdigest()
    store = CompletionStore.of_statement(lake, digest)
    if not resume:
        store.clear()
    finished = FinishedWork(store, lake.uri, (), dict(lake.storage_options), {})
    try:
        with progress("answered", None, store.count, report), _ended_by(store):
            frame = run(spark, functions, statement, finished, lake)
            rows = None if isinstance(tree, exp.Create) else frame.collect()
    except PySparkException as error:
        raise AiFunctionError(reason(error).split(" SQLSTATE")[0]) from error
    except BatchAssetsError as error:
        kept = store.count()
        hint = f" ({kept} answers are kept: say --resume to go on with them)" if kept else ""
        raise AiFunctionError(f"{error}{hint}") from error
    usage = Usage.of(store)
    store.clear()
    return frame, rows, usage


@contextmanager
def _ended_by(store: CompletionStore) -> Iterator[None]:
    """Say why a statement was ended in the words of the worker that ended it, not in those of Spark around them."""
    store.go_on()
    try:
        yield
    except BatchAssetsError:
        raise
    except Exception as error:
        reason = store.stopped()
        if reason is None:
            raise
        raise AiFunctionError(reason) from error

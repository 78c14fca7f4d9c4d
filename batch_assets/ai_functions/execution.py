"""Run a statement and keep its answers until its result is stored: for a batch of an asset, or for a user."""

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
from batch_assets.ai_functions.planner import parse, run
from batch_assets.ai_functions.requests import AiFunctionError
from batch_assets.engines.contract import ErrorClass, RowError
from batch_assets.errors import BatchAssetsError, reason
from batch_assets.lake.contracts import Table
from batch_assets.lake.counts import Counts, check_rows, counts_of
from batch_assets.lake.lake import BatchSnapshot, Lake
from batch_assets.scoring.completions import CompletionStore, FinishedWork, refuse_if_all_failed
from batch_assets.scoring.progress import progress
from batch_assets.text import has_text, texts_of

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

    from batch_assets.ai_functions.functions import AiFunctions


@dataclass(frozen=True)
class Usage:
    """Requests, tokens and response times of a statement; ``answers`` counts the requests without an error."""

    requests: int = 0
    answers: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    median_seconds: float = 0.0
    slowest_seconds: float = 0.0

    @classmethod
    def of(cls, store: CompletionStore) -> "Usage":
        """Sum up all completions in a store."""
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
    """The result of one batch."""

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
    read: Callable[[str], str] | None = None,
    *,
    retry_errors: bool = False,
) -> AnsweredBatch:
    """Run the statement and replace the batch of the output table with its rows.

    Args:
        spark: the session. The batch of documents becomes a view in it, with null for documents without text.
        lake: stores finished answers until the commit.
        documents: the documents, at the version to read.
        output: the table of the answers, opened before the input's version was resolved.
        batch: key of the batch.
        endpoint: the endpoint that the statement names.
        statement: query with the columns ``id``, ``batch`` and ``answer``, the last from
            ``ai_query(..., failOnError => false)``.
        limit: maximum number of rows of the statement, 0 for all.
        metadata: metadata of the commit.
        report: called with each progress message.
        read: the answer in a text that the endpoint wrote; raises a ValueError if there is none.
        retry_errors: request all failed rows of the current output again, even if they would fail again.

    Raises:
        BatchAssetsError: the endpoint is unreachable, rows are missing, or rows have neither an answer nor an error.
            Nothing is committed.
    """
    from batch_assets.ai_functions.functions import register_ai_functions
    from batch_assets.lake.deltars import read_batch, stage_frame

    started = time.monotonic()
    digest = hashlib.sha256(json.dumps([endpoint.identity, statement]).encode()).hexdigest()
    store = CompletionStore.of(lake, output.table, batch, digest)
    finished = FinishedWork.of(store, output, batch, retry_errors=retry_errors)
    functions = register_ai_functions(spark, {endpoint.name: endpoint})
    inputs = _null_without_text(read_batch(spark, documents, batch))
    rows = min(limit, documents.rows(batch)) if limit else documents.rows(batch)
    with output.raise_if_superseded(batch):
        with (
            progress(f"batch {batch}", rows, store.count, report),
            _raise_stop_reason(store),
            _temporary_view(inputs, documents.table.name),
        ):
            answered = run(spark, functions, statement, finished, details=True)
            staged = stage_frame(_to_output(answered, output.table, endpoint, read), output, batch)
        counts = counts_of(staged)
        refuse_if_all_failed(store, batch, counts.summaries)
        check_rows(batch, staged, rows, output.table.output_column)
    version = output.replace(batch, staged, metadata)
    usage = Usage.of(store)
    store.clear_batch()
    return AnsweredBatch(version, rows, usage, counts, time.monotonic() - started)


@contextmanager
def _temporary_view(frame: "DataFrame", name: str) -> Iterator[None]:
    """Make a data frame available to the session's statements under the name of a table of the lake."""
    frame.createOrReplaceTempView(name)
    try:
        yield
    finally:
        frame.sparkSession.catalog.dropTempView(name)


def _null_without_text(documents: "DataFrame") -> "DataFrame":
    """Replace documents without text with null: a prompt built from null is null and makes no request."""
    from pyspark.sql import functions as F  # noqa: N812 - the name in Spark's documentation
    from pyspark.sql.functions import arrow_udf  # type: ignore[attr-defined]

    def text_or_null(column: pa.Array) -> pa.Array:
        return pa.array([text if has_text(text) else None for text in texts_of(column)], column.type)

    return documents.withColumn("document", arrow_udf(text_or_null, "string")(F.col("document")))


def _to_output(
    answered: "DataFrame", table: Table, endpoint: Endpoint, read: Callable[[str], str] | None
) -> "DataFrame":
    from pyspark.sql import functions as F  # noqa: N812 - the name in Spark's documentation

    from batch_assets.ai_functions.functions import DETAILS

    columns = {"id": F.col("id"), "batch": F.col("batch"), "endpoint": F.lit(endpoint.name)}
    names = {"text": "result", "error_message": "errorMessage", **{field: item.name for field, item in DETAILS.items()}}
    columns |= {name: F.col(f"answer.{names[field]}") for name, field in table.completion_fields.items()}
    no_request = F.col("answer").isNull()  # the prompt was null, see _null_without_text
    columns["error_message"] = F.when(no_request, RowError.NO_TEXT.value).otherwise(columns["error_message"])
    found = answered.select(*(columns[name].alias(name) for name in table.column_names))
    if read is not None:
        found = found.mapInArrow(_with_answers(read, table.output_column), found.schema)
    if table.has_typed_output:
        found = found.withColumn(table.output_column, F.from_json(table.output_column, table.output_type))
    return found


def _with_answers(
    read: Callable[[str], str], output: str
) -> Callable[[Iterator[pa.RecordBatch]], Iterator[pa.RecordBatch]]:
    """Replace each text by the answer in it, or by an error if it is none."""

    def replace_texts(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for rows in batches:
            found = {name: rows.column(name).to_pylist() for name in (output, "error_message", "error_class")}
            for place, text in enumerate(found[output]):
                if text is not None:
                    try:
                        found[output][place] = read(text)
                    except ValueError as error:
                        found[output][place] = None
                        found["error_message"][place] = str(error)
                        found["error_class"][place] = ErrorClass.MODEL.value
            columns = [
                pa.array(found[name], pa.string()) if name in found else rows.column(name) for name in rows.schema.names
            ]
            yield pa.RecordBatch.from_arrays(columns, names=rows.schema.names)

    return replace_texts


def run_for_user(
    spark: "SparkSession",
    functions: "AiFunctions",
    statement: str,
    lake: Lake,
    report: Callable[[str], None],
    *,
    resume: bool = False,
) -> "tuple[DataFrame, list[Any] | None, Usage]":
    """Run a user's statement to completion.

    Args:
        spark: the session.
        functions: the functions that are registered in it.
        statement: one query or CREATE TABLE.
        lake: tables of the statement; also stores finished answers until the statement is complete.
        report: called with each progress message.
        resume: whether to reuse the answers of an interrupted run of the same statement.

    Returns:
        The data frame, its rows (None for CREATE TABLE), and the usage.

    Raises:
        BatchAssetsError: the statement is invalid or failed.
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
        with progress("answered", None, store.count, report), _raise_stop_reason(store):
            frame = run(spark, functions, statement, finished, lake)
            rows = None if isinstance(tree, exp.Create) else frame.collect()
    except PySparkException as error:
        raise AiFunctionError(reason(error).split(" SQLSTATE")[0]) from error
    except BatchAssetsError as error:
        kept = store.count()
        hint = f" ({kept} answers are saved: add --resume to reuse them)" if kept else ""
        raise AiFunctionError(f"{error}{hint}") from error
    usage = Usage.of(store)
    store.clear()
    return frame, rows, usage


@contextmanager
def _raise_stop_reason(store: CompletionStore) -> Iterator[None]:
    """Replace Spark's error with the reason for which a worker stopped the statement."""
    store.clear_stop()
    try:
        yield
    except BatchAssetsError:
        raise
    except Exception as error:
        reason = store.stopped()
        if reason is None:
            raise
        raise AiFunctionError(reason) from error

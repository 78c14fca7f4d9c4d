"""``ai_query`` as a SQL function of a Spark session.

Conventions of https://docs.databricks.com/en/sql/language-manual/functions/ai_query.html, as far as a function
of open-source Spark can keep them; ``ai_sql`` does the rest.
"""

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

import pyarrow as pa
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql.functions import arrow_udf  # type: ignore[attr-defined]

from batch_assets.ai_functions.client import AiFunctionError, Answer, ask
from batch_assets.ai_functions.endpoints import Endpoint
from batch_assets.inference.completions import Completion, FinishedWork
from batch_assets.lake.tables import AI_QUERY_INFERENCE

# Registered beside ai_query; ai_sql rewrites failOnError => false to it, because a UDF has one result type.
RESULT_OR_ERROR = "_ai_query_result_or_error"

_FLUSH_SECONDS = 2.0

# Columns of ai_query_inference and the fields of a completion that they hold.
COLUMNS = {
    "request_hash": "request_hash",
    "generated_summary": "text",
    "error_message": "error_message",
    "model": "model",
    "prompt_tokens": "input_tokens",
    "completion_tokens": "output_tokens",
    "finish_reason": "finish_reason",
    "created_at": "completed_at",
}


@dataclass(frozen=True)
class _Caller:
    """What the workers need to answer requests."""

    endpoints: Mapping[str, Endpoint]
    finished: FinishedWork | None
    tasks: int

    def answer(self, endpoints: pa.Array, requests: pa.Array) -> list[Completion | None]:
        """The completion of each row; None where the request is NULL. Equal requests are asked once."""
        names = set(endpoints.to_pylist())
        if len(names) != 1:
            raise AiFunctionError("the endpoint of ai_query must be a literal: every row must name the same one")
        name = names.pop()
        if name not in self.endpoints:
            known = ", ".join(self.endpoints) or "none"
            raise AiFunctionError(f"ai_query: there is no endpoint {name!r}; configured: {known}")
        endpoint = self.endpoints[name]
        texts = requests.to_pylist()
        found = self.finished.load() if self.finished else {}
        hashes = {text: endpoint.request_hash(text) for text in texts if text is not None}
        missing = [text for text, request_hash in hashes.items() if request_hash not in found]
        self._ask(endpoint, missing, hashes, found)
        return [None if text is None else found[hashes[text]] for text in texts]

    def _ask(
        self, endpoint: Endpoint, requests: list[str], hashes: Mapping[str, str], found: dict[str, Completion]
    ) -> None:
        fresh: list[Completion] = []
        flushed = time.monotonic()

        def flush() -> None:
            nonlocal flushed
            if self.finished:
                self.finished.store.write(fresh)
            fresh.clear()
            flushed = time.monotonic()

        def keep(request: str, answer: Answer) -> None:
            completion = Completion(
                request_hash=hashes[request],
                text=answer.text,
                error_message=answer.error_message,
                finish_reason=answer.finish_reason,
                input_tokens=answer.prompt_tokens,
                output_tokens=answer.completion_tokens,
                input_truncated=None,
                model=answer.model or endpoint.model,
                model_version=None,
                completed_at=datetime.now(UTC),
            )
            found[completion.request_hash] = completion
            fresh.append(completion)
            if time.monotonic() - flushed >= _FLUSH_SECONDS:
                flush()

        try:
            ask(endpoint, requests, keep, max(endpoint.requests_in_flight // self.tasks, 1))
        except* AiFunctionError as group:
            # One is enough to tell; the others say the same of other rows.
            raise group.exceptions[0] from None
        finally:
            flush()


def register_ai_functions(
    spark: SparkSession, endpoints: Mapping[str, Endpoint], finished: FinishedWork | None = None, tasks: int = 1
) -> None:
    """Make ``ai_query(endpoint, request [, failOnError => true])`` known to a session.

    NULL in gives NULL out, without a call. A request that can't be answered ends the statement; with
    ``failOnError => false``, which needs ``ai_sql``, it gets an errorMessage and the others go on.

    Args:
        spark: the session.
        endpoints: servers by name.
        finished: answers that need not be asked for again, and where new ones go.
        tasks: tasks that ask at the same time; an endpoint's requests in flight are divided over them.
    """
    caller = _Caller(dict(endpoints), finished, tasks)

    def ai_query(endpoint: pa.Array, request: pa.Array, failOnError: pa.Array = None) -> pa.Array:  # noqa: N803
        if failOnError is not None and not all(failOnError.to_pylist()):
            raise AiFunctionError("ai_query: failOnError => false gives a struct: run the statement with ai_sql()")
        completions = caller.answer(endpoint, request)
        error = next((item.error_message for item in completions if item and item.error_message), None)
        if error is not None:
            raise AiFunctionError(error)
        return pa.array([item.text if item else None for item in completions], pa.string())

    def result_or_error(endpoint: pa.Array, request: pa.Array) -> pa.Array:
        rows = [
            None if item is None else {"result": item.text, "errorMessage": item.error_message}
            for item in caller.answer(endpoint, request)
        ]
        return pa.array(rows, pa.struct([("result", pa.string()), ("errorMessage", pa.string())]))

    # Nondeterministic: a projection and a filter on the same answer must not ask twice.
    spark.udf.register("ai_query", arrow_udf(ai_query, "string").asNondeterministic())
    result_type = "struct<result: string, errorMessage: string>"
    spark.udf.register(RESULT_OR_ERROR, arrow_udf(result_or_error, result_type).asNondeterministic())


def to_ai_query_inference(answered: DataFrame, endpoint: Endpoint, finished: FinishedWork) -> DataFrame:
    """Rows of ``ai_query_inference`` from answered ones, with what the endpoint said of each answer.

    Args:
        answered: columns ``id``, ``batch``, ``request`` and ``answer``, the last from
            ``ai_query(..., failOnError => false)``.
        endpoint: the endpoint that was asked.
        finished: where its answers went.
    """

    def details(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for rows in batches:
            found = finished.load()
            table = []
            for row in rows.to_pylist():
                columns = {"id": row["id"], "batch": row["batch"], "endpoint": endpoint.name}
                if row["request"] is not None:
                    completion = found[endpoint.request_hash(row["request"])]
                    columns |= {name: getattr(completion, key) for name, key in COLUMNS.items()}
                    columns["generated_summary"] = row["answer"]["result"]
                    columns["error_message"] = row["answer"]["errorMessage"]
                table.append(columns)
            yield pa.RecordBatch.from_pylist(table, schema=AI_QUERY_INFERENCE.arrow_schema)

    return answered.mapInArrow(details, AI_QUERY_INFERENCE.spark_ddl)

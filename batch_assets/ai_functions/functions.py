"""``ai_query`` and its family as functions of a Spark session, for SQL and for the DataFrame API.

They follow https://docs.databricks.com/en/sql/language-manual/functions/ai_query.html. Features that depend on the
statement around a call are in ``planner``.
"""

import atexit
import json
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Any
from weakref import WeakKeyDictionary

import pyarrow as pa
from pyspark.sql import Column, SparkSession
from pyspark.sql import functions as F  # noqa: N812 - the name in Spark's documentation
from pyspark.sql.functions import arrow_udf  # type: ignore[attr-defined]
from pyspark.sql.pandas.types import to_arrow_type
from pyspark.sql.types import DataType, LongType, MapType, StringType, StructField, StructType, TimestampType

from batch_assets.ai_functions.answering import CallContext, temporary_store
from batch_assets.ai_functions.endpoints import Endpoint
from batch_assets.ai_functions.family import FAMILY, check_labels
from batch_assets.ai_functions.requests import AiFunctionError, Request
from batch_assets.ai_functions.schemas import ANY_TEXT, ResponseFormat, read_as, response_format, type_of
from batch_assets.engines.contract import Completion, ErrorClass
from batch_assets.scoring.completions import FinishedWork
from batch_assets.spark_sessions import task_slots

AI_QUERY = "ai_query"
PARAMETERS = {
    AI_QUERY: ("endpoint", "request", "returnType", "failOnError", "modelParameters", "responseFormat"),
    **{name: function.parameters for name, function in FAMILY.items()},
}
_STRING = StringType()
# Fields of a completion, and how the detailed struct of ``failOnError => false`` calls them.
DETAILS = {
    "finish_reason": StructField("finishReason", _STRING),
    "input_tokens": StructField("promptTokens", LongType()),
    "output_tokens": StructField("completionTokens", LongType()),
    "model": StructField("model", _STRING),
    "error_class": StructField("errorClass", _STRING),
    "attempts": StructField("attempts", LongType()),
    "request_hash": StructField("requestHash", _STRING),
    "completed_at": StructField("createdAt", TimestampType()),
}


@dataclass(frozen=True)
class Call:
    """One function call in a statement, with everything that is the same for all rows.

    Args:
        function: name of the function.
        endpoint: name of the endpoint.
        result: type of an answer.
        form: required format of the answers.
        fail_on_error: whether one failed row fails the statement; otherwise the result is a struct of ``result`` and
            ``errorMessage``.
        details: whether that struct also has tokens, model, hash and time of each answer.
    """

    function: str
    endpoint: str
    result: DataType = _STRING
    form: ResponseFormat = ANY_TEXT
    fail_on_error: bool = True
    details: bool = False

    @classmethod
    def of(
        cls, function: str, constants: Mapping[str, Any], default_endpoint: str | None, *, details: bool = False
    ) -> "Call":
        """Create a call from its constant arguments.

        Args:
            function: name of the function.
            constants: the arguments that must be literals, by their names in SQL.
            default_endpoint: endpoint of the functions that don't name one.
            details: as in ``Call``.

        Raises:
            AiFunctionError: an argument is invalid, or the function has no endpoint.
        """
        if function != AI_QUERY:
            if default_endpoint is None:
                raise AiFunctionError(f"{function} has no endpoint: call register_ai_functions(default=...)")
            if function != "ai_extract":
                return cls(function, default_endpoint)
            labels = check_labels(function, constants["labels"] or [])
            return cls(function, default_endpoint, StructType([StructField(label, _STRING) for label in labels]))
        name, fails = constants["endpoint"], constants.get("failOnError", True)
        if not isinstance(name, str) or not isinstance(fails, bool):
            raise AiFunctionError("ai_query: endpoint must be a string literal, and failOnError must be true or false")
        form, kind = ANY_TEXT, None
        if constants.get("responseFormat") is not None:
            form = response_format(constants["responseFormat"])
            kind = form.result
        if constants.get("returnType") is not None:
            kind = type_of(constants["returnType"])
        return cls(function, name, kind or _STRING, form, fails, details)

    @property
    def type(self) -> DataType:
        """Type of the column that the call returns."""
        if self.fail_on_error:
            return self.result
        fields = [StructField("result", self.result), StructField("errorMessage", _STRING)]
        return StructType(fields + list(DETAILS.values() if self.details else ()))

    def run(self, context: CallContext, columns: Mapping[str, pa.Array]) -> pa.Array:
        """Answer the rows of a task.

        Args:
            context: the statement that the call belongs to.
            columns: the arguments that differ by row, by name.

        Raises:
            AiFunctionError: the statement can't continue.
        """
        with context.work() as answers:
            endpoint = context.endpoint(self.endpoint)
            requests = self._requests(endpoint, columns)
            completions = answers.answer(context, endpoint, requests, fail_on_error=self.fail_on_error)
            rows = [None if completion is None else self._row(endpoint, completion) for completion in completions]
            return pa.array(rows, to_arrow_type(self.type, timezone="UTC"))

    def _requests(self, endpoint: Endpoint, columns: Mapping[str, pa.Array]) -> list[Request | None]:
        rows = zip(*(column.to_pylist() for column in columns.values()), strict=True)
        requests: list[Request | None] = []
        for row in rows:
            arguments = dict(zip(columns, row, strict=True))
            if self.function != AI_QUERY:
                has_null = any(value is None for value in arguments.values())
                request = None if has_null else FAMILY[self.function].ask(**arguments)
            else:
                request = self._query(endpoint, arguments)
            if request is not None and endpoint.kind == "mlflow" and self.function != AI_QUERY:
                request = replace(request, content=json.dumps(request.content))
            requests.append(request)
        return requests

    def _query(self, endpoint: Endpoint, arguments: Mapping[str, Any]) -> Request | None:
        value = arguments["request"]
        if value is None:
            return None
        if endpoint.kind == "mlflow":
            content = json.dumps(value, default=_as_json, sort_keys=True)
        elif isinstance(value, str):
            content = value
        else:
            raise AiFunctionError(f"ai_query: the endpoint {endpoint.name} takes a string, not {type(value).__name__}")
        parameters = json.dumps(arguments.get("modelParameters") or {}, default=_as_json, sort_keys=True)
        return Request(content, parameters, self.form.schema, self.form.sent)

    def _row(self, endpoint: Endpoint, completion: Completion) -> Any:
        result, error = None, completion.error_message
        if completion.text is not None:
            try:
                if self.function == AI_QUERY and endpoint.kind == "mlflow":
                    error = self._columns_error(completion.text)
                if error is None and self.function == AI_QUERY:
                    result = self._result(endpoint, completion.text)
                elif error is None:
                    result = FAMILY[self.function].read(completion.text)
            except (ValueError, TypeError, ArithmeticError, KeyError, RecursionError) as problem:
                wanted = self.result.simpleString()
                error = f"[AI_FUNCTION_HTTP_PARSE_CAST_ERROR] the answer can't be read as {wanted}: {problem}"
        if self.fail_on_error:
            if error is not None:
                raise AiFunctionError(error)
            return result
        row = {"result": result, "errorMessage": error}
        if self.details:
            row |= {item.name: getattr(completion, field) for field, item in DETAILS.items()}
            if error is not None and completion.error_message is None:
                row[DETAILS["error_class"].name] = ErrorClass.MODEL.value
        return row

    def _result(self, endpoint: Endpoint, text: str) -> Any:
        if endpoint.kind == "mlflow" and not isinstance(self.result, StructType | MapType):
            # For a model with a single output column, the column's value is the result.
            with suppress(ValueError):
                value = json.loads(text)
                if isinstance(value, dict) and len(value) == 1:
                    (only,) = value.values()
                    text = only if isinstance(only, str) else json.dumps(only)
        return read_as(text, self.result)

    def _columns_error(self, text: str) -> str | None:
        """Return an error if the columns of a prediction don't match the result type, else None."""
        try:
            value = json.loads(text)
        except ValueError:
            return None
        if not isinstance(value, dict) or isinstance(self.result, StringType | MapType):
            return None
        if len(value) == 1 and not isinstance(self.result, StructType):
            return None
        wanted = self.result.fieldNames() if isinstance(self.result, StructType) else []
        if set(value) == set(wanted):
            return None
        return (
            f"[AI_FUNCTION_HTTP_PARSE_COLUMNS_ERROR] the model returned the columns {', '.join(value)}, but "
            f"returnType is {self.result.simpleString()}"
        )

    def udf(self, context: CallContext, names: Sequence[str]) -> Any:
        """Return the call as a Spark function of the arguments that differ by row, in the order of ``names``."""

        def answer(*columns: pa.Array) -> pa.Array:
            return self.run(context, dict(zip(names, columns, strict=True)))

        # Nondeterministic, so that a projection and a filter on the same answer don't send requests twice.
        return arrow_udf(answer, self.type).asNondeterministic()


def _as_json(value: Any) -> Any:
    """Convert decimals, the type of 0.5 in SQL, to numbers, and dates and other values to text."""
    return float(value) if isinstance(value, Decimal) else str(value)


class AiFunctions:
    """The functions of one session for the DataFrame API; ``register_ai_functions`` returns them.

    Each method takes columns or constants and returns a column. Names and defaults are the same as in SQL.
    """

    def __init__(self, spark: SparkSession, endpoints: Mapping[str, Endpoint], default: str | None) -> None:
        self.endpoints = dict(endpoints)
        self.default = default
        # Answers of plain SQL are only reused when Spark retries a task on the same machine.
        folder = tempfile.mkdtemp(prefix="batch_assets_ai_")
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        store = temporary_store(folder)
        slots = task_slots(spark)
        self.context = CallContext(
            store.folder,
            self.endpoints,
            FinishedWork(store, folder, (), {}, {}),
            dict.fromkeys(endpoints, slots),
            per_stage=True,
        )

    def ai_query(
        self,
        endpoint: str,
        request: Column | str,
        returnType: str | None = None,  # noqa: N803 - as in SQL
        failOnError: bool = True,  # noqa: N803
        modelParameters: Column | None = None,  # noqa: N803
        responseFormat: str | None = None,  # noqa: N803
    ) -> Column:
        """Send requests to an endpoint.

        Args:
            endpoint: name of the endpoint.
            request: column of the requests, or its name.
            returnType: DDL of the result type, a string by default.
            failOnError: whether one failed row fails the statement; otherwise the result is a struct of ``result`` and
                ``errorMessage``.
            modelParameters: struct of parameters in addition to those of the endpoint.
            responseFormat: required format of the answers, as DDL of a struct or as JSON.
        """
        constants = {
            "endpoint": endpoint,
            "returnType": returnType,
            "failOnError": failOnError,
            "responseFormat": responseFormat,
        }
        columns = {"request": F.col(request) if isinstance(request, str) else request}
        if modelParameters is not None:
            columns["modelParameters"] = modelParameters
        call = Call.of(AI_QUERY, constants, self.default)
        self._refuse_budget(self.context.endpoint(endpoint))
        column: Column = call.udf(self.context, list(columns))(*columns.values())
        return column

    def ai_summarize(self, content: Column | str, max_words: int = 50) -> Column:
        """Summarize a text in at most ``max_words`` words, 0 for no limit."""
        return self._call("ai_summarize", content, F.lit(max_words))

    def ai_gen(self, prompt: Column | str) -> Column:
        """Answer a prompt."""
        return self._call("ai_gen", prompt)

    def ai_classify(self, content: Column | str, labels: Sequence[str]) -> Column:
        """Choose the label that fits a text best."""
        return self._call("ai_classify", content, F.array(*map(F.lit, labels)))

    def ai_extract(self, content: Column | str, labels: Sequence[str]) -> Column:
        """Extract a struct with a string for each label, null where the text has nothing for it."""
        return self._call("ai_extract", content, F.array(*map(F.lit, labels)), constants={"labels": labels})

    def ai_translate(self, content: Column | str, to_lang: str) -> Column:
        """Translate a text into a language, given as a code such as ``de``."""
        return self._call("ai_translate", content, F.lit(to_lang))

    def ai_fix_grammar(self, content: Column | str) -> Column:
        """Correct the grammar of a text."""
        return self._call("ai_fix_grammar", content)

    def ai_analyze_sentiment(self, content: Column | str) -> Column:
        """Classify a text as ``positive``, ``negative``, ``neutral`` or ``mixed``."""
        return self._call("ai_analyze_sentiment", content)

    def ai_mask(self, content: Column | str, labels: Sequence[str]) -> Column:
        """Replace everything that labels such as ``person`` or ``email`` describe with [MASKED]."""
        return self._call("ai_mask", content, F.array(*map(F.lit, labels)))

    def _call(
        self, function: str, content: Column | str, *others: Column, constants: Mapping[str, Any] | None = None
    ) -> Column:
        call = Call.of(function, constants or {}, self.default)
        self._refuse_budget(self.context.endpoint(call.endpoint))
        columns = [F.col(content) if isinstance(content, str) else content, *others]
        column: Column = call.udf(self.context, PARAMETERS[function])(*columns)
        return column

    @staticmethod
    def _refuse_budget(endpoint: Endpoint) -> None:
        if endpoint.has_budget:
            raise AiFunctionError(
                f"the endpoint {endpoint.name} has a budget for each statement, which only ai_sql() can enforce: run "
                "the statement with ai_sql()"
            )

    def register(self, spark: SparkSession) -> None:
        """Register the functions for SQL."""
        spark.udf.register(AI_QUERY, arrow_udf(self._plain_query(), "string").asNondeterministic())
        for function in FAMILY.values():
            spark.udf.register(function.name, arrow_udf(self._plain(function.name), "string").asNondeterministic())

    def _plain_query(self) -> Callable[..., pa.Array]:
        context, refuse_budget = self.context, self._refuse_budget

        def ai_query(
            endpoint: pa.Array,
            request: pa.Array,
            returnType: pa.Array = None,  # noqa: N803
            failOnError: pa.Array = None,  # noqa: N803
            modelParameters: pa.Array = None,  # noqa: N803
            responseFormat: pa.Array = None,  # noqa: N803
        ) -> pa.Array:
            names = endpoint.unique().to_pylist()
            if len(names) != 1:
                raise AiFunctionError("ai_query: endpoint must be a literal, the same for every row")
            if failOnError is not None and not all(failOnError.to_pylist()):
                raise AiFunctionError(
                    "ai_query: failOnError => false returns a struct: run the statement with ai_sql()"
                )
            for name, argument in (("returnType", returnType), ("responseFormat", responseFormat)):
                if argument is not None and set(argument.to_pylist()) - {None, "STRING", "string"}:
                    raise AiFunctionError(f"ai_query: {name} changes the result type: run the statement with ai_sql()")
            refuse_budget(context.endpoint(names[0]))
            columns = {"request": request}
            if modelParameters is not None:
                columns["modelParameters"] = modelParameters
            return Call(AI_QUERY, names[0]).run(context, columns)

        return ai_query

    def _plain(self, function: str) -> Callable[..., pa.Array]:
        context, default, refuse_budget = self.context, self.default, self._refuse_budget
        names = PARAMETERS[function]

        def answer(*columns: pa.Array) -> pa.Array:
            if function == "ai_extract":
                raise AiFunctionError("ai_extract: labels change the result type: run the statement with ai_sql()")
            call = Call.of(function, {}, default)
            refuse_budget(context.endpoint(call.endpoint))
            return call.run(context, dict(zip(names, columns, strict=False)))

        return answer


_registered: "WeakKeyDictionary[SparkSession, AiFunctions]" = WeakKeyDictionary()


def register_ai_functions(
    spark: SparkSession, endpoints: Mapping[str, Endpoint], default: str | None = None
) -> AiFunctions:
    """Register ``ai_query`` and its family in a session.

    A NULL argument returns NULL without a request. Plain ``spark.sql`` doesn't support result types that depend on an
    argument, or budgets of a statement; it fails with an error that names ``ai_sql``.

    Args:
        spark: the session.
        endpoints: endpoints by name.
        default: endpoint of the functions that don't name one, such as ``ai_summarize``; a single endpoint is the
            default.

    Returns:
        The functions for the DataFrame API.
    """
    if default is None and len(endpoints) == 1:
        (default,) = endpoints
    functions = AiFunctions(spark, endpoints, default)
    functions.register(spark)
    _registered[spark] = functions
    return functions


def registered_functions(spark: SparkSession) -> AiFunctions:
    """Return the functions that are registered in a session.

    Raises:
        AiFunctionError: no functions are registered.
    """
    if spark not in _registered:
        raise AiFunctionError("the session has no ai functions: call register_ai_functions(spark, endpoints) first")
    return _registered[spark]

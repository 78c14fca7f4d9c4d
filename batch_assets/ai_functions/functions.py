"""``ai_query`` and its family as functions of a Spark session: for SQL, and for the DataFrame API.

Conventions of https://docs.databricks.com/en/sql/language-manual/functions/ai_query.html. What needs to know the
statement around a call is in ``sql``.
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
from pyspark.sql import functions as F  # noqa: N812 - as Spark's documentation has it
from pyspark.sql.functions import arrow_udf  # type: ignore[attr-defined]
from pyspark.sql.pandas.types import to_arrow_type
from pyspark.sql.types import DataType, LongType, MapType, StringType, StructField, StructType, TimestampType

from batch_assets.ai_functions.answering import Statement, temporary_store
from batch_assets.ai_functions.endpoints import Endpoint
from batch_assets.ai_functions.family import FAMILY, check_labels
from batch_assets.ai_functions.requests import AiFunctionError, Request
from batch_assets.ai_functions.schemas import ANY_TEXT, ResponseFormat, read_as, response_format, type_of
from batch_assets.inference.completions import Completion, FinishedWork
from batch_assets.sessions import slots_of

AI_QUERY = "ai_query"
PARAMETERS = {
    AI_QUERY: ("endpoint", "request", "returnType", "failOnError", "modelParameters", "responseFormat"),
    **{name: function.parameters for name, function in FAMILY.items()},
}
_STRING = StringType()
_DETAILS = (
    StructField("finishReason", _STRING),
    StructField("promptTokens", LongType()),
    StructField("completionTokens", LongType()),
    StructField("model", _STRING),
    StructField("requestHash", _STRING),
    StructField("createdAt", TimestampType()),
)


@dataclass(frozen=True)
class Call:
    """One call of a function in a statement, with what is the same for all its rows.

    Args:
        function: its name.
        endpoint: name of the endpoint.
        result: type of an answer.
        form: what answers must look like.
        fail_on_error: whether one row's error ends the statement; else the result is a struct of ``result`` and
            ``errorMessage``.
        details: whether that struct says more of each answer.
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
        """A call out of those arguments that must be constants, by their names in SQL.

        Raises:
            AiFunctionError: one of them can't be used.
        """
        if function != AI_QUERY:
            if default_endpoint is None:
                raise AiFunctionError(f"{function}: no endpoint was named for it: register_ai_functions(default=...)")
            if function != "ai_extract":
                return cls(function, default_endpoint)
            labels = check_labels(function, constants["labels"] or [])
            return cls(function, default_endpoint, StructType([StructField(label, _STRING) for label in labels]))
        name, fails = constants["endpoint"], constants.get("failOnError", True)
        if not isinstance(name, str) or not isinstance(fails, bool):
            raise AiFunctionError("ai_query: the endpoint must be a text and failOnError true or false, both literals")
        form, kind = ANY_TEXT, None
        if constants.get("responseFormat") is not None:
            form = response_format(constants["responseFormat"])
            kind = form.result
        if constants.get("returnType") is not None:
            kind = type_of(constants["returnType"])
        return cls(function, name, kind or _STRING, form, fails, details)

    @property
    def type(self) -> DataType:
        """Type of the column that the call gives."""
        if self.fail_on_error:
            return self.result
        fields = [StructField("result", self.result), StructField("errorMessage", _STRING)]
        return StructType(fields + list(_DETAILS if self.details else ()))

    def run(self, statement: Statement, columns: Mapping[str, pa.Array]) -> pa.Array:
        """Answer the rows of a task.

        Args:
            statement: what they are part of.
            columns: arguments that are no constants, by name.

        Raises:
            AiFunctionError: the statement can't go on.
        """
        with statement.work() as work:
            endpoint = statement.endpoint(self.endpoint)
            requests = self._requests(endpoint, columns)
            completions = work.answer(statement, endpoint, requests, fail_on_error=self.fail_on_error)
            rows = [None if completion is None else self._row(endpoint, completion) for completion in completions]
            return pa.array(rows, to_arrow_type(self.type, timezone="UTC"))

    def _requests(self, endpoint: Endpoint, columns: Mapping[str, pa.Array]) -> list[Request | None]:
        rows = zip(*(column.to_pylist() for column in columns.values()), strict=True)
        requests: list[Request | None] = []
        for row in rows:
            arguments = dict(zip(columns, row, strict=True))
            if self.function != AI_QUERY:
                nothing = any(value is None for value in arguments.values())
                request = None if nothing else FAMILY[self.function].ask(**arguments)
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
            raise AiFunctionError(f"ai_query: the endpoint {endpoint.name} takes a text, not {type(value).__name__}")
        parameters = json.dumps(arguments.get("modelParameters") or {}, default=_as_json, sort_keys=True)
        return Request(content, parameters, self.form.schema, self.form.told)

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
            row |= {
                "finishReason": completion.finish_reason,
                "promptTokens": completion.input_tokens,
                "completionTokens": completion.output_tokens,
                "model": completion.model,
                "requestHash": completion.request_hash,
                "createdAt": completion.completed_at,
            }
        return row

    def _result(self, endpoint: Endpoint, text: str) -> Any:
        if endpoint.kind == "mlflow" and not isinstance(self.result, StructType | MapType):
            # A model with one column of output: its value is the result.
            with suppress(ValueError):
                value = json.loads(text)
                if isinstance(value, dict) and len(value) == 1:
                    (only,) = value.values()
                    text = only if isinstance(only, str) else json.dumps(only)
        return read_as(text, self.result)

    def _columns_error(self, text: str) -> str | None:
        """What is wrong with the columns of a prediction that has several; None where nothing is."""
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
            f"[AI_FUNCTION_HTTP_PARSE_COLUMNS_ERROR] the model gave the columns {', '.join(value)}, but returnType is "
            f"{self.result.simpleString()}"
        )

    def udf(self, statement: Statement, names: Sequence[str]) -> Any:
        """The call as a function of the arguments that are no constants, in the order of ``names``."""

        def answer(*columns: pa.Array) -> pa.Array:
            return self.run(statement, dict(zip(names, columns, strict=True)))

        # Nondeterministic: a projection and a filter on the same answer must not ask twice.
        return arrow_udf(answer, self.type).asNondeterministic()


def _as_json(value: Any) -> Any:
    """Decimals, which SQL makes of 0.5, as numbers; dates and the like as text."""
    return float(value) if isinstance(value, Decimal) else str(value)


class AiFunctions:
    """The functions in one session: what ``register_ai_functions`` gives, for the DataFrame API.

    Each method takes columns, or constants in their place, and gives a column; names and defaults are SQL's.
    """

    def __init__(self, spark: SparkSession, endpoints: Mapping[str, Endpoint], default: str | None) -> None:
        self.endpoints = dict(endpoints)
        self.default = default
        # Answers of plain statements outlive nothing but a task that is started again on the same machine.
        folder = tempfile.mkdtemp(prefix="batch_assets_ai_")
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        store = temporary_store(folder)
        slots = slots_of(spark)
        self.statement = Statement(
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
        """Ask an endpoint; a plain text as ``request`` names a column."""
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
        self._refuse_budget(self.statement.endpoint(endpoint))
        column: Column = call.udf(self.statement, list(columns))(*columns.values())
        return column

    def ai_summarize(self, content: Column | str, max_words: int = 50) -> Column:
        """Summarize a text in at most so many words, 0 for no limit."""
        return self._call("ai_summarize", content, F.lit(max_words))

    def ai_gen(self, prompt: Column | str) -> Column:
        """Answer a prompt."""
        return self._call("ai_gen", prompt)

    def ai_classify(self, content: Column | str, labels: Sequence[str]) -> Column:
        """The label that fits a text best."""
        return self._call("ai_classify", content, F.array(*map(F.lit, labels)))

    def ai_extract(self, content: Column | str, labels: Sequence[str]) -> Column:
        """A struct with what a text says for each label, null where it says nothing."""
        return self._call("ai_extract", content, F.array(*map(F.lit, labels)), constants={"labels": labels})

    def ai_translate(self, content: Column | str, to_lang: str) -> Column:
        """Translate a text into the language of a code such as ``de``."""
        return self._call("ai_translate", content, F.lit(to_lang))

    def ai_fix_grammar(self, content: Column | str) -> Column:
        """Correct the grammar of a text."""
        return self._call("ai_fix_grammar", content)

    def ai_analyze_sentiment(self, content: Column | str) -> Column:
        """``positive``, ``negative``, ``neutral`` or ``mixed``."""
        return self._call("ai_analyze_sentiment", content)

    def ai_mask(self, content: Column | str, labels: Sequence[str]) -> Column:
        """Replace what labels such as ``person`` or ``email`` name by [MASKED]."""
        return self._call("ai_mask", content, F.array(*map(F.lit, labels)))

    def _call(
        self, function: str, content: Column | str, *others: Column, constants: Mapping[str, Any] | None = None
    ) -> Column:
        call = Call.of(function, constants or {}, self.default)
        self._refuse_budget(self.statement.endpoint(call.endpoint))
        columns = [F.col(content) if isinstance(content, str) else content, *others]
        column: Column = call.udf(self.statement, PARAMETERS[function])(*columns)
        return column

    @staticmethod
    def _refuse_budget(endpoint: Endpoint) -> None:
        if endpoint.has_budget:
            raise AiFunctionError(
                f"the endpoint {endpoint.name} has a budget for a statement, and Spark doesn't say where a statement "
                "ends: run it with ai_sql()"
            )

    def register(self, spark: SparkSession) -> None:
        """Make the functions known to SQL."""
        spark.udf.register(AI_QUERY, arrow_udf(self._plain_query(), "string").asNondeterministic())
        for function in FAMILY.values():
            spark.udf.register(function.name, arrow_udf(self._plain(function.name), "string").asNondeterministic())

    def _plain_query(self) -> Callable[..., pa.Array]:
        statement, refuse_budget = self.statement, self._refuse_budget

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
                raise AiFunctionError("the endpoint of ai_query must be a literal: every row must name the same one")
            if failOnError is not None and not all(failOnError.to_pylist()):
                raise AiFunctionError("ai_query: failOnError => false gives a struct: run the statement with ai_sql()")
            for name, argument in (("returnType", returnType), ("responseFormat", responseFormat)):
                if argument is not None and set(argument.to_pylist()) - {None, "STRING", "string"}:
                    raise AiFunctionError(f"ai_query: {name} decides on the type: run the statement with ai_sql()")
            refuse_budget(statement.endpoint(names[0]))
            columns = {"request": request}
            if modelParameters is not None:
                columns["modelParameters"] = modelParameters
            return Call(AI_QUERY, names[0]).run(statement, columns)

        return ai_query

    def _plain(self, function: str) -> Callable[..., pa.Array]:
        statement, default, refuse_budget = self.statement, self.default, self._refuse_budget
        names = PARAMETERS[function]

        def answer(*columns: pa.Array) -> pa.Array:
            if function == "ai_extract":
                raise AiFunctionError("ai_extract: labels decide on the type: run the statement with ai_sql()")
            call = Call.of(function, {}, default)
            refuse_budget(statement.endpoint(call.endpoint))
            return call.run(statement, dict(zip(names, columns, strict=False)))

        return answer


_registered: "WeakKeyDictionary[SparkSession, AiFunctions]" = WeakKeyDictionary()


def register_ai_functions(
    spark: SparkSession, endpoints: Mapping[str, Endpoint], default: str | None = None
) -> AiFunctions:
    """Make ``ai_query`` and its family known to a session.

    NULL in gives NULL out, without a call. What one function of plain ``spark.sql`` can't honour (a result type that
    depends on an argument, a budget of a statement) ends the statement with an error that names ``ai_sql``.

    Args:
        spark: the session.
        endpoints: servers by name.
        default: the endpoint that ``ai_summarize`` and the others ask, which name none; where there is one endpoint
            only, that one.

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
    """The functions that were registered in a session.

    Raises:
        AiFunctionError: none were.
    """
    if spark not in _registered:
        raise AiFunctionError("the session has no ai functions yet: call register_ai_functions(spark, endpoints) first")
    return _registered[spark]

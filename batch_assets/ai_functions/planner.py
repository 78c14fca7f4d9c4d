"""Parse, plan and run statements with ai functions, for features that need to know the whole statement."""

import uuid
from collections import Counter
from dataclasses import replace
from functools import cache, lru_cache
from typing import TYPE_CHECKING, Any, ClassVar

from batch_assets.ai_functions.answering import CallContext, concurrent_tasks
from batch_assets.ai_functions.requests import AiFunctionError
from batch_assets.lake.lake import Lake
from batch_assets.scoring.completions import FinishedWork
from batch_assets.spark_sessions import task_slots

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

    from batch_assets.ai_functions.functions import AiFunctions, Call

# Arguments that determine the result type or the endpoint, so they must be known before the statement runs.
_LITERAL_ARGUMENTS = {
    "ai_query": {"endpoint", "returnType", "failOnError", "responseFormat"},
    "ai_extract": {"labels"},
}
# Functions that also receive their literal arguments with each row.
_PASSED_ON = {"ai_extract"}


def ai_sql(spark: "SparkSession", statement: str, lake: Lake | None = None) -> "DataFrame":
    """Run a statement in a session where ``register_ai_functions`` was called.

    In addition to ``spark.sql``, it supports results of any type (``failOnError => false``, ``returnType``,
    ``responseFormat``, ``ai_extract``), applies LIMIT and ORDER BY before the calls, so that 10 rows need 10 requests,
    sends equal requests once, and enforces an endpoint's limits and budgets for the whole statement. With a lake, it
    also supports its tables, named with one to three parts, and ``CREATE [OR REPLACE] TABLE ... AS SELECT``.

    A query is lazy, as in ``spark.sql``, and its data frame sends each request only once.

    Args:
        spark: the session.
        statement: one query or CREATE TABLE.
        lake: the lake that contains the tables.

    Returns:
        The rows of the query, or of the new table for CREATE TABLE.

    Raises:
        AiFunctionError: the statement can't be parsed or is not supported.
    """
    from batch_assets.ai_functions.functions import registered_functions

    functions = registered_functions(spark)
    own = functions.context.finished
    finished = replace(own, store=replace(own.store, folder=uuid.uuid4().hex))
    return run(spark, functions, statement, finished, lake)


def run(
    spark: "SparkSession",
    functions: "AiFunctions",
    statement: str,
    finished: FinishedWork,
    lake: Lake | None = None,
    *,
    details: bool = False,
) -> "DataFrame":
    """Run a statement as ``ai_sql`` does.

    Args:
        spark: the session.
        functions: the functions that are registered in it.
        statement: one query or CREATE TABLE.
        finished: answers that exist already, and the store for new ones.
        lake: the lake that contains the tables.
        details: add tokens, model, hash and time of each answer to the struct of ``failOnError => false``.
    """
    from sqlglot import exp

    from batch_assets.ai_functions.lake_tables import create_table_as, resolve_tables

    tree = parse(statement)
    target = None
    if isinstance(tree, exp.Create):
        target, tree = tree, tree.expression
    query = resolve_tables(spark, tree, lake) if lake is not None else tree
    query = _Planner(spark, functions, finished, details).plan(query)
    if target is None:
        return spark.sql(query.sql(dialect="spark"))
    if lake is None:
        raise AiFunctionError("CREATE TABLE needs a lake: ai_sql(spark, statement, lake)")
    return create_table_as(spark, target, lambda: spark.sql(query.sql(dialect="spark")), lake)


def parse(statement: str) -> Any:
    """Parse a statement that is one query or CREATE TABLE.

    Returns:
        A copy of the tree, which the caller may change. The last statement is cached, so it is parsed only once.

    Raises:
        AiFunctionError: the statement is not valid SQL, or not supported.
    """
    return _parsed(statement).copy()


@lru_cache(maxsize=1)
def _parsed(statement: str) -> Any:
    import sqlglot
    from sqlglot import exp

    try:
        trees = sqlglot.parse(statement, dialect=_dialect())
    except sqlglot.errors.SqlglotError as error:
        raise AiFunctionError(f"the statement can't be parsed: {error}") from error
    if len(trees) != 1 or trees[0] is None:
        raise AiFunctionError(f"got {sum(tree is not None for tree in trees)} statements: run them one by one")
    tree = trees[0]
    if isinstance(tree, exp.Create) and (tree.kind != "TABLE" or not isinstance(tree.expression, exp.Query)):
        raise AiFunctionError("the only supported CREATE statement is CREATE [OR REPLACE] TABLE ... AS SELECT")
    if not isinstance(tree, exp.Create | exp.Query):
        raise AiFunctionError(f"only queries and CREATE TABLE ... AS SELECT are supported, not {tree.key.upper()}")
    return tree


@cache
def _dialect() -> Any:
    """Return the dialect of Spark 4.0 and newer, in which doubled quotation marks in a literal stand for one."""
    from sqlglot.dialects.spark import Spark

    class SparkWithDoubledQuotes(Spark):
        class Tokenizer(Spark.Tokenizer):  # type: ignore[misc]
            STRING_ESCAPES: ClassVar[list[str]] = ["'", '"', "\\"]

    return SparkWithDoubledQuotes()


def endpoints_of(statement: str, default: str) -> set[str]:
    """Return the names of the endpoints that a statement calls; functions that don't name one call ``default``."""
    from sqlglot import exp

    from batch_assets.ai_functions.functions import AI_QUERY, PARAMETERS
    from batch_assets.ai_functions.layers import is_call, name_of

    names = set()
    for call in parse(statement).find_all(exp.Func):
        if is_call(call, frozenset(PARAMETERS)):
            endpoint = _arguments(call).get("endpoint") if name_of(call) == AI_QUERY else None
            names.add(endpoint.name if isinstance(endpoint, exp.Literal) else default)
    return names


class _Planner:
    """Registers a separate function for each call of a statement, and places the calls so that few rows reach them."""

    def __init__(self, spark: "SparkSession", functions: "AiFunctions", finished: FinishedWork, details: bool) -> None:
        self._spark, self._functions, self._finished, self._details = spark, functions, finished, details

    def plan(self, tree: Any) -> Any:
        from sqlglot import exp

        from batch_assets.ai_functions.functions import PARAMETERS
        from batch_assets.ai_functions.layers import PlacedCall, is_call, name_of, rewrite_in_layers

        names = frozenset(PARAMETERS)
        nodes = [node for node in tree.find_all(exp.Func) if is_call(node, names)]
        if not nodes:
            return tree
        calls = {node.sql(dialect="spark"): self._call(node) for node in nodes}
        per_endpoint = Counter(call.endpoint for call in calls.values())
        slots = task_slots(self._spark)
        branches = _parallel_branches(tree, names)
        tasks: dict[str, int] = {}
        for call in calls.values():
            endpoint = self._functions.context.endpoint(call.endpoint)
            tasks[call.endpoint] = min(
                concurrent_tasks(endpoint, slots), max(endpoint.requests_in_flight // branches, 1)
            )
        context = CallContext(
            uuid.uuid4().hex,
            self._functions.endpoints,
            self._finished,
            tasks={name: number * branches for name, number in tasks.items()},
        )

        def place(node: Any) -> PlacedCall:
            # The text of a call has changed if an argument is a subquery whose calls were rewritten.
            call = calls.get(node.sql(dialect="spark")) or self._call(node)
            arguments = {
                name: value
                for name, value in _arguments(node).items()
                if name not in _LITERAL_ARGUMENTS.get(call.function, ()) or call.function in _PASSED_ON
            }
            function = f"_batch_assets_{uuid.uuid4().hex}"
            one = replace(context, call=function, calls=per_endpoint[call.endpoint])
            self._spark.udf.register(function, call.udf(one, list(arguments)))
            return PlacedCall(function, arguments, tasks[call.endpoint])

        planned = rewrite_in_layers(tree, names, place)
        unplaced = next((node for node in planned.find_all(exp.Func) if is_call(node, names)), None)
        if unplaced is not None:
            raise AiFunctionError(
                f"{name_of(unplaced)} can't be used here: call it in a subquery and give its result a name"
            )
        return planned

    def _call(self, node: Any) -> "Call":
        from batch_assets.ai_functions.functions import Call
        from batch_assets.ai_functions.layers import name_of

        function = name_of(node)
        constants = {
            name: self._constant(function, name, value)
            for name, value in _arguments(node).items()
            if name in _LITERAL_ARGUMENTS.get(function, ())
        }
        return Call.of(function, constants, self._functions.default, details=self._details)

    def _constant(self, function: str, name: str, value: Any) -> Any:
        from sqlglot import exp

        text = value.sql(dialect="spark")
        if value.find(exp.Column, exp.Subquery) is not None:
            raise AiFunctionError(f"{function}: {name} must be a literal, the same for every row, but is {text}")
        row = self._spark.sql(f"SELECT {text} AS value").first()
        return None if row is None else row["value"]


def _arguments(node: Any) -> dict[str, Any]:
    """Return the arguments of a call by the names of its parameters.

    Raises:
        AiFunctionError: there are too many or too few arguments, or one has an unknown or repeated name.
    """
    from sqlglot import exp

    from batch_assets.ai_functions.family import FAMILY
    from batch_assets.ai_functions.functions import AI_QUERY, PARAMETERS
    from batch_assets.ai_functions.layers import name_of

    function = name_of(node)
    parameters = PARAMETERS[function]
    values = [
        item
        for value in node.args.values()
        for item in (value if isinstance(value, list) else [value])
        if isinstance(item, exp.Expr)
    ]
    names_by_lower_case = {name.lower(): name for name in parameters}
    arguments: dict[str, Any] = {}
    for position, value in enumerate(values):
        if isinstance(value, exp.Kwarg):
            name = names_by_lower_case.get(value.this.name.lower(), "")
            if not name or name in arguments:
                problem = "repeated" if name else "unknown"
                raise AiFunctionError(
                    f"{function}: {problem} parameter {value.this.name}; its parameters are {', '.join(parameters)}"
                )
            arguments[name] = value.expression
        elif position >= len(parameters):
            raise AiFunctionError(f"{function} takes at most {len(parameters)} arguments: {', '.join(parameters)}")
        else:
            arguments[parameters[position]] = value
    required = 2 if function == AI_QUERY else len(parameters) - FAMILY[function].optional
    missing = [name for name in parameters[:required] if name not in arguments]
    if missing:
        raise AiFunctionError(f"{function} needs {', '.join(missing)}")
    return {name: arguments[name] for name in parameters if name in arguments}


def _parallel_branches(tree: Any, names: frozenset[str]) -> int:
    """Return how many parts of a query may send requests at once, such as the sides of a join or a union.

    A SELECT sends its requests after its subqueries; its own calls run one after the other.
    """
    from sqlglot import exp

    from batch_assets.ai_functions.layers import is_call

    def width(node: Any) -> int:
        below = sum(width(child) for child in node.iter_expressions())
        is_ai_call = isinstance(node, exp.Func) and is_call(node, names)
        if isinstance(node, exp.Select):
            return max(below, 1) if any(_is_call_of(call, node, names) for call in node.find_all(exp.Func)) else below
        return 0 if is_ai_call and not below else below

    return max(width(tree), 1)


def _is_call_of(node: Any, select: Any, names: frozenset[str]) -> bool:
    from sqlglot import exp

    from batch_assets.ai_functions.layers import is_call

    return is_call(node, names) and node.find_ancestor(exp.Select) is select

"""Statements with ai functions: what a function alone can't honour is read from the parsed statement."""

import uuid
from collections import Counter
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar

from batch_assets.ai_functions.answering import Statement, asking_tasks
from batch_assets.ai_functions.requests import AiFunctionError
from batch_assets.inference.completions import FinishedWork
from batch_assets.lake.lake import Lake
from batch_assets.sessions import slots_of

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

    from batch_assets.ai_functions.functions import AiFunctions, Call

# Arguments that decide on a type or an endpoint, and so have to be known before the statement runs.
_CONSTANT = {
    "ai_query": {"endpoint", "returnType", "failOnError", "responseFormat"},
    "ai_extract": {"labels"},
}
_PASSED_ON = {"ai_extract"}


def ai_sql(spark: "SparkSession", statement: str, lake: Lake | None = None) -> "DataFrame":
    """Run a statement in a session where ``register_ai_functions`` was called.

    Beyond ``spark.sql``: results of any type (``failOnError => false``, ``returnType``, ``responseFormat``,
    ``ai_extract``); LIMIT and ORDER BY below the calls, so that 10 rows are 10 requests; equal requests asked once;
    limits and budgets of an endpoint kept over the whole statement. With a lake: tables by one to three names, and
    ``CREATE [OR REPLACE] TABLE ... AS SELECT`` into a Delta table.

    A query is lazy, as in ``spark.sql``, and what was answered once is not asked again by the same data frame.

    Args:
        spark: the session.
        statement: one query or CREATE TABLE.
        lake: where tables are.

    Returns:
        The rows; of a CREATE TABLE, those of the new table.

    Raises:
        AiFunctionError: the statement can't be parsed, or asks for something that can't be.
    """
    from batch_assets.ai_functions.functions import registered_functions

    functions = registered_functions(spark)
    own = functions.statement.finished
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
    """Run a statement as ``ai_sql`` does, with answers kept where ``finished`` says.

    ``details`` adds what an endpoint said of each answer to the struct of ``failOnError => false``.
    """
    from sqlglot import exp

    from batch_assets.ai_functions.tables import create_table_as, resolve_tables

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
    """The one query or CREATE TABLE that a statement is.

    Raises:
        AiFunctionError: it is no SQL, or something else.
    """
    import sqlglot
    from sqlglot import exp

    try:
        trees = sqlglot.parse(statement, dialect=_dialect())
    except sqlglot.errors.SqlglotError as error:
        raise AiFunctionError(f"the statement can't be parsed: {error}") from error
    if len(trees) != 1 or trees[0] is None:
        raise AiFunctionError(f"there are {sum(tree is not None for tree in trees)} statements: run them one by one")
    tree = trees[0]
    if isinstance(tree, exp.Create) and (tree.kind != "TABLE" or not isinstance(tree.expression, exp.Query)):
        raise AiFunctionError("of the CREATE statements, only CREATE [OR REPLACE] TABLE ... AS SELECT runs here")
    if not isinstance(tree, exp.Create | exp.Query):
        raise AiFunctionError(f"only queries and CREATE TABLE ... AS SELECT run here, not {tree.key.upper()}")
    return tree


@cache
def _dialect() -> Any:
    """Spark's SQL, in which two quotation marks in a literal are one (from Spark 4.0 on)."""
    from sqlglot.dialects.spark import Spark

    class SparkWithDoubledQuotes(Spark):
        class Tokenizer(Spark.Tokenizer):  # type: ignore[misc]
            STRING_ESCAPES: ClassVar[list[str]] = ["'", '"', "\\"]

    return SparkWithDoubledQuotes()


def endpoints_of(statement: str, default: str) -> set[str]:
    """Names of the endpoints that a statement asks; ``default`` is that of functions which name none."""
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
    """Makes a function of its own for each call of a statement, and puts the calls where few rows come by."""

    def __init__(self, spark: "SparkSession", functions: "AiFunctions", finished: FinishedWork, details: bool) -> None:
        self._spark, self._functions, self._finished, self._details = spark, functions, finished, details

    def plan(self, tree: Any) -> Any:
        from sqlglot import exp

        from batch_assets.ai_functions.functions import PARAMETERS
        from batch_assets.ai_functions.layers import PlacedCall, is_call, name_of, push_down

        names = frozenset(PARAMETERS)
        nodes = [node for node in tree.find_all(exp.Func) if is_call(node, names)]
        if not nodes:
            return tree
        calls = {node.sql(dialect="spark"): self._call(node) for node in nodes}
        per_endpoint = Counter(call.endpoint for call in calls.values())
        slots = slots_of(self._spark)
        at_once = _at_once(tree, names)
        tasks: dict[str, int] = {}
        for call in calls.values():
            endpoint = self._functions.statement.endpoint(call.endpoint)
            tasks[call.endpoint] = min(asking_tasks(endpoint, slots), max(endpoint.requests_in_flight // at_once, 1))
        statement = Statement(
            uuid.uuid4().hex,
            self._functions.endpoints,
            self._finished,
            tasks={name: number * at_once for name, number in tasks.items()},
        )

        def place(node: Any) -> PlacedCall:
            # A call whose argument is a query with calls of its own doesn't read any more as it did.
            call = calls.get(node.sql(dialect="spark")) or self._call(node)
            arguments = {
                name: value
                for name, value in _arguments(node).items()
                if name not in _CONSTANT.get(call.function, ()) or call.function in _PASSED_ON
            }
            function = f"_batch_assets_{uuid.uuid4().hex}"
            one = replace(statement, call=function, calls=per_endpoint[call.endpoint])
            self._spark.udf.register(function, call.udf(one, list(arguments)))
            return PlacedCall(function, arguments, tasks[call.endpoint])

        planned = push_down(tree, names, place)
        left = next((node for node in planned.find_all(exp.Func) if is_call(node, names)), None)
        if left is not None:
            raise AiFunctionError(f"{name_of(left)} can't stand where it does: call it in a subquery with a name")
        return planned

    def _call(self, node: Any) -> "Call":
        from batch_assets.ai_functions.functions import Call
        from batch_assets.ai_functions.layers import name_of

        function = name_of(node)
        constants = {
            name: self._constant(function, name, value)
            for name, value in _arguments(node).items()
            if name in _CONSTANT.get(function, ())
        }
        return Call.of(function, constants, self._functions.default, details=self._details)

    def _constant(self, function: str, name: str, value: Any) -> Any:
        from sqlglot import exp

        text = value.sql(dialect="spark")
        if value.find(exp.Column, exp.Subquery) is not None:
            raise AiFunctionError(f"{function}: {name} must be a literal, the same for every row; it is {text}")
        row = self._spark.sql(f"SELECT {text} AS value").first()
        return None if row is None else row["value"]


def _arguments(node: Any) -> dict[str, Any]:
    """The arguments of a call by the names of its parameters.

    Raises:
        AiFunctionError: there are too many or too few, or one has an unknown name.
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
    spelled = {name.lower(): name for name in parameters}
    arguments: dict[str, Any] = {}
    for place, value in enumerate(values):
        if isinstance(value, exp.Kwarg):
            name = spelled.get(value.this.name.lower(), "")
            if not name or name in arguments:
                what = "twice the" if name else "no"
                raise AiFunctionError(
                    f"{function} has {what} parameter {value.this.name}; they are {', '.join(parameters)}"
                )
            arguments[name] = value.expression
        elif place >= len(parameters):
            raise AiFunctionError(f"{function} takes {len(parameters)} arguments at most: {', '.join(parameters)}")
        else:
            arguments[parameters[place]] = value
    required = 2 if function == AI_QUERY else len(parameters) - FAMILY[function].optional
    missing = [name for name in parameters[:required] if name not in arguments]
    if missing:
        raise AiFunctionError(f"{function} needs {', '.join(missing)}")
    return {name: arguments[name] for name in parameters if name in arguments}


def _at_once(tree: Any, names: frozenset[str]) -> int:
    """How many parts of a query may ask at the same time: Spark may run the sides of a join or a union so.

    A SELECT asks after those below it have; its own calls ask one after the other.
    """
    from sqlglot import exp

    from batch_assets.ai_functions.layers import is_call

    def width(node: Any) -> int:
        below = sum(width(child) for child in node.iter_expressions())
        asks = isinstance(node, exp.Func) and is_call(node, names)
        if isinstance(node, exp.Select):
            return max(below, 1) if any(_own(call, node, names) for call in node.find_all(exp.Func)) else below
        return 0 if asks and not below else below

    return max(width(tree), 1)


def _own(node: Any, select: Any, names: frozenset[str]) -> bool:
    from sqlglot import exp

    from batch_assets.ai_functions.layers import is_call

    return is_call(node, names) and node.find_ancestor(exp.Select) is select

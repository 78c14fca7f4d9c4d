"""Statements that a function alone can't honour: what they need is read from the parsed statement."""

from typing import TYPE_CHECKING

from batch_assets.ai_functions.client import AiFunctionError

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession


def ai_sql(spark: "SparkSession", statement: str) -> "DataFrame":
    """Run a query in a session where ``register_ai_functions`` was called.

    Beyond ``spark.sql``, ``ai_query(..., failOnError => false)`` gives ``STRUCT<result, errorMessage>``.

    Raises:
        AiFunctionError: the statement can't be parsed, or failOnError is not a literal.
    """
    return spark.sql(rewrite(statement))


def rewrite(statement: str) -> str:
    """The statement as plain ``spark.sql`` can run it."""
    import sqlglot
    from sqlglot import exp

    from batch_assets.ai_functions.functions import RESULT_OR_ERROR

    try:
        tree = sqlglot.parse_one(statement, dialect="spark")
    except sqlglot.errors.ParseError as error:
        raise AiFunctionError(f"the statement can't be parsed: {error}") from error
    for call in tree.find_all(exp.Anonymous):
        if call.name.lower() != "ai_query":
            continue
        for argument in [item for item in call.expressions if isinstance(item, exp.Kwarg)]:
            if argument.this.name.lower() != "failonerror":
                continue
            if not isinstance(argument.expression, exp.Boolean):
                raise AiFunctionError("ai_query: failOnError must be true or false")
            argument.pop()
            if not argument.expression.this:
                call.set("this", RESULT_OR_ERROR)
    return tree.sql(dialect="spark")

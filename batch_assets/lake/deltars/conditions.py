"""Simple comparisons out of a condition in SQL, for leaving out files."""

from decimal import Decimal
from typing import Any

import sqlglot
from pyspark.sql import datasource as filters
from sqlglot import exp
from sqlglot.errors import SqlglotError

from batch_assets.errors import BatchAssetsError

_COMPARISONS: dict[Any, Any] = {
    exp.EQ: filters.EqualTo,
    exp.NullSafeEQ: filters.EqualTo,
    exp.GT: filters.GreaterThan,
    exp.GTE: filters.GreaterThanOrEqual,
    exp.LT: filters.LessThan,
    exp.LTE: filters.LessThanOrEqual,
}
_TEMPORAL = {
    exp.DataType.Type.DATE,
    exp.DataType.Type.TIMESTAMP,
    exp.DataType.Type.TIMESTAMPTZ,
    exp.DataType.Type.TIMESTAMPLTZ,
}
_MIRRORED: dict[Any, Any] = {exp.GT: exp.LT, exp.GTE: exp.LTE, exp.LT: exp.GT, exp.LTE: exp.GTE}


def simple_conditions(sql: str) -> list[filters.Filter]:
    """Comparisons of a column with constants that every row meets for which a condition is true.

    Args:
        sql: a condition in Spark's SQL. Parts of it that are no such comparison say nothing about files.

    Raises:
        BatchAssetsError: it is no SQL.
    """
    try:
        tree = sqlglot.parse_one(sql, read="spark")
    except SqlglotError as error:
        raise BatchAssetsError(f"the condition {sql!r} is no SQL: {str(error).splitlines()[0]}") from error
    if "\\" in sql:
        return []  # how Spark reads a backslash is a setting
    parts = list(tree.flatten()) if isinstance(tree, exp.And) else [tree]
    return [condition for part in parts for condition in _conditions(part.unnest())]


def _conditions(part: Any) -> list[filters.Filter]:
    match part:
        case exp.Between(this=exp.Column()):
            low, high = part.args["low"], part.args["high"]
            return _comparison(exp.GTE, part.this, low) + _comparison(exp.LTE, part.this, high)
        case exp.Is(this=exp.Column() as column, expression=exp.Null()):
            return [filters.IsNull(_name(column))]
        case exp.Not(this=exp.Is(this=exp.Column() as column, expression=exp.Null())):
            return [filters.IsNotNull(_name(column))]
        case exp.Not(this=exp.EQ() as equal) | (exp.NEQ() as equal):
            return [
                filters.Not(condition)
                for condition in _conditions(exp.EQ(this=equal.this, expression=equal.expression))
            ]
        case exp.In(this=exp.Column() as column) if part.expressions:
            values = [_constant(value) for value in part.expressions]
            return [] if None in values else [filters.In(_name(column), tuple(value[0] for value in values if value))]
        case exp.Like(this=exp.Column() as column, expression=exp.Literal(is_string=True) as pattern):
            prefix = pattern.this.removesuffix("%")
            plain = prefix != pattern.this and not set(prefix) & set("%_\\")
            return [filters.StringStartsWith(_name(column), prefix)] if plain and prefix else []
        case exp.Binary() if type(part) in _COMPARISONS:
            return _comparison(type(part), part.this, part.expression)
        case _:
            return []


def _comparison(kind: Any, left: Any, right: Any) -> list[filters.Filter]:
    if isinstance(right, exp.Column) and not isinstance(left, exp.Column):
        return _comparison(_MIRRORED.get(kind, kind), right, left)
    constant = _constant(right)
    if not isinstance(left, exp.Column) or constant is None or constant[0] is None:
        return []
    return [_COMPARISONS[kind](_name(left), constant[0])]


def _name(column: exp.Column) -> tuple[str, ...]:
    return tuple(part.name for part in column.parts)


def _constant(value: Any) -> tuple[Any] | None:
    """The value of a constant, None for anything else. Dates and timestamps stay text: the column knows its type."""
    match value:
        case exp.Null():
            return (None,)
        case exp.Boolean():
            return (bool(value.this),)
        case exp.Literal(is_string=True):
            return (str(value.this),)
        case exp.Literal():
            return (int(value.this) if value.this.isdigit() else Decimal(value.this),)
        case exp.Neg(this=exp.Literal(is_string=False) as number):
            plain = _constant(number)
            return None if plain is None else (-plain[0],)
        case exp.Cast(this=exp.Literal(is_string=True) as text) if value.to.this in _TEMPORAL:
            return (str(text.this),)
        case _:
            return None

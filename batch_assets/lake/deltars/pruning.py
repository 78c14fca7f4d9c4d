"""Which files of a table can hold rows that meet a filter, by partition values and statistics alone."""

import datetime as dt
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from pyspark.sql import datasource as filters

# Statistics hold decimals as numbers of JSON, which many writers and readers take for 64-bit floats.
_EXACT_DIGITS = 15
# Many writers cut timestamps in statistics to milliseconds.
_MILLISECOND = pa.scalar(1000, pa.duration("us"))


def prune(actions: pa.Table, schema: pa.Schema, partition_columns: list[str], condition: filters.Filter) -> pa.Table:
    """Leave out files that no row of can meet a filter; a file without the statistics it takes stays.

    Args:
        actions: add actions of a table, flattened.
        schema: columns of the table.
        partition_columns: those of them that it is partitioned by.
        condition: one of a kind not known here leaves out nothing.
    """
    column = _column(actions, schema, partition_columns, condition)
    if column is None or actions.num_rows == 0:
        return actions
    try:
        impossible = column.excludes(condition)
    except (pa.ArrowException, TypeError, ValueError, OverflowError):
        return actions  # a value that the column's type can't hold is Spark's to compare
    if impossible is None:
        return actions
    return actions.filter(pc.invert(pc.fill_null(impossible, False)))


def _column(
    actions: pa.Table, schema: pa.Schema, partition_columns: list[str], condition: filters.Filter
) -> "_Column | None":
    attribute = condition.child.attribute if isinstance(condition, filters.Not) else condition.attribute  # type: ignore[attr-defined]
    # Flattened names join a struct and its field by a dot, as a name of one column may have one.
    if len(attribute) != 1 or attribute[0] not in schema.names or "." in attribute[0]:
        return None
    name = attribute[0]
    kind = schema.field(name).type
    if name in partition_columns:
        value = actions[f"partition.{name}"]
        if pa.types.is_floating(kind):  # Spark compares both as doubles
            kind, value = pa.float64(), value.cast(pa.float64())
        return _Column(kind, value, value, pc.is_valid(value), pc.is_null(value), exact=True)
    if f"null_count.{name}" not in actions.column_names:
        return None
    nulls, rows = actions[f"null_count.{name}"], actions["num_records"]
    if f"min.{name}" in actions.column_names and f"max.{name}" in actions.column_names:
        low, high = actions[f"min.{name}"], actions[f"max.{name}"]
    else:
        low = high = pa.chunked_array([pa.nulls(actions.num_rows, kind)])
    unknown = pa.chunked_array([pa.nulls(actions.num_rows, kind)])
    if pa.types.is_floating(kind):
        # Spark takes NaN for greater than any number, and statistics leave it out.
        kind, low, high = pa.float64(), low.cast(pa.float64()), unknown.cast(pa.float64())
    elif pa.types.is_decimal(kind) and kind.precision > _EXACT_DIGITS:
        low = high = unknown
    elif pa.types.is_timestamp(kind):
        high = pc.add(high, _MILLISECOND)
    return _Column(kind, low, high, pc.equal(nulls, 0), pc.equal(nulls, rows), exact=False)


class _Column:
    """What is known of a column in each file: bounds of its values, whether it has no null, or nothing else."""

    def __init__(self, kind: pa.DataType, low: Any, high: Any, no_null: Any, all_null: Any, *, exact: bool) -> None:
        self._kind = kind
        self._low, self._high = low, high
        self._no_null, self._all_null = no_null, all_null
        self._exact = exact

    def excludes(self, condition: filters.Filter) -> Any:
        """For each file, whether no row can meet the condition; null where that is unknown."""
        match condition:
            case filters.IsNull():
                return self._no_null
            case filters.IsNotNull():
                return self._all_null
            case filters.EqualTo(value=value):
                return self._none_is(value)
            case filters.In(value=values):
                outside = [self._outside(value) for value in values if value is not None]
                return pc.or_kleene(self._all_null, _all(outside)) if outside else None
            case filters.GreaterThan(value=value):
                return pc.or_kleene(self._all_null, pc.less_equal(self._high, self._scalar(value)))
            case filters.GreaterThanOrEqual(value=value):
                return pc.or_kleene(self._all_null, pc.less(self._high, self._scalar(value)))
            case filters.LessThan(value=value):
                return pc.or_kleene(self._all_null, pc.greater_equal(self._low, self._scalar(value)))
            case filters.LessThanOrEqual(value=value):
                return pc.or_kleene(self._all_null, pc.greater(self._low, self._scalar(value)))
            case filters.StringStartsWith(value=prefix):
                start = pc.utf8_slice_codeunits(self._low, 0, len(prefix))
                outside = pc.or_kleene(pc.greater(start, prefix), pc.less(self._high, prefix))
                return pc.or_kleene(self._all_null, outside)
            case filters.Not(child=filters.EqualTo(value=value)) if self._exact:
                return pc.or_kleene(self._all_null, pc.equal(self._low, self._scalar(value)))
            case _:
                return None

    def _none_is(self, value: Any) -> Any:
        return None if value is None else pc.or_kleene(self._all_null, self._outside(value))

    def _outside(self, value: Any) -> Any:
        scalar = self._scalar(value)
        if self._exact:
            return pc.not_equal(self._low, scalar)
        return pc.or_kleene(pc.greater(self._low, scalar), pc.less(self._high, scalar))

    def _scalar(self, value: Any) -> pa.Scalar:
        if isinstance(value, str) and pa.types.is_date(self._kind):
            value = dt.date.fromisoformat(value)
        elif isinstance(value, str) and pa.types.is_timestamp(self._kind):
            value = dt.datetime.fromisoformat(value)
            if (value.tzinfo is None) != (self._kind.tz is None):
                raise ValueError("which moment that is depends on the session's time zone")
        if isinstance(value, Decimal) and pa.types.is_floating(self._kind):
            value = float(value)
        return pa.scalar(value, self._kind)


def _all(conditions: list[Any]) -> Any:
    total = conditions[0]
    for condition in conditions[1:]:
        total = pc.and_kleene(total, condition)
    return total

"""Which tables can be read and written without getting them wrong: features of the Delta protocol.

https://github.com/delta-io/delta/blob/master/PROTOCOL.md#table-features
"""

from collections.abc import Callable, Mapping
from typing import Any

from batch_assets.errors import BatchAssetsError

# What delta-rs takes care of, and appendOnly, which whoever replaces something asks for.
_HARMLESS = {"appendOnly", "timestampNtz", "v2Checkpoint", "vacuumProtocolCheck"}

# What the numbers of older protocols stand for.
_READER_VERSIONS = {2: ["columnMapping"]}
_WRITER_VERSIONS = {
    2: ["appendOnly", "invariants"],
    3: ["checkConstraints"],
    4: ["changeDataFeed", "generatedColumns"],
    5: ["columnMapping"],
    6: ["identityColumns"],
}

_Configuration = Mapping[str, str | None]
_Columns = list[Mapping[str, Any]]


def _has_metadata(prefix: str) -> Callable[[_Configuration, _Columns], bool]:
    return lambda _, columns: any(key.startswith(prefix) for column in columns for key in column)


# A table may carry these without using them; most that Spark has written do.
_IN_USE: dict[str, Callable[[_Configuration, _Columns], bool]] = {
    "invariants": _has_metadata("delta.invariants"),
    "checkConstraints": lambda configuration, _: any(key.startswith("delta.constraints.") for key in configuration),
    "changeDataFeed": lambda configuration, _: configuration.get("delta.enableChangeDataFeed") == "true",
    "generatedColumns": _has_metadata("delta.generationExpression"),
    "columnMapping": lambda configuration, _: configuration.get("delta.columnMapping.mode", "none") != "none",
    "identityColumns": _has_metadata("delta.identity."),
}


class UnreadableTableError(BatchAssetsError):
    """The table can be had, but reading it would get it wrong."""


def refuse_unreadable(delta: Any, uri: str) -> None:
    """Refuse a ``deltalake.DeltaTable`` whose Parquet files don't hold what the table says.

    Raises:
        UnreadableTableError: the table uses deletion vectors, column mapping or another feature that reading plain
            Parquet files would get wrong; the message names it.
    """
    protocol = delta.protocol()
    named = _named(protocol.reader_features, protocol.min_reader_version, 3, _READER_VERSIONS, "reader")
    wrong = _in_use(delta, named)
    if wrong:
        raise UnreadableTableError(f"the table at {uri} can't be read correctly here: it uses {', '.join(wrong)}")


def refuse_unwritable(delta: Any, uri: str) -> None:
    """Refuse a ``deltalake.DeltaTable`` that asks more of its writers than data files with statistics.

    Raises:
        BatchAssetsError: the table has constraints, generated columns, a change data feed or another feature that
            files written here would violate; the message names it.
    """
    protocol = delta.protocol()
    named = _named(protocol.writer_features, protocol.min_writer_version, 7, _WRITER_VERSIONS, "writer")
    wrong = _in_use(delta, named)
    if wrong:
        raise BatchAssetsError(
            f"the table at {uri} can't be written correctly here: it uses {', '.join(wrong)}; write it with the "
            "engine that made it"
        )


def _named(
    features: list[str] | None, version: int, newest: int, versions: Mapping[int, list[str]], who: str
) -> list[str]:
    """The features that a protocol stands for; from the newest version on they are listed by name."""
    if version > newest:
        return [f"{who} version {version}"]
    if features is not None:
        return features
    return [feature for number, implied in versions.items() if number <= version for feature in implied]


def _in_use(delta: Any, named: list[str]) -> list[str]:
    configuration = delta.metadata().configuration
    columns = [field.metadata for field in delta.schema().fields]
    return sorted(
        feature
        for feature in set(named) - _HARMLESS
        if feature not in _IN_USE or _IN_USE[feature](configuration, columns)
    )

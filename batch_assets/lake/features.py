"""Which tables can be read and written without getting them wrong: features of the Delta protocol.

https://github.com/delta-io/delta/blob/master/PROTOCOL.md#table-features
"""

from collections.abc import Callable, Mapping
from typing import Any

from batch_assets.errors import BatchAssetsError

# Features that a reader of plain Parquet files may overlook, because delta-rs takes care of them.
_READABLE = {"timestampNtz", "v2Checkpoint", "vacuumProtocolCheck"}

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
    "appendOnly": lambda configuration, _: False,  # a replacement asks for it itself
    "invariants": _has_metadata("delta.invariants"),
    "checkConstraints": lambda configuration, _: any(key.startswith("delta.constraints.") for key in configuration),
    "changeDataFeed": lambda configuration, _: configuration.get("delta.enableChangeDataFeed") == "true",
    "generatedColumns": _has_metadata("delta.generationExpression"),
    "columnMapping": lambda configuration, _: configuration.get("delta.columnMapping.mode", "none") != "none",
    "identityColumns": _has_metadata("delta.identity."),
}


def refuse_unreadable(delta: Any, uri: str) -> None:
    """Refuse a ``deltalake.DeltaTable`` whose Parquet files don't hold what the table says.

    Raises:
        BatchAssetsError: the table uses deletion vectors, column mapping or another feature that reading plain
            Parquet files would get wrong; the message names it.
    """
    protocol = delta.protocol()
    named = protocol.reader_features or _implied(_READER_VERSIONS, protocol.min_reader_version)
    wrong = _in_use(delta, named, _READABLE)
    if wrong:
        raise BatchAssetsError(f"the table at {uri} can't be read correctly here: it uses {', '.join(wrong)}")


def refuse_unwritable(delta: Any, uri: str) -> None:
    """Refuse a ``deltalake.DeltaTable`` that asks more of its writers than data files with statistics.

    Raises:
        BatchAssetsError: the table has constraints, generated columns, a change data feed or another feature that
            files written here would violate; the message names it.
    """
    protocol = delta.protocol()
    named = protocol.writer_features or _implied(_WRITER_VERSIONS, protocol.min_writer_version)
    wrong = _in_use(delta, named, _READABLE)
    if wrong:
        raise BatchAssetsError(
            f"the table at {uri} can't be written correctly here: it uses {', '.join(wrong)}; write it with the "
            "engine that made it"
        )


def _implied(versions: Mapping[int, list[str]], version: int) -> list[str]:
    return [feature for number, features in versions.items() if number <= version for feature in features]


def _in_use(delta: Any, named: list[str], harmless: set[str]) -> list[str]:
    configuration = delta.metadata().configuration
    columns = [field.metadata for field in delta.schema().fields]
    return sorted(
        feature
        for feature in set(named) - harmless
        if feature not in _IN_USE or _IN_USE[feature](configuration, columns)
    )

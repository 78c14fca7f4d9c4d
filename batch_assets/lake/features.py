"""Refuse tables with features of the Delta protocol that this package can't read or write correctly.

https://github.com/delta-io/delta/blob/master/PROTOCOL.md#table-features
"""

from collections.abc import Callable, Mapping
from typing import Any

from batch_assets.errors import BatchAssetsError

# Features that delta-rs handles, and appendOnly, which is checked before a replacement.
_SUPPORTED = {"appendOnly", "timestampNtz", "v2Checkpoint", "vacuumProtocolCheck"}

# Features implied by the version numbers of older protocols.
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


# Tables may list these features without using them; most tables written by Spark do.
_IS_IN_USE: dict[str, Callable[[_Configuration, _Columns], bool]] = {
    "invariants": _has_metadata("delta.invariants"),
    "checkConstraints": lambda configuration, _: any(key.startswith("delta.constraints.") for key in configuration),
    "changeDataFeed": lambda configuration, _: configuration.get("delta.enableChangeDataFeed") == "true",
    "generatedColumns": _has_metadata("delta.generationExpression"),
    "columnMapping": lambda configuration, _: configuration.get("delta.columnMapping.mode", "none") != "none",
    "identityColumns": _has_metadata("delta.identity."),
}


class UnreadableTableError(BatchAssetsError):
    """The table uses features this reader does not support."""


def refuse_unreadable(delta: Any, uri: str) -> None:
    """Refuse a ``deltalake.DeltaTable`` that can't be read correctly from its Parquet files alone.

    Raises:
        UnreadableTableError: the table uses deletion vectors, column mapping or another unsupported feature; the
            message names it.
    """
    protocol = delta.protocol()
    required = _required_features(protocol.reader_features, protocol.min_reader_version, 3, _READER_VERSIONS, "reader")
    unsupported = _unsupported_in_use(delta, required)
    if unsupported:
        raise UnreadableTableError(
            f"the table at {uri} uses features this reader does not support: {', '.join(unsupported)}"
        )


def refuse_unwritable(delta: Any, uri: str) -> None:
    """Refuse a ``deltalake.DeltaTable`` whose writers must do more than add data files with statistics.

    Raises:
        BatchAssetsError: the table uses constraints, generated columns, a change data feed or another unsupported
            feature; the message names it.
    """
    protocol = delta.protocol()
    required = _required_features(protocol.writer_features, protocol.min_writer_version, 7, _WRITER_VERSIONS, "writer")
    unsupported = _unsupported_in_use(delta, required)
    if unsupported:
        raise BatchAssetsError(
            f"the table at {uri} uses features this writer does not support: {', '.join(unsupported)}; write it with "
            "the engine that created it"
        )


def _required_features(
    features: list[str] | None, version: int, newest: int, versions: Mapping[int, list[str]], who: str
) -> list[str]:
    """Return the features that a protocol requires; since version ``newest``, it lists them by name."""
    if version > newest:
        return [f"{who} version {version}"]
    if features is not None:
        return features
    return [feature for number, implied in versions.items() if number <= version for feature in implied]


def _unsupported_in_use(delta: Any, required: list[str]) -> list[str]:
    configuration = delta.metadata().configuration
    columns = [field.metadata for field in delta.schema().fields]
    return sorted(
        feature
        for feature in set(required) - _SUPPORTED
        if feature not in _IS_IN_USE or _IS_IN_USE[feature](configuration, columns)
    )

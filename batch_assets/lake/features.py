"""Refuse tables with features of the Delta protocol that this package can't read or write correctly.

https://github.com/delta-io/delta/blob/master/PROTOCOL.md#table-features
"""

from collections.abc import Callable, Mapping, Set
from typing import Any

from batch_assets.errors import BatchAssetsError
from batch_assets.lake.widened_types import unsupported_changes

# Features that delta-rs handles, and appendOnly, which is checked before a replacement.
_WRITABLE = {"appendOnly", "timestampNtz", "v2Checkpoint", "vacuumProtocolCheck"}

_DELETION_VECTORS, _COLUMN_MAPPING = "deletionVectors", "columnMapping"
# A table that allows shredded variants may have none: a file with them is refused when it is read.
_READABLE = {
    *_WRITABLE, _DELETION_VECTORS, _COLUMN_MAPPING, "typeWidening", "typeWidening-preview", "variantType",
    "variantType-preview", "variantShredding", "variantShredding-preview",
}  # fmt: skip

# Features implied by the version numbers of older protocols.
_READER_VERSIONS = {2: [_COLUMN_MAPPING]}
_WRITER_VERSIONS = {
    2: ["appendOnly", "invariants"],
    3: ["checkConstraints"],
    4: ["changeDataFeed", "generatedColumns"],
    5: [_COLUMN_MAPPING],
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
    _COLUMN_MAPPING: lambda configuration, _: configuration.get("delta.columnMapping.mode", "none") != "none",
    "identityColumns": _has_metadata("delta.identity."),
}


class UnreadableTableError(BatchAssetsError):
    """The table uses features this reader does not support."""


def refuse_unreadable(delta: Any, uri: str) -> None:
    """Refuse a ``deltalake.DeltaTable`` that can't be read correctly from its Parquet files alone.

    Raises:
        UnreadableTableError: the table uses an unsupported feature; the message names it.
    """
    unsupported = _unsupported_in_use(delta, _reader_features(delta), _READABLE)
    mode = column_mapping_mode(delta)
    if mode not in ("none", "name", "id"):
        unsupported.append(f"{_COLUMN_MAPPING} in the mode {mode}")
    unsupported += [f"typeWidening from {old} to {new}" for old, new in unsupported_changes(delta)]
    if unsupported:
        raise UnreadableTableError(
            f"the table at {uri} uses features this reader does not support: {', '.join(unsupported)}"
        )


def refuse_unwritable(delta: Any, uri: str) -> None:
    """Refuse a ``deltalake.DeltaTable`` whose writers must do more than add data files with statistics.

    Raises:
        BatchAssetsError: the table uses deletion vectors, column mapping, constraints, generated columns, a change
            data feed or another unsupported feature; the message names it.
    """
    protocol = delta.protocol()
    required = _required_features(protocol.writer_features, protocol.min_writer_version, 7, _WRITER_VERSIONS, "writer")
    unsupported = _unsupported_in_use(delta, required, _WRITABLE)
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


def has_deletion_vectors(delta: Any) -> bool:
    """Return whether files of a ``deltalake.DeltaTable`` may have deletion vectors."""
    return _DELETION_VECTORS in _reader_features(delta)


def column_mapping_mode(delta: Any) -> str:
    """Return how the columns of a ``deltalake.DeltaTable`` are found in its files: none (as named), name or id."""
    mode = delta.metadata().configuration.get("delta.columnMapping.mode") or "none"
    # The protocol decides: without the feature, the property means nothing.
    return str(mode) if _COLUMN_MAPPING in _reader_features(delta) else "none"


def _reader_features(delta: Any) -> list[str]:
    protocol = delta.protocol()
    return _required_features(protocol.reader_features, protocol.min_reader_version, 3, _READER_VERSIONS, "reader")


def _unsupported_in_use(delta: Any, required: list[str], supported: Set[str]) -> list[str]:
    configuration = delta.metadata().configuration
    columns = [field.metadata for field in delta.schema().fields]
    return sorted(
        feature
        for feature in set(required) - supported
        if feature not in _IS_IN_USE or _IS_IN_USE[feature](configuration, columns)
    )

"""Check that the types of columns were only widened in ways that values survive.

https://github.com/delta-io/delta/blob/master/PROTOCOL.md#type-widening
"""

import json
import re
from collections.abc import Iterator
from typing import Any

_INTEGERS = ["byte", "short", "integer", "long"]
# The decimal digits that each integer type needs.
_DIGITS = {"byte": 10, "short": 10, "integer": 10, "long": 20}
_SIMPLE = {("float", "double"), ("date", "timestamp_ntz")} | {(kind, "double") for kind in _INTEGERS[:3]}


def unsupported_changes(delta: Any) -> list[tuple[str, str]]:
    """Return the old and the new types of changes to a ``deltalake.DeltaTable`` that this reader can't follow."""
    changes = _changes(json.loads(delta.schema().to_json()))
    return sorted({(old, new) for old, new in changes if not _is_widening(old, new)})


def _changes(described: Any) -> Iterator[tuple[str, str]]:
    """Yield the changes recorded in a schema, nested fields included."""
    if isinstance(described, list):
        for item in described:
            yield from _changes(item)
    elif isinstance(described, dict):
        for change in (described.get("metadata") or {}).get("delta.typeChanges", []):
            yield change["fromType"], change["toType"]
        for key in ("fields", "type", "elementType", "keyType", "valueType"):
            yield from _changes(described.get(key))


def _is_widening(old: str, new: str) -> bool:
    if old in _INTEGERS and new in _INTEGERS:
        return _INTEGERS.index(old) <= _INTEGERS.index(new)
    decimal = _precision(new)
    if decimal is None:
        return (old, new) in _SIMPLE
    before = (_DIGITS[old], 0) if old in _DIGITS else _precision(old)
    if before is None:
        return False
    return before[1] <= decimal[1] and before[0] - before[1] <= decimal[0] - decimal[1]


def _precision(kind: str) -> tuple[int, int] | None:
    found = re.fullmatch(r"decimal\((\d+), *(\d+)\)", kind)
    return None if found is None else (int(found[1]), int(found[2]))

"""The keys of batches that the values of a column form.

A letter, a digit, ``-`` and ``_`` stand for themselves. Every other character is written as its UTF-8 bytes, each as
``.`` and two hexadecimal digits. A key that would not begin with a letter or a digit begins with ``value..``. No value
has the keys of null and of the empty text. So different values have different keys, and a key shows its value.
"""

import hashlib
import re
from dataclasses import dataclass
from datetime import date, datetime
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from batch_assets.errors import BatchAssetsError

NULL_KEY, EMPTY_KEY = "value..null", "value..empty"
_PREFIX = "value.."
_LONGEST = 100
_DIGEST = 32
_SPELLED = {"day": "%Y-%m-%d", "hour": "%Y-%m-%dT%H"}


def key_of(value: str | int | date | None) -> str:
    """The key of the batch that a value forms."""
    if value is None:
        return NULL_KEY
    text = str(value)
    if not text:
        return EMPTY_KEY
    key = re.sub(r"[^A-Za-z0-9_-]", lambda found: "".join(f".{byte:02X}" for byte in found[0].encode()), text)
    if not key[0].isalnum():
        key = _PREFIX + key
    if len(key) <= _LONGEST:
        return key
    # A digest instead of the end; two dots can't come from a value.
    digest = hashlib.sha256(text.encode()).hexdigest()[:_DIGEST]
    return f"{key[: _LONGEST - _DIGEST - 2].rstrip('.')}..{digest}"


@dataclass(frozen=True)
class BatchColumn:
    """The column whose values are the batches of a table.

    Args:
        name: the column.
        every: how much time a batch spans, ``day`` or ``hour``, if the column is a timestamp.
        is_verbatim: the values are keys of batches already.
    """

    name: str
    every: str | None = None
    is_verbatim: bool = False

    def check(self, schema: pa.Schema, called: str) -> None:
        """Check the type of the column.

        Args:
            schema: the columns of the table.
            called: what messages call the table.

        Raises:
            BatchAssetsError: the table has no such column, or its type can't name batches.
        """
        if self.name not in schema.names:
            raise BatchAssetsError(
                f"{called} has no column {self.name} for source.batch_by (columns: {', '.join(schema.names)})"
            )
        kind = schema.field(self.name).type
        if pa.types.is_timestamp(kind):
            if self.every is None:
                raise BatchAssetsError(f"{self.name} of {called} is a timestamp: set source.every to day or hour")
        elif self.every is not None:
            raise BatchAssetsError(f"{self.name} of {called} is {kind}: remove source.every, which needs a timestamp")
        elif not any(fits(kind) for fits in (pa.types.is_string, pa.types.is_integer, pa.types.is_date)):
            raise BatchAssetsError(
                f"{self.name} of {called} is {kind}: batch by a string, an integer, a date or a timestamp"
            )

    def key(self, value: Any) -> str:
        """The key of the batch that a value is in."""
        if self.is_verbatim and value:
            return str(value)
        if isinstance(value, datetime):
            return key_of(value.strftime(_SPELLED[str(self.every)]))
        return key_of(value)

    def keys(self, values: pa.Array) -> pa.Array:
        """The key of each value of the column, as a dictionary of texts."""
        if self.every is not None:
            values = pc.floor_temporal(values, unit=self.every)
        encoded = values.dictionary_encode(null_encoding="encode")
        keys = [self.key(value) for value in encoded.dictionary.to_pylist()]
        return pa.DictionaryArray.from_arrays(encoded.indices, pa.array(keys, pa.string()))

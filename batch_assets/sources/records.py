"""Validate records: each becomes a document, or a rejected record with the reason."""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from batch_assets.sources.column_mapping import ColumnMapping
from batch_assets.sources.reasons import Reason
from batch_assets.text_template import as_text


@dataclass(frozen=True)
class Record:
    """One record of a source.

    ``position`` counts from 0 within ``source``. If the record could not be read, ``fields`` is None and ``problem``
    says why.
    """

    source: str
    position: int
    fields: Mapping[str, Any] | None
    raw: str
    problem: str | None = None


@dataclass(frozen=True)
class Document:
    """A text for the model, with its reference answer if there is one.

    ``carried`` holds the values of the columns that are copied to the output.
    """

    id: str
    document: str | None
    reference: str | None
    source: str
    carried: tuple[str | None, ...] = ()


@dataclass(frozen=True)
class Rejected:
    """A record that can't be used, with the reason."""

    record: Record
    reason: str


def validate(
    records: Iterable[Record],
    columns: ColumnMapping,
    is_forgotten: Callable[[str], bool] = lambda _: False,
) -> Iterator[Document | Rejected]:
    """Turn every record of one batch into a document or a rejected record.

    A record without an id gets one that is derived from its content.

    Args:
        records: records of the batch.
        columns: where a record has its id, text and reference.
        is_forgotten: whether the document with an id must not be kept. A record that can't be read is not kept if
            anything in it may be such an id.
    """
    seen: set[str] = set()
    copies: Counter[str] = Counter()
    template = columns.template
    for record in records:
        reason = record.problem or _problem(record.fields or {}, columns)
        if reason is not None:
            must_forget = any(map(is_forgotten, possible_ids(record, columns.id)))
            yield _without_text(record) if must_forget else Rejected(record, reason)
            continue
        fields = record.fields or {}
        document, reference = (
            template.render(fields),
            None if columns.reference is None else _as_reference(fields.get(columns.reference)),
        )
        identifier = fields.get(columns.id)
        if identifier is None or identifier == "":
            key = hashlib.sha256(f"{document}\0{reference}".encode()).hexdigest()[:16]
            copies[key] += 1
            identifier = key if copies[key] == 1 else f"{key}-{copies[key]}"
        identifier = str(identifier)
        if is_forgotten(identifier):
            yield _without_text(record)
            continue
        if identifier in seen:
            yield Rejected(record, Reason.ID_AGAIN.format(id=identifier[:100]))
            continue
        seen.add(identifier)
        carried = tuple(as_text(fields.get(name)) for name in columns.carry)
        yield Document(identifier, document, reference, record.source, carried)


def possible_ids(record: Record, id_column: str) -> set[str]:
    """The id of a record, or everything that may be its id if the record can't be read."""
    if record.fields is not None:
        identifier = record.fields.get(id_column)
        return set() if identifier is None else {str(identifier)}
    return _ids_in(record.raw)


def ids_in_raw(raw: str, id_column: str) -> set[str]:
    """The id in the raw text of a rejected record, or everything that may be its id if the text can't be parsed."""
    try:
        fields = json.loads(raw)
    except ValueError:
        return _ids_in(raw)
    if not isinstance(fields, dict):
        return _ids_in(raw)
    return set() if fields.get(id_column) is None else {str(fields[id_column])}


def _ids_in(raw: str) -> set[str]:
    quoted = set()
    for text in re.findall(r'"(?:[^"\\]|\\.)*"', raw):
        with suppress(ValueError):  # quoted, but not valid JSON
            quoted.add(str(json.loads(text)))
    return quoted | {cell.strip(" \t\r\n\"'{}[]") for cell in re.split(r"[,;:\t\n]", raw)}


def _without_text(record: Record) -> Rejected:
    return Rejected(replace(record, fields=None, raw=""), Reason.FORGOTTEN)


def _problem(fields: Mapping[str, Any], columns: ColumnMapping) -> str | None:
    missing = columns.missing_from(fields)
    if missing:
        return Reason.NO_FIELD.format(field=missing[0])
    # Only a template turns numbers into text.
    texts: tuple[type, ...] = (str,) if columns.text in fields else (str, int, float)
    references: tuple[type, ...] = (str, dict, list) if columns.is_reference_json else (str,)
    checked = [*((name, texts) for name in columns.template.columns), (columns.reference, references)]
    for name, types in ((name, types) for name, types in checked if name is not None):
        value = fields.get(name)
        if value is not None and not isinstance(value, types):
            return Reason.NOT_TEXT.format(field=name, type=type(value).__name__)
    identifier = fields.get(columns.id)
    if identifier is not None and not isinstance(identifier, str | int):
        return Reason.ODD_ID.format(type=type(identifier).__name__)
    for name in columns.names:
        value = fields.get(name)
        if isinstance(value, str) and not _is_unicode(value):
            return Reason.NOT_UTF8.format(field=name)
    return None


def _as_reference(value: Any) -> str | None:
    return value if value is None or isinstance(value, str) else json.dumps(value, default=str)


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True

"""Validate records: each becomes a document, or a rejected record with the reason."""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from batch_assets.sources.reasons import Reason


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
    """A text to summarize, with its reference summary if there is one."""

    id: str
    document: str | None
    summary: str | None
    source: str


@dataclass(frozen=True)
class Rejected:
    """A record that can't be used, with the reason."""

    record: Record
    reason: str


def validate(
    records: Iterable[Record], is_forgotten: Callable[[str], bool] = lambda _: False
) -> Iterator[Document | Rejected]:
    """Turn every record of one batch into a document or a rejected record.

    A record without an id gets one that is derived from its content.

    Args:
        records: records of the batch.
        is_forgotten: whether the document with an id must not be kept. A record that can't be read is not kept if
            anything in it may be such an id.
    """
    seen: set[str] = set()
    copies: Counter[str] = Counter()
    for record in records:
        reason = record.problem or _problem(record.fields or {})
        if reason is not None:
            must_forget = any(map(is_forgotten, possible_ids(record)))
            yield _without_text(record) if must_forget else Rejected(record, reason)
            continue
        fields = record.fields or {}
        document, summary = fields.get("document"), fields.get("summary")
        identifier = fields.get("id")
        if identifier is None or identifier == "":
            key = hashlib.sha256(f"{document}\0{summary}".encode()).hexdigest()[:16]
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
        yield Document(identifier, document, summary, record.source)


def possible_ids(record: Record) -> set[str]:
    """The id of a record, or everything that may be its id if the record can't be read."""
    if record.fields is not None:
        identifier = record.fields.get("id")
        return set() if identifier is None else {str(identifier)}
    return _ids_in(record.raw)


def ids_in_raw(raw: str) -> set[str]:
    """The id in the raw text of a rejected record, or everything that may be its id if the text can't be parsed."""
    try:
        fields = json.loads(raw)
    except ValueError:
        return _ids_in(raw)
    if not isinstance(fields, dict):
        return _ids_in(raw)
    return set() if fields.get("id") is None else {str(fields["id"])}


def _ids_in(raw: str) -> set[str]:
    quoted = set()
    for text in re.findall(r'"(?:[^"\\]|\\.)*"', raw):
        with suppress(ValueError):  # quoted, but not valid JSON
            quoted.add(str(json.loads(text)))
    return quoted | {cell.strip(" \t\r\n\"'{}[]") for cell in re.split(r"[,;:\t\n]", raw)}


def _without_text(record: Record) -> Rejected:
    return Rejected(replace(record, fields=None, raw=""), Reason.FORGOTTEN)


def _problem(fields: Mapping[str, Any]) -> str | None:
    if "document" not in fields:
        return Reason.NO_DOCUMENT.value
    for name in ("document", "summary"):
        value = fields.get(name)
        if value is not None and not isinstance(value, str):
            return Reason.NOT_TEXT.format(field=name, type=type(value).__name__)
    identifier = fields.get("id")
    if identifier is not None and not isinstance(identifier, str | int):
        return Reason.ODD_ID.format(type=type(identifier).__name__)
    for name in ("id", "document", "summary"):
        value = fields.get(name)
        if isinstance(value, str) and not _is_unicode(value):
            return Reason.NOT_UTF8.format(field=name)
    return None


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True

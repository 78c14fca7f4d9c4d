"""From a record as it was found to a document, or to a rejected record with the reason."""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from batch_assets.sources.reasons import Reason


@dataclass(frozen=True)
class Record:
    """One record of a source.

    ``position`` counts from 0 within ``source``; ``fields`` is None where the record could not be
    read, and then ``problem`` says why.
    """

    source: str
    position: int
    fields: Mapping[str, Any] | None
    raw: str
    problem: str | None = None


@dataclass(frozen=True)
class Document:
    """One text to summarize, with the summary that a person wrote, if there is one."""

    id: str
    document: str | None
    summary: str | None
    source: str


@dataclass(frozen=True)
class Rejected:
    """A record that can't be used, and why."""

    record: Record
    reason: str


def validate(
    records: Iterable[Record], is_forgotten: Callable[[str], bool] = lambda _: False
) -> Iterator[Document | Rejected]:
    """Turn every record of one batch into a document or a rejected record.

    A record without an id gets one made of its content, the same every time.

    Args:
        records: of the batch.
        is_forgotten: whether nothing of the document with an id is to be kept.
    """
    seen: set[str] = set()
    copies: Counter[str] = Counter()
    for record in records:
        reason = record.problem or _problem(record.fields or {})
        if reason is not None:
            yield Rejected(record, reason)
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
            yield Rejected(replace(record, fields=None, raw=""), Reason.FORGOTTEN)
            continue
        if identifier in seen:
            yield Rejected(record, Reason.ID_AGAIN.format(id=identifier[:100]))
            continue
        seen.add(identifier)
        yield Document(identifier, document, summary, record.source)


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

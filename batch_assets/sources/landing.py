"""Bring one batch of a data set into m4_1_prod_data: every record lands or is set aside with a reason."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa

from batch_assets.errors import BatchAssetsError
from batch_assets.lake.forgotten import digest_of, forgotten
from batch_assets.lake.lake import Lake
from batch_assets.lake.staging import TableWriter
from batch_assets.lake.tables import PROD_DATA, PROD_DATA_REJECTED
from batch_assets.sources.dataset import Dataset
from batch_assets.sources.records import Document, Rejected, validate

_ROWS_AT_ONCE, _CHARACTERS_AT_ONCE = 1000, 32 * 1024 * 1024
_LONGEST_RAW = 10_000


@dataclass(frozen=True)
class LandedBatch:
    """A batch of m4_1_prod_data; ``changed`` is false where it was there already, and nothing was written.

    ``observed`` is true where the batch holds rows of another writer, and is only looked at.
    """

    version: int
    rows: int
    rejected: int
    changed: bool
    observed: bool = False


def land_batch(dataset: Dataset, lake: Lake, batch: str, run_id: str) -> LandedBatch:
    """Replace a batch by what its source holds now, unless it holds just that, or rows of another writer.

    Raises:
        BatchAssetsError: the source of the batch is gone, or can't be read.
    """
    rejected_table = lake.open(PROD_DATA_REJECTED)
    table = lake.open(PROD_DATA)
    commit = table.last_commit(batch)
    if commit is not None and not table.is_ours(batch):
        return LandedBatch(commit.version, table.rows(batch), 0, changed=False, observed=True)
    if batch not in dataset.batches():
        raise BatchAssetsError(
            f"the batch {batch} is not in the data set {dataset.name} (its batches: {_some(dataset.batches())}): "
            "set BATCH_ASSETS_DATASET to the one that it came from"
        )
    away = forgotten(lake)

    def items() -> Iterator[Document | Rejected]:
        return validate(dataset.records(batch), lambda document_id: bool(away) and digest_of(document_id) in away)

    if commit is not None and commit.metadata.get("digest") == _digest_of(items()):
        return LandedBatch(commit.version, table.rows(batch), rejected_table.rows(batch), changed=False)

    provenance = dataset.provenance(batch)
    if commit is not None and commit.metadata["provenance"]["source"] != provenance["source"]:
        raise BatchAssetsError(
            f"the batch {batch} was made from {commit.metadata['provenance']['source']}, and "
            f"{provenance['source']} would replace it: rename the file, or set BATCH_ASSETS_SCHEMA to another name"
        )
    now = datetime.now(UTC)
    documents = TableWriter(table.staging_area(batch))
    rejected = TableWriter(rejected_table.staging_area(batch))
    counts = {"documents": 0, "rejected": 0}
    digest = hashlib.sha256()
    for chunk in _chunks(items()):
        _add_to(digest, chunk)
        landed = [
            {"id": i.id, "document": i.document, "summary": i.summary, "source": i.source, "landed_at": now}
            for i in chunk
            if isinstance(i, Document)
        ]
        aside = [_rejected_row(item, now) for item in chunk if isinstance(item, Rejected)]
        documents.write(pa.Table.from_pylist(landed, schema=PROD_DATA.file_schema))
        rejected.write(pa.Table.from_pylist(aside, schema=PROD_DATA_REJECTED.file_schema))
        counts["documents"] += len(landed)
        counts["rejected"] += len(aside)
    metadata = {"run_id": run_id, "digest": digest.hexdigest(), "provenance": provenance, **counts}
    # The rejected records first: a run that dies in between finds the batch unlanded and does both again.
    staged_rejected = rejected.close()
    if staged_rejected or rejected_table.files(batch):
        rejected_table.replace(batch, staged_rejected, metadata)
    version = table.replace(batch, documents.close(), metadata)
    return LandedBatch(version, counts["documents"], counts["rejected"], changed=True)


def left_over_batches(dataset: Dataset, lake: Lake) -> list[str]:
    """Batches that were made from a part of the data set, and would not be made from it now.

    A limit, another length of a batch or a file that has grown changes which batches a data set is cut into.
    """
    if not lake.exists(PROD_DATA):
        return []
    table = lake.open(PROD_DATA)
    sources = {part.provenance["source"] for part in dataset.parts()}
    present = set(dataset.batches())
    left = []
    for batch in table.batches():
        commit = table.last_commit(batch)
        if batch not in present and commit and commit.metadata.get("provenance", {}).get("source") in sources:
            left.append(batch)
    return left


def _chunks(items: Iterator[Document | Rejected]) -> Iterator[list[Document | Rejected]]:
    chunk: list[Document | Rejected] = []
    characters = 0
    for item in items:
        chunk.append(item)
        characters += len(item.record.raw) if isinstance(item, Rejected) else _characters(item)
        if len(chunk) == _ROWS_AT_ONCE or characters > _CHARACTERS_AT_ONCE:
            yield chunk
            chunk, characters = [], 0
    yield chunk


def _characters(item: Document) -> int:
    return len(item.id) + len(item.document or "") + len(item.summary or "")


def _digest_of(items: Iterator[Document | Rejected]) -> str:
    digest = hashlib.sha256()
    _add_to(digest, items)
    return digest.hexdigest()


def _add_to(digest: "hashlib._Hash", items: Iterable[Document | Rejected]) -> None:
    for item in items:
        if isinstance(item, Document):
            parts: list[Any] = [item.id, item.document, item.summary, item.source]
        else:
            parts = [item.record.source, item.record.position, item.reason, item.record.raw]
        digest.update(json.dumps(parts).encode() + b"\n")


def _rejected_row(item: Rejected, now: datetime) -> Mapping[str, Any]:
    # Characters that are no valid Unicode would be refused by Parquet, too.
    raw = item.record.raw[:_LONGEST_RAW].encode(errors="replace").decode()
    reason = item.reason.encode(errors="replace").decode()
    return {
        "source": item.record.source,
        "position": item.record.position,
        "reason": reason,
        "raw": raw,
        "rejected_at": now,
    }


def _some(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")

"""Land a batch of a data set in m4_1_prod_data: every record becomes a row or is rejected with a reason."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa

from batch_assets.errors import BatchAssetsError
from batch_assets.lake.contracts import PipelineTables, Table
from batch_assets.lake.forgotten import digest_of, forgotten, known_as
from batch_assets.lake.lake import Lake
from batch_assets.lake.staging import TableWriter
from batch_assets.sources.dataset import Dataset
from batch_assets.sources.records import Document, Rejected, validate

_ROWS_AT_ONCE, _CHARACTERS_AT_ONCE = 1000, 32 * 1024 * 1024
_MAX_RAW_CHARACTERS = 10_000


@dataclass(frozen=True)
class LandedBatch:
    """A batch of documents. ``changed`` is false if it was up to date and nothing was written.

    ``observed`` is true if the batch has rows of another writer, which are never replaced.
    """

    version: int
    rows: int
    rejected: int
    changed: bool
    observed: bool = False


def land_batch(dataset: Dataset, lake: Lake, tables: PipelineTables, batch: str, run_id: str) -> LandedBatch:
    """Replace a batch with the current records of its source, unless it is up to date or has another writer's rows.

    Args:
        dataset: data set with the batch.
        lake: lake with the tables.
        tables: tables of the documents and the rejected records.
        batch: key of the batch.
        run_id: id of the Dagster run, for the commit.

    Raises:
        BatchAssetsError: the source of the batch is missing, can't be read, or is not the one that it came from.
    """
    rejected_table = lake.open(tables.rejected)
    table = lake.open(tables.documents)
    commit = table.last_commit(batch)
    if commit is not None and not table.is_written_by_us(batch):
        return LandedBatch(commit.version, table.rows(batch), 0, changed=False, observed=True)
    if batch not in dataset.batches():
        raise BatchAssetsError(
            f"the batch {batch} is not in the data set {dataset.name} (its batches: {_first(dataset.batches())}): "
            "use the data set that it came from"
        )
    forgotten_ids = forgotten(lake)
    excluded = hashlib.sha256("".join(sorted(forgotten_ids)).encode()).hexdigest() if forgotten_ids else ""
    provenance = dataset.provenance(batch)

    def items() -> Iterator[Document | Rejected]:
        return validate(
            dataset.records(batch),
            dataset.columns,
            lambda key: bool(forgotten_ids) and digest_of(known_as(tables.documents, key)) in forgotten_ids,
        )

    if commit is not None:
        recorded = commit.metadata
        # The same source without the same documents has the same records, and needn't be read.
        is_same = (recorded.get("provenance"), recorded.get("forgotten", "")) == (provenance, excluded)
        if is_same or recorded.get("digest") == _digest_of(items()):
            return LandedBatch(commit.version, table.rows(batch), rejected_table.rows(batch), changed=False)
        # Without a source, the last commit is another writer's, who deleted all rows of the batch.
        source = recorded.get("provenance", {}).get("source", provenance["source"])
        if source != provenance["source"]:
            raise BatchAssetsError(
                f"the batch {batch} was made from {source}, and {provenance['source']} would replace it: rename the "
                "file, or use another schema (BATCH_ASSETS_SCHEMA) or another pipeline"
            )
    now = datetime.now(UTC)
    documents = TableWriter(table.staging_area(batch))
    rejected = TableWriter(rejected_table.staging_area(batch))
    counts = {"documents": 0, "rejected": 0}
    digest = hashlib.sha256()
    for chunk in _chunks(items()):
        _update_digest(digest, chunk)
        landed = [
            {
                "id": item.id,
                "document": item.document,
                tables.documents.reference_column: item.reference,
                **dict(zip(dataset.columns.carry, item.carried, strict=True)),
                "source": item.source,
                "landed_at": now,
            }
            for item in chunk
            if isinstance(item, Document)
        ]
        rejected_rows = [_rejected_row(item, now) for item in chunk if isinstance(item, Rejected)]
        documents.write(pa.Table.from_pylist(landed, schema=tables.documents.file_schema))
        rejected.write(pa.Table.from_pylist(rejected_rows, schema=tables.rejected.file_schema))
        counts["documents"] += len(landed)
        counts["rejected"] += len(rejected_rows)
    metadata = {
        "run_id": run_id,
        "digest": digest.hexdigest(),
        "provenance": provenance,
        "forgotten": excluded,
        **counts,
    }
    # Rejected records first: if a run dies in between, the next one finds the batch unlanded and writes both again.
    staged_rejected = rejected.close()
    if staged_rejected or rejected_table.files(batch):
        rejected_table.replace(batch, staged_rejected, metadata)
    version = table.replace(batch, documents.close(), metadata)
    return LandedBatch(version, counts["documents"], counts["rejected"], changed=True)


def obsolete_batches(dataset: Dataset, lake: Lake, documents: Table) -> list[str]:
    """Landed batches of the data set that it would not be split into now.

    A limit, another batch size or a file that has grown changes how a data set is split.
    """
    if not lake.exists(documents):
        return []
    table = lake.open(documents)
    sources = {part.provenance["source"] for part in dataset.parts()}
    present = set(dataset.batches())
    left_over = []
    for batch in table.batches():
        commit = table.last_commit(batch)
        if batch not in present and commit and commit.metadata.get("provenance", {}).get("source") in sources:
            left_over.append(batch)
    return left_over


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
    return len(item.id) + len(item.document or "") + len(item.reference or "")


def _digest_of(items: Iterator[Document | Rejected]) -> str:
    digest = hashlib.sha256()
    _update_digest(digest, items)
    return digest.hexdigest()


def _update_digest(digest: "hashlib._Hash", items: Iterable[Document | Rejected]) -> None:
    for item in items:
        if isinstance(item, Document):
            parts: list[Any] = [item.id, item.document, item.reference, item.source, *item.carried]
        else:
            parts = [item.record.source, item.record.position, item.reason, item.record.raw]
        digest.update(json.dumps(parts).encode() + b"\n")


def _rejected_row(item: Rejected, now: datetime) -> Mapping[str, Any]:
    # Parquet refuses invalid Unicode too.
    raw = item.record.raw[:_MAX_RAW_CHARACTERS].encode(errors="replace").decode()
    reason = item.reason.encode(errors="replace").decode()
    return {
        "source": item.record.source,
        "position": item.record.position,
        "reason": reason,
        "raw": raw,
        "rejected_at": now,
    }


def _first(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")

"""Remove a document, and everything generated from it, everywhere this deployment can reach."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from batch_assets.errors import BatchAssetsError
from batch_assets.lake.contracts import PARTITION, PipelineTables
from batch_assets.lake.forgotten import digest_of, known_as, remember
from batch_assets.lake.lake import BatchSnapshot, Lake
from batch_assets.lake.staging import TableWriter
from batch_assets.mlflow_client import MlflowClient
from batch_assets.scoring.completions import CompletionStore
from batch_assets.settings import Settings, redacted
from batch_assets.sources.documents import source_name
from batch_assets.sources.reasons import Reason
from batch_assets.sources.records import ids_in_raw
from batch_assets.tasks.output_tables import tables_of

_EXAMPLES = ("best", "worst")
_REPORT = "reports/quality_report.html"


@dataclass(frozen=True)
class Found:
    """Where a document is: the batches that contain it by table, its sources, and the reports that show it."""

    batches: Mapping[str, list[str]]
    sources: list[str]
    reports: list[str] = field(default_factory=list)

    @property
    def all_batches(self) -> list[str]:
        """Every batch that contains the document in any table."""
        return sorted({batch for batches in self.batches.values() for batch in batches})


def find(lake: Lake, settings: Settings, document_id: str) -> Found:
    """Look for a document in all tables and reports of a pipeline.

    Raises:
        BatchAssetsError: the id is empty, or the pipeline reads a table in place.
    """
    _refuse_empty(document_id)
    if settings.is_in_place:
        raise BatchAssetsError(
            f"the pipeline {settings.pipeline} reads {source_name(settings)} in place: delete the row there, and the "
            "next run removes its answer; 'batch-assets upkeep' removes older versions"
        )
    batches = {}
    sources: set[str] = set()
    tables = tables_of(settings)
    for table in (tables.documents, tables.rejected, *tables.of_answers):
        if not lake.exists(table):
            continue
        snapshot = lake.open(table)
        columns = [name for name in ("id", "raw", "source") if name in table.column_names]
        found = []
        for batch in snapshot.batches():
            rows = [
                row for part in snapshot.read(batch, columns) for row in _rows_of(part, document_id, settings.id_column)
            ]
            if rows:
                found.append(batch)
                sources |= {row["source"] for row in rows if row.get("source")}
        if found:
            batches[table.name] = found
    pages = sorted(settings.report_file.parent.glob("*.html"))
    shown = [str(page) for page in pages if is_shown(document_id, page.read_text(encoding="utf-8"))]
    return Found(batches, sorted(sources), shown)


def forget(lake: Lake, settings: Settings, client: MlflowClient, document_id: str, run_id: str) -> Found:
    """Remove a document from all tables, completions and reports, and reject it if it lands again.

    Each batch is replaced in one commit. Its measures become stale, and the next run measures the remaining documents.
    Everything that is located through the tables is removed before their rows, so an interrupted call can be repeated.

    Args:
        lake: the tables.
        settings: the pipeline.
        client: MLflow client, to replace reports stored with the runs of versions.
        document_id: id of the document, in any batch.
        run_id: id to record in the commits.

    Returns:
        Where the document was.

    Raises:
        BatchAssetsError: the id is empty, or the pipeline reads a table in place.
        ConcurrentCommitError: another writer replaced a batch in the meantime; call again to continue.
    """
    _refuse_empty(document_id)
    tables = tables_of(settings)
    find(lake, settings, document_id)
    # First, so that the document can't land again in the meantime.
    remember(lake, known_as(tables.documents, document_id))
    found = find(lake, settings, document_id)
    CompletionStore.clear_statements(lake)
    for batch in found.all_batches:
        for table in tables.of_answers:
            CompletionStore.of(lake, table, batch, "").clear_batch()
        _remove_example(lake, tables, batch, document_id, run_id)
    for report in found.reports:
        (settings.report_file.parent / report).unlink(missing_ok=True)
    _replace_reports(client, settings, document_id)
    for table in tables.of_answers:
        for batch in found.batches.get(table.name, []):
            snapshot = lake.open(table)
            _replace(snapshot, batch, _without(snapshot, batch, document_id), {"run_id": run_id})
    landed = found.batches.get(tables.documents.name, [])
    for batch in found.batches.get(tables.rejected.name, []):
        if batch not in landed:
            rejected = lake.open(tables.rejected)
            left = _rejected_without(rejected, batch, document_id, settings.id_column, 0)
            _replace(rejected, batch, left, {"run_id": run_id})
    for batch in landed:
        _remove_from_documents(lake, settings, batch, document_id, run_id)
    return found


def out_of_reach(lake: Lake, settings: Settings, found: Found) -> list[str]:
    """Places that may still contain the document, and what to do about them."""
    places = [
        f"older versions of the tables in {lake.uri}, until 'batch-assets upkeep' removes files older than "
        f"{settings.vacuum_hours} hours (BATCH_ASSETS_VACUUM_HOURS)",
        "tables created by SQL statements, copies and backups",
    ]
    places += [f"its source {source}" for source in found.sources]
    places += [
        f"copies of landed files in {redacted(settings.landing_folder)}/.taken",
        "samples in Dagster's event log and in MLflow, unless BATCH_ASSETS_SAMPLES was always 0: wipe the "
        f"materializations of {', '.join(found.all_batches) or 'its batches'} in the UI",
    ]
    return places


def _refuse_empty(document_id: str) -> None:
    if not document_id:
        raise BatchAssetsError("the id of the document is empty: give the id to forget")


def is_shown(document_id: str, report: str) -> bool:
    """Whether a report shows a document, whose id is then a table cell."""
    from markupsafe import escape

    return f"<td>{escape(document_id)}</td>" in report


def _remove_from_documents(lake: Lake, settings: Settings, batch: str, document_id: str, run_id: str) -> None:
    """Remove a document from the documents; batches that this package wrote record it as rejected."""
    tables = tables_of(settings)
    documents, rejected = lake.open(tables.documents), lake.open(tables.rejected)
    left = _without(documents, batch, document_id)
    if not documents.is_written_by_us(batch):
        # Unlike our other commits, this one does not record the table, so the batch still belongs to the other writer.
        staged = _staged(documents, batch, left)
        documents.delta.replace({PARTITION: batch}, staged, {"run_id": run_id})
        return
    removed = sum(len(_rows_of(rows, document_id, settings.id_column)) for rows in documents.read(batch, ["id"]))
    commit = documents.last_commit(batch)
    # Not the digest of a source, so that the next run checks the rest of the batch again.
    recorded = {"run_id": run_id, "digest": f"{Reason.FORGOTTEN.value} {digest_of(document_id)}"}
    metadata = {**({} if commit is None else commit.metadata), **recorded}
    now_rejected = _rejected_without(rejected, batch, document_id, settings.id_column, removed)
    _replace(rejected, batch, now_rejected, metadata)
    _replace(documents, batch, left, metadata)


def _rejected_without(
    rejected: BatchSnapshot, batch: str, document_id: str, id_column: str, removed: int
) -> Iterator[pa.RecordBatch]:
    """Rejected records of a batch without the document's content, and one more for each removed document."""
    schema = rejected.table.arrow_schema
    for part in rejected.read(batch):
        rows = part.to_pylist()
        for row in rows:
            if document_id in ids_in_raw(row["raw"] or "", id_column):
                row |= {"raw": None, "reason": Reason.FORGOTTEN.value}
        yield pa.RecordBatch.from_pylist(rows, schema=schema)
    yield pa.RecordBatch.from_pylist([{PARTITION: batch, "reason": Reason.FORGOTTEN.value}] * removed, schema=schema)


def _remove_example(lake: Lake, tables: PipelineTables, batch: str, document_id: str, run_id: str) -> None:
    """Remove a document from the examples of a batch."""
    if not lake.exists(tables.quality):
        return
    quality = lake.open(tables.quality)
    rows = [row for part in quality.read(batch) for row in part.to_pylist()]
    for row in rows:
        for name in _EXAMPLES:
            row[name] = json.dumps([one for one in json.loads(row[name] or "[]") if one["id"] != document_id])
    if rows:
        left = pa.RecordBatch.from_pylist(rows, schema=tables.quality.arrow_schema)
        _replace(quality, batch, iter([left]), {"run_id": run_id})


def _replace_reports(client: MlflowClient, settings: Settings, document_id: str) -> None:
    """Replace reports that are stored with versions and show a document; the next run writes a new one.

    Those of a shared model show the documents of its owner.
    """
    if settings.shared_model is not None:
        return
    import mlflow

    from batch_assets.models.registry import RegisteredModel

    for version in RegisteredModel.of(client, settings).versions():
        folder = _REPORT.rpartition("/")[0]
        if not version.run_id or _REPORT not in {file.path for file in client.list_artifacts(version.run_id, folder)}:
            continue
        uri = f"{client.get_run(version.run_id).info.artifact_uri}/{_REPORT}"
        if is_shown(document_id, mlflow.artifacts.load_text(uri)):
            client.log_text(version.run_id, "<p>Removed: this report showed a forgotten document.</p>", _REPORT)


def _replace(snapshot: BatchSnapshot, batch: str, rows: Iterator[pa.RecordBatch], updates: Mapping[str, Any]) -> None:
    """Replace a batch, with the metadata of its last commit and some updates."""
    commit = snapshot.last_commit(batch)
    metadata = {**({} if commit is None else commit.metadata), **updates}
    snapshot.replace(batch, _staged(snapshot, batch, rows), metadata)


def _staged(snapshot: BatchSnapshot, batch: str, rows: Iterator[pa.RecordBatch]) -> Any:
    writer = TableWriter(snapshot.staging_area(batch))
    for part in rows:
        writer.write(part)
    return writer.close()


def _rows_of(rows: pa.RecordBatch, document_id: str, id_column: str) -> list[dict[str, Any]]:
    """The rows of a document."""
    if "id" in rows.schema.names:
        return list(rows.filter(pc.equal(rows.column("id"), document_id)).to_pylist())
    return [row for row in rows.to_pylist() if document_id in ids_in_raw(row["raw"] or "", id_column)]


def _without(snapshot: BatchSnapshot, batch: str, document_id: str) -> Iterator[pa.RecordBatch]:
    for rows in snapshot.read(batch):
        yield rows.filter(pc.not_equal(rows.column("id"), document_id))

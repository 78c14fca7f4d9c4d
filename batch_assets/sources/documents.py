"""The documents of a pipeline: in a table of its own, or in a table of another writer that is read in place."""

from batch_assets.errors import BatchAssetsError
from batch_assets.lake.contracts import PARTITION, PipelineTables, Table
from batch_assets.lake.features import UnreadableTableError
from batch_assets.lake.lake import BatchSnapshot, Lake, types_of_copies
from batch_assets.lake.missing_table import MissingTable
from batch_assets.lake.snapshot import Snapshot, is_table
from batch_assets.names import check_name
from batch_assets.settings import COMMIT, Settings, redacted
from batch_assets.sources.batch_keys import BatchColumn
from batch_assets.sources.batching import Batching, ColumnBatching, CommitBatching
from batch_assets.sources.column_mapping import ColumnMapping
from batch_assets.sources.document_view import DocumentView

# The rows that were in a table before a pipeline saw it form batches of this many, unless source.batch_rows says other.
_FIRST_ROWS = 10_000


def source_location(settings: Settings) -> str | None:
    """Folder or URI of the table that a pipeline reads in place, None if its documents are in a table of its own."""
    if settings.upstream_table is not None:
        return settings.upstream_table
    if settings.source_table is None:
        return settings.source_url
    given = settings.source_table.split(".")
    names = [settings.catalog, settings.schema_name][: 3 - len(given)] + given
    return "/".join([settings.lake_uri.rstrip("/"), *map(check_name, names)])


def source_name(settings: Settings) -> str:
    """What messages call the table that a pipeline reads in place."""
    if settings.source_pipeline is not None:
        return f"the output of the pipeline {settings.source_pipeline}"
    return f"the table {settings.source_table or redacted(str(settings.source_url))}"


def open_documents(lake: Lake, settings: Settings, tables: PipelineTables, version: int | None = None) -> BatchSnapshot:
    """Open the documents of a pipeline at a version, by default the newest; a table of its own is created if missing.

    Raises:
        BatchAssetsError: the table that is read in place is missing, lacks a column, or can't be split into batches.
    """
    location = source_location(settings)
    if location is None:
        return lake.open(tables.documents, version)
    if settings.source_pipeline is not None and not is_table(location, lake.storage_options):
        return _nothing(tables.documents, location)
    began = lake.open(tables.scored).source_began if settings.batch_by == COMMIT else None
    return _view(lake, settings, tables, location, version, began)


def find_documents(lake: Lake, settings: Settings, tables: PipelineTables) -> BatchSnapshot:
    """Open the documents of a pipeline for reading only: no table is created, and a missing one reads as empty.

    Raises:
        BatchAssetsError: as ``open_documents``.
    """
    location = source_location(settings)
    if location is None:
        return lake.find(tables.documents)
    if settings.source_pipeline is not None and not is_table(location, lake.storage_options):
        return _nothing(tables.documents, location)
    began = lake.find(tables.scored).source_began if settings.batch_by == COMMIT else None
    return _view(lake, settings, tables, location, None, began)


def newest_documents(
    lake: Lake, settings: Settings, tables: PipelineTables, earlier: BatchSnapshot | None
) -> BatchSnapshot:
    """Open the documents of a pipeline; if nothing was committed since an earlier call, return its result.

    Raises:
        BatchAssetsError: as ``open_documents``.
    """
    view = None if earlier is None else earlier.delta
    if earlier is not None and isinstance(view, DocumentView) and view.is_newest():
        # A rebase changes the batches without a commit to the source.
        is_rebased = settings.batch_by == COMMIT and lake.open(tables.scored).source_began != view.began
        return open_documents(lake, settings, tables) if is_rebased else earlier
    return open_documents(lake, settings, tables)


def lost_rows(settings: Settings, documents: BatchSnapshot, output: BatchSnapshot) -> str | None:
    """Why rows of a table that is read commit by commit are in no batch, None if all are."""
    view = documents.delta
    if not isinstance(view, DocumentView):
        return None
    rows = view.rows_without_batch({batch: output.rows(batch) for batch in output.batches()})
    if not rows:
        return None
    what = f"{rows} rows are in no batch" if rows > 0 else f"{-rows} scored rows were removed"
    return (
        f"{what}, because the log of {source_name(settings)} no longer has their commits: score its current rows "
        f"with 'batch-assets rebase {settings.pipeline}'"
    )


def _view(
    lake: Lake,
    settings: Settings,
    tables: PipelineTables,
    location: str,
    version: int | None,
    began: tuple[str, int] | None,
) -> BatchSnapshot:
    called = source_name(settings)
    try:
        stored = Snapshot.open(location, lake.storage_options, version)
    except UnreadableTableError:
        raise
    except BatchAssetsError as error:
        raise BatchAssetsError(f"{called} can't be read: {error}") from error
    contract = tables.documents.with_types_of(types_of_copies(tables.documents, stored.schema))
    output = lake.find(tables.scored)
    if output.exists:
        # Copied columns keep the types that they had when the pipeline was set up.
        contract = contract.with_types_of(output.table.arrow_schema)
    view = DocumentView(
        stored, contract, ColumnMapping.of(settings), _batching(stored, settings, called, began), called
    )
    return BatchSnapshot(contract, view)


def _batching(stored: Snapshot, settings: Settings, called: str, began: tuple[str, int] | None) -> Batching:
    if settings.source_pipeline is not None:
        return ColumnBatching(stored, BatchColumn(PARTITION, is_verbatim=True), called, settings.max_batches)
    assert settings.batch_by is not None
    if settings.batch_by != COMMIT:
        column = BatchColumn(settings.batch_by, settings.every)
        return ColumnBatching(stored, column, called, settings.max_batches)
    began = began or (stored.table_id, stored.version)
    rows = settings.batch_rows or _FIRST_ROWS
    return CommitBatching(stored, called, settings.pipeline, began, rows, settings.max_batches)


def _nothing(contract: Table, location: str) -> BatchSnapshot:
    """The documents of a pipeline whose upstream has written nothing yet."""
    return BatchSnapshot(contract, MissingTable(location, contract.arrow_schema, [PARTITION]))

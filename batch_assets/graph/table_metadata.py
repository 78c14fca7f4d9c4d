"""Shared by the assets that write tables: table metadata, samples, and the versions that a run is pinned to."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import dagster as dg
import pyarrow.compute as pc

from batch_assets.errors import BatchAssetsError
from batch_assets.graph.pipeline_names import tag_of
from batch_assets.lake.contracts import Table
from batch_assets.lake.counts import COUNTED, Counts, counts_by_batch
from batch_assets.lake.lake import FAILURES, BatchSnapshot, Lake
from batch_assets.quality.markdown import markdown_table
from batch_assets.settings import Settings
from batch_assets.sources.documents import open_documents
from batch_assets.staleness import waiting_rows
from batch_assets.tasks.output_tables import tables_of

_DOCUMENT_VERSION_TAG = "batch_assets/prod_data_version"
_LONGEST_SAMPLE = 400


def column_schema(table: Table) -> Mapping[str, Any]:
    """Definition metadata with the columns of the asset's table."""
    columns = [
        dg.TableColumn(
            column.name,
            column.type,
            description=column.description,
            constraints=dg.TableColumnConstraints(nullable=column.nullable),
        )
        for column in table.columns
    ]
    return {"dagster/column_schema": dg.TableSchema(columns=columns)}


def column_lineage(deps: Mapping[str, Sequence[tuple[dg.AssetKey, str]]]) -> dg.TableColumnLineage:
    """Column lineage from a mapping of each column to its source assets and their columns."""
    return dg.TableColumnLineage(
        {column: [dg.TableColumnDep(key, name) for key, name in sources] for column, sources in deps.items()}
    )


def answer_lineage(documents: dg.AssetKey, copied: Sequence[str], table: Table) -> dg.TableColumnLineage:
    """Column lineage of a table of answers, which are written for the document; ``copied`` columns stay as they are."""
    return column_lineage(
        {
            **{name: [(documents, name)] for name in copied},
            **{name: [(documents, "document")] for name in table.answer_columns},
        }
    )


def table_metadata(
    lake: Lake, snapshot: BatchSnapshot, batch: str, version: int, lineage: dg.TableColumnLineage
) -> dict[str, Any]:
    """Metadata of a materialized batch: location, version, rows and columns of its table.

    Args:
        lake: lake that has the table.
        snapshot: the table after the commit.
        batch: key of the batch.
        version: table version that last changed the batch.
        lineage: column lineage of the table.
    """
    return {
        "dagster/table_name": lake.full_name(snapshot.table),
        "dagster/uri": snapshot.uri,
        "dagster/storage_kind": "deltalake",
        "dagster/partition_row_count": snapshot.rows(batch),
        "dagster/row_count": snapshot.rows(),
        **column_schema(snapshot.table),
        "dagster/column_lineage": lineage,
        "delta_version": version,
    }


def totals(snapshot: BatchSnapshot, batch: str) -> dict[str, int]:
    """Count answers, errors, documents without text, and tokens in all rows of a batch.

    The counts come from the statistics in the table's log, the sums from the batch's last commit. Rows are read only
    where another writer or an earlier release recorded neither.
    """
    summed = snapshot.table.summed_columns
    counts, commit = counts_by_batch(snapshot).get(batch), snapshot.last_commit(batch)
    sums = {} if commit is None else commit.metadata.get("sums", {})
    if counts is not None and sums.keys() >= set(summed):
        return {**asdict(counts), **{name: sums[name] for name in summed}}
    counts, read = Counts(), dict.fromkeys(summed, 0)
    for rows in snapshot.read(batch, [*COUNTED, *summed]):
        counts += Counts.of(rows.num_rows, {name: rows.column(name).null_count for name in COUNTED})
        for name in summed:
            read[name] += pc.sum(rows.column(name)).as_py() or 0
    return {**asdict(counts), **read}


def failed_rows(snapshot: BatchSnapshot, batch: str, errors: int, attempts: int) -> dict[str, int]:
    """The failed rows of a batch: all, by the class of the error, and those that are requested again; empty without.

    Args:
        snapshot: the answers.
        batch: key of the batch.
        errors: number of failed rows.
        attempts: how often the request of a row may end in a service error.
    """
    if not errors:
        return {}
    commit = snapshot.last_commit(batch)
    by_class = Counter[str]()
    for error_class, _, rows in [] if commit is None else commit.metadata.get(FAILURES, []):
        by_class[error_class] += rows
    return {"all": errors, **by_class, "requested_again": waiting_rows(snapshot, batch, attempts)}


def sample(snapshot: BatchSnapshot, batch: str, columns: list[str], count: int) -> dict[str, dg.MarkdownMetadataValue]:
    """Sample metadata with the first ``count`` rows of a batch; empty if ``count`` is 0."""
    if not count:
        return {}
    return {"sample": markdown_sample(sample_rows(snapshot, batch, columns, count), columns)}


def markdown_sample(rows: Sequence[Mapping[str, Any]], columns: list[str]) -> dg.MarkdownMetadataValue:
    """Rows as a Markdown table; Markdown in the values is escaped."""
    return dg.MetadataValue.md(markdown_table(columns, [[_cut(row.get(column)) for column in columns] for row in rows]))


def _cut(value: Any) -> Any:
    """Shorten a long text to its first words; other values stay unchanged."""
    if not isinstance(value, str) or len(value) <= _LONGEST_SAMPLE:
        return value
    # If the text has no spaces, there is no incomplete last word to remove.
    return (value[:_LONGEST_SAMPLE].rsplit(None, 1) or [""])[0] + " …"


def sample_rows(snapshot: BatchSnapshot, batch: str, columns: list[str], count: int) -> list[Mapping[str, Any]]:
    """The first rows of a batch."""
    rows: list[Mapping[str, Any]] = []
    for part in snapshot.read(batch, columns) if count else []:
        rows += part.slice(0, count - len(rows)).to_pylist()
        if len(rows) >= count:
            break
    return rows


def pin_number(context: dg.AssetExecutionContext, tag: str, resolve: Callable[[], int]) -> int:
    """Resolve a number once per run: it is stored as a run tag and read from there afterwards.

    The tag contains the run id, because a re-execution inherits the tags of the original run.
    """
    run_id = context.run.run_id
    run = context.instance.get_run_by_id(run_id)
    if run is None:
        raise BatchAssetsError(f"run {run_id} is not in Dagster's storage; launch it again")
    number, _, owner = run.tags.get(tag, "").partition(" ")
    if owner != run_id:
        context.instance.add_run_tags(run_id, {tag: f"{resolve()} {run_id}"})
        return pin_number(context, tag, resolve)
    return int(number)


def open_pinned_documents(context: dg.AssetExecutionContext, lake: Lake, settings: Settings) -> BatchSnapshot:
    """Open a pipeline's documents at the version that this run is pinned to."""
    tables = tables_of(settings)
    tag = tag_of(settings, _DOCUMENT_VERSION_TAG)
    version = pin_number(context, tag, lambda: open_documents(lake, settings, tables).version)
    return open_documents(lake, settings, tables, version)

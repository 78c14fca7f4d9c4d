"""What the assets that write tables have in common: metadata of a table, samples, versions that a run works on."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import dagster as dg
import pyarrow.compute as pc

from batch_assets.errors import BatchAssetsError
from batch_assets.lake.counts import COUNTED, Counts
from batch_assets.lake.lake import BatchSnapshot, Lake
from batch_assets.lake.tables import PROD_DATA, Table
from batch_assets.quality.markdown import markdown_table

_DOCUMENT_VERSION_TAG = "batch_assets/prod_data_version"
_LONGEST_SAMPLE = 400


def column_schema(table: Table) -> Mapping[str, Any]:
    """Metadata of an asset's definition: the columns of its table."""
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
    """Which columns of other assets a column is made from: by column, the asset and its column."""
    return dg.TableColumnLineage(
        {column: [dg.TableColumnDep(key, name) for key, name in made_from] for column, made_from in deps.items()}
    )


def table_metadata(
    lake: Lake, snapshot: BatchSnapshot, batch: str, version: int, lineage: dg.TableColumnLineage
) -> dict[str, Any]:
    """Metadata of a materialized batch: where the table is, its version, rows and columns."""
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


def totals(snapshot: BatchSnapshot, batch: str, tokens: Sequence[str]) -> dict[str, int]:
    """Summaries, errors, documents without text, and tokens of all rows of a batch, whichever run made them.

    Args:
        snapshot: a table of summaries.
        batch: key of the batch.
        tokens: columns that count tokens.
    """
    counts, sums = Counts(), dict.fromkeys(tokens, 0)
    for rows in snapshot.read(batch, [*COUNTED, *tokens]):
        counts += Counts.of(rows.num_rows, {name: rows.column(name).null_count for name in COUNTED})
        for name in tokens:
            sums[name] += pc.sum(rows.column(name)).as_py() or 0
    return {**asdict(counts), **sums}


def sample(snapshot: BatchSnapshot, batch: str, columns: list[str], count: int) -> dict[str, dg.MarkdownMetadataValue]:
    """Metadata with the first rows of a batch; none where the settings ask for no text."""
    if not count:
        return {}
    return {"sample": markdown_sample(sample_rows(snapshot, batch, columns, count), columns)}


def markdown_sample(rows: Sequence[Mapping[str, Any]], columns: list[str]) -> dg.MarkdownMetadataValue:
    """A few rows as a Markdown table in which any text shows as text."""
    return dg.MetadataValue.md(markdown_table(columns, [[_cut(row.get(column)) for column in columns] for row in rows]))


def _cut(value: Any) -> Any:
    """A value as it is, or the first words of a long text."""
    if not isinstance(value, str) or len(value) <= _LONGEST_SAMPLE:
        return value
    # Of a text without spaces, there is no last word to be left out.
    return (value[:_LONGEST_SAMPLE].rsplit(None, 1) or [""])[0] + " …"


def sample_rows(snapshot: BatchSnapshot, batch: str, columns: list[str], count: int) -> list[Mapping[str, Any]]:
    """The first rows of a batch."""
    rows: list[Mapping[str, Any]] = []
    for part in snapshot.read(batch, columns) if count else []:
        rows += part.slice(0, count - len(rows)).to_pylist()
        if len(rows) >= count:
            break
    return rows


def pinned(context: dg.AssetExecutionContext, tag: str, resolve: Callable[[], int]) -> int:
    """A number that is resolved once in a run, kept as a tag of the run, and read from there ever after.

    The tag names the run, because a run that is executed again inherits the tags of the first one.
    """
    run_id = context.run.run_id
    run = context.instance.get_run_by_id(run_id)
    if run is None:
        raise BatchAssetsError(f"the run {run_id} is not in Dagster's storage")
    number, _, owner = run.tags.get(tag, "").partition(" ")
    if owner != run_id:
        context.instance.add_run_tags(run_id, {tag: f"{resolve()} {run_id}"})
        return pinned(context, tag, resolve)
    return int(number)


def pinned_documents(context: dg.AssetExecutionContext, lake: Lake) -> BatchSnapshot:
    """``m4_1_prod_data`` at the version that this run works on."""
    version = pinned(context, _DOCUMENT_VERSION_TAG, lambda: lake.open(PROD_DATA).version)
    return lake.open(PROD_DATA, version)

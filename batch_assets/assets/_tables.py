"""What the assets that write tables have in common: metadata of a table, samples, and work batch by batch."""

import html
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import dagster as dg
from dagster._core.definitions.data_version import (
    CODE_VERSION_TAG,
    DATA_VERSION_IS_USER_PROVIDED_TAG,
    DATA_VERSION_TAG,
    DEFAULT_DATA_VERSION,
    NULL_EVENT_POINTER,
    get_input_data_version_tag,
    get_input_event_pointer_tag,
)
from dagster._core.definitions.source_asset import SYSTEM_METADATA_KEY_SOURCE_ASSET_OBSERVATION

from batch_assets.errors import BatchAssetsError
from batch_assets.lake.lake import BatchSnapshot, Lake
from batch_assets.lake.tables import PROD_DATA, Table

_DOCUMENT_VERSION_TAG = "batch_assets/prod_data_version"
_LONGEST_SAMPLE = 400
# Of a batch that has been materialized more often since its version was pinned, the newest record is taken.
_RECORDS_LOOKED_AT = 10
# In one pass: one after the other, the # of a reference would be replaced again.
_AS_TEXT = str.maketrans({character: f"&#{ord(character)};" for character in "\\`*_{}[]()#+!|~"})


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


def sample(snapshot: BatchSnapshot, batch: str, columns: list[str], count: int) -> dict[str, dg.MarkdownMetadataValue]:
    """Metadata with the first rows of a batch; none where the settings ask for no text."""
    if not count:
        return {}
    return {"sample": markdown_sample(sample_rows(snapshot, batch, columns, count), columns)}


def markdown_sample(rows: Sequence[Mapping[str, Any]], columns: list[str]) -> dg.MarkdownMetadataValue:
    """A few rows as a Markdown table in which any text shows as text."""
    lines = ["| " + " | ".join(columns) + " |", "|" + " --- |" * len(columns)]
    lines += ["| " + " | ".join(_cell(row.get(column)) for column in columns) + " |" for row in rows]
    return dg.MetadataValue.md("\n".join(lines))


def _cell(value: Any) -> str:
    text = "" if value is None else str(value)
    if len(text) > _LONGEST_SAMPLE:
        text = text[:_LONGEST_SAMPLE] + " …"
    return html.escape(" ".join(text.split()), quote=False).translate(_AS_TEXT)


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


@dataclass(frozen=True)
class DoneBatch:
    """A batch as it is now.

    ``version`` is the version of the table that last changed it, ``inputs`` the data version of each asset that it was
    made from.
    """

    version: int
    metadata: Mapping[str, Any]
    inputs: Mapping[dg.AssetKey, int] = field(default_factory=dict)


def each_batch(context: dg.AssetExecutionContext, work: Callable[[str], DoneBatch]) -> dg.MaterializeResult[None]:
    """Do the work for every batch of the run; a batch that fails does not stop the others.

    Each batch is recorded as materialized when it is done, whatever becomes of the run.

    Args:
        context: of the asset.
        work: takes the key of a batch and commits it.

    Raises:
        dagster.Failure: batches failed.
    """
    failed: dict[str, Exception] = {}
    for batch in context.partition_keys:
        try:
            done = work(batch)
        except Exception as error:  # named in the Failure below
            failed[batch] = error
            context.log.error(f"batch {batch} failed: {_reason(error)}")
            continue
        tags = _version_tags(context, batch, done)
        context.log_event(
            dg.AssetMaterialization(context.asset_key, partition=batch, metadata=done.metadata, tags=tags)
        )
    if failed:
        reasons = "; ".join(f"{batch}: {_reason(error)}" for batch, error in failed.items())
        raise dg.Failure(
            f"{len(failed)} of {len(context.partition_keys)} batches failed ({reasons})", allow_retries=True
        ) from next(iter(failed.values()))
    # Dagster would record all batches of a run once more, with one data version for all of them. This is its own way
    # around that, see _log_materialization_or_observation_events_for_asset in its execute_step.py.
    return dg.MaterializeResult(metadata={SYSTEM_METADATA_KEY_SOURCE_ASSET_OBSERVATION: True})


def _version_tags(context: dg.AssetExecutionContext, batch: str, done: DoneBatch) -> dict[str, str]:
    """What Dagster compares to see that a batch is stale: the versions of the batch, its code and its inputs."""
    definition = context.assets_def
    tags = {
        CODE_VERSION_TAG: definition.code_versions_by_key[context.asset_key] or context.run.run_id,
        DATA_VERSION_TAG: str(done.version),
        DATA_VERSION_IS_USER_PROVIDED_TAG: "true",
    }
    for key in definition.asset_deps[context.asset_key]:
        version = DEFAULT_DATA_VERSION.value if key not in done.inputs else str(done.inputs[key])
        tags[get_input_data_version_tag(key)] = version
        tags[get_input_event_pointer_tag(key)] = _event_pointer(context.instance, key, batch, version)
    return tags


def _event_pointer(instance: dg.DagsterInstance, key: dg.AssetKey, batch: str, version: str) -> str:
    """The newest record of a batch's materialization at a data version: later ones with another make it stale."""
    records = instance.fetch_materializations(
        dg.AssetRecordsFilter(asset_key=key, asset_partitions=[batch]), limit=_RECORDS_LOOKED_AT
    ).records
    for record in records:
        event = record.asset_materialization
        if event is not None and (event.tags or {}).get(DATA_VERSION_TAG) == version:
            return str(record.storage_id)
    return str(records[0].storage_id) if records else NULL_EVENT_POINTER


def _reason(error: Exception) -> str:
    """The line that says what went wrong; of an error from a worker, the last line of the worker's traceback."""
    lines = [line for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    raised = [line for line in lines if re.match(r"[A-Za-z_][\w.]*(Error|Exception)\b.*: ", line)]
    return (raised[-1] if raised else lines[0])[:500]

"""Which batches to score again, and how long that may take."""

from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from statistics import median

import dagster as dg

from batch_assets.errors import BatchAssetsError
from batch_assets.graph.pipeline_names import AssetKeys
from batch_assets.lake.counts import counts_by_batch
from batch_assets.lake.lake import Lake
from batch_assets.settings import Settings
from batch_assets.sources.documents import find_documents
from batch_assets.tasks.output_tables import tables_of

_RATE = "documents_per_second"
# Materializations to take the rate from.
_RECENT = 20
# Longer durations are shown in minutes.
_SHOWN_AS_SECONDS = 120


def failed_rows(lake: Lake, settings: Settings, batches: Sequence[str]) -> dict[str, int]:
    """The batches that have failed rows, with their number in all tables of answers."""
    found = Counter[str]()
    for table in tables_of(settings).of_answers:
        for batch, counts in counts_by_batch(lake.find(table)).items():
            if batch in batches and counts is not None and counts.errors:
                found[batch] += counts.errors
    return {batch: found[batch] for batch in batches if found[batch]}


def select_batches(lake: Lake, settings: Settings, named: Sequence[str] | None, since: datetime | None) -> list[str]:
    """The batches with these names, those scored since a time (UTC), or all.

    Raises:
        BatchAssetsError: a named batch is not in the table of documents.
    """
    tables = tables_of(settings)
    documents = find_documents(lake, settings, tables)
    there = documents.batches()
    if named is not None:
        missing = [batch for batch in named if batch not in there]
        if missing:
            raise BatchAssetsError(f"the pipeline {settings.pipeline} has no batch {', '.join(map(repr, missing))}")
        return list(dict.fromkeys(named))
    if since is None:
        return there
    scored = lake.find(tables.scored)
    first = since.replace(tzinfo=UTC).timestamp()
    return [batch for batch in there if (commit := scored.last_commit(batch)) and commit.seconds >= first]


def describe_cost(instance: dg.DagsterInstance, lake: Lake, settings: Settings, batches: Sequence[str]) -> str:
    """Describe how many documents there are, and how long they may take at the rate of recent runs."""
    if settings.retry_errors:
        rows, what = sum(failed_rows(lake, settings, batches).values()), "failed rows"
    else:
        documents = find_documents(lake, settings, tables_of(settings))
        rows, what = sum(documents.rows(batch) for batch in batches), "documents"
    records = instance.fetch_materializations(AssetKeys(settings.pipeline).scored, limit=_RECENT).records
    rates = []
    for record in records:
        value = record.asset_materialization.metadata.get(_RATE) if record.asset_materialization else None
        if value is not None and isinstance(value.value, int | float) and value.value > 0:
            rates.append(value.value)
    if not rates:
        time = "the duration is not known yet"
    else:
        seconds = rows / median(rates)
        length = f"{seconds:.0f} seconds" if seconds < _SHOWN_AS_SECONDS else f"{seconds / 60:.0f} minutes"
        time = f"about {length} at {median(rates):.1f} documents a second"
    return f"{rows} {what} in {len(batches)} batch{'' if len(batches) == 1 else 'es'}; {time}"

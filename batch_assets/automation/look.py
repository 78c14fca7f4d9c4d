"""What sensors and schedules see: the tables as they are, the champion, and which batches are stale."""

import dagster as dg

from batch_assets.automation.runs import busy_batches, known_batches
from batch_assets.automation.stale import input_version, stale_batches
from batch_assets.lake.lake import BatchSnapshot, Lake
from batch_assets.lake.tables import Table
from batch_assets.resources.registry import ModelRegistry
from batch_assets.settings import Settings

# What ticks of this process have seen of each table, so that the next one reads only what is new.
_seen: dict[str, BatchSnapshot] = {}


def look(lake: Lake, table: Table) -> BatchSnapshot:
    """The table as it is now; of its log, only what is new since the last look is read."""
    now = lake.open(table)
    earlier = _seen.get(now.uri)
    if earlier is None or not now.take_over(earlier):
        now.know_all()
    _seen[now.uri] = now
    return now


def stale_now(
    instance: dg.DagsterInstance,
    settings: Settings,
    documents: BatchSnapshot,
    output: BatchSnapshot,
    champion: int | None,
) -> dict[str, object]:
    """Stale batches, and what makes them so."""
    known = known_batches(instance)
    rescored = {"all": set(known), "latest": set(known[-1:]), "none": set[str]()}[settings.rescore]
    stale = stale_batches(documents, output, busy_batches(instance), rescored, champion)
    tables = [documents.table_id, output.table_id]
    reasons: dict[str, object] = {}
    for batch in stale:
        last = output.last_commit(batch)
        wanted = [input_version(documents, batch), champion if batch in rescored else None]
        reasons[batch] = [*tables, *wanted, last.version if last else None]
    return reasons


def champion_number(registry: ModelRegistry, settings: Settings) -> int | None:
    """The version that is the champion, None if there is none."""
    from batch_assets.models.registry import CHAMPION, with_alias

    version = with_alias(registry.client, settings.registered_model, CHAMPION)
    return None if version is None else version.number

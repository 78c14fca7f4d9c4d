"""Schedules: nightly scoring of stale batches and weekly table maintenance."""

import dagster as dg

from batch_assets.automation.jobs import score_batches, upkeep
from batch_assets.automation.run_requests import run_requests
from batch_assets.graph.observation import champion_number, current_snapshot, stale_batches_now
from batch_assets.graph.partitions import busy_batches
from batch_assets.lake.contracts import AI_QUERY_INFERENCE, BATCH_INFERENCE, PROD_DATA, SUMMARY_QUALITY
from batch_assets.lake.lake import Lake
from batch_assets.resources.registry import ModelRegistry
from batch_assets.settings import Settings
from batch_assets.staleness import unfinished_batches

_TABLES = (PROD_DATA, BATCH_INFERENCE, AI_QUERY_INFERENCE, SUMMARY_QUALITY)


def schedules(settings: Settings) -> list[dg.ScheduleDefinition]:
    """Create the schedules of a deployment."""
    status = dg.DefaultScheduleStatus.RUNNING if settings.sensors else dg.DefaultScheduleStatus.STOPPED

    @dg.schedule(
        name="nightly_scoring",
        job=score_batches,
        cron_schedule="0 2 * * *",
        default_status=status,
        description="Score all stale batches, and finish batches that a failed run left unfinished.",
    )
    def nightly_scoring(
        context: dg.ScheduleEvaluationContext,
        lake: dg.ResourceParam[Lake],
        registry: dg.ResourceParam[ModelRegistry],
    ) -> list[dg.RunRequest] | dg.SkipReason:
        champion = champion_number(registry, settings)
        if champion is None:
            return dg.SkipReason("there is no champion yet: materialize champion_model")
        documents, scored, answered, quality = (current_snapshot(lake, table) for table in _TABLES)
        stale = stale_batches_now(context.instance, settings, documents, scored, champion)
        unfinished = unfinished_batches(documents, scored, answered, quality, busy_batches(context.instance))
        reasons = {**dict.fromkeys(unfinished), **stale}
        nightly = {batch: [reason, str(context.scheduled_execution_time)] for batch, reason in reasons.items()}
        return run_requests(context.instance, score_batches.name, nightly, settings.batches_per_run)

    weekly_upkeep = dg.ScheduleDefinition(
        name="weekly_upkeep", job=upkeep, cron_schedule="0 4 * * 0", default_status=status
    )
    return [nightly_scoring, weekly_upkeep]

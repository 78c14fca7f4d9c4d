"""What happens by the clock: scoring at night of whatever is stale, upkeep at the weekend."""

import dagster as dg

from batch_assets.automation.jobs import score_batches, upkeep
from batch_assets.automation.look import champion_number, look, stale_now
from batch_assets.automation.runs import busy_batches, run_requests
from batch_assets.automation.stale import unfinished_batches
from batch_assets.lake.lake import Lake
from batch_assets.lake.tables import AI_QUERY_INFERENCE, BATCH_INFERENCE, PROD_DATA, SUMMARY_QUALITY
from batch_assets.resources.registry import ModelRegistry
from batch_assets.settings import Settings

_TABLES = (PROD_DATA, BATCH_INFERENCE, AI_QUERY_INFERENCE, SUMMARY_QUALITY)


def schedules(settings: Settings) -> list[dg.ScheduleDefinition]:
    """The schedules of a deployment."""
    status = dg.DefaultScheduleStatus.RUNNING if settings.sensors else dg.DefaultScheduleStatus.STOPPED

    @dg.schedule(
        name="nightly_scoring",
        job=score_batches,
        cron_schedule="0 2 * * *",
        default_status=status,
        description="Asks again for whatever is stale, and for what a run that failed has left undone.",
    )
    def nightly_scoring(
        context: dg.ScheduleEvaluationContext,
        lake: dg.ResourceParam[Lake],
        registry: dg.ResourceParam[ModelRegistry],
    ) -> list[dg.RunRequest] | dg.SkipReason:
        champion = champion_number(registry, settings)
        if champion is None:
            return dg.SkipReason("there is no champion yet: materialize champion_model")
        documents, scored, answered, quality = (look(lake, table) for table in _TABLES)
        stale = stale_now(context.instance, settings, documents, scored, champion)
        unfinished = unfinished_batches(documents, scored, answered, quality, busy_batches(context.instance))
        reasons = {**dict.fromkeys(unfinished), **stale}
        night = {batch: [reason, str(context.scheduled_execution_time)] for batch, reason in reasons.items()}
        return run_requests(context.instance, score_batches.name, night, settings.batches_per_run)

    weekly_upkeep = dg.ScheduleDefinition(
        name="weekly_upkeep", job=upkeep, cron_schedule="0 4 * * 0", default_status=status
    )
    return [nightly_scoring, weekly_upkeep]

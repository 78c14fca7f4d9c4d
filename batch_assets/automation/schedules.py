"""What happens by the clock: scoring at night of whatever is stale, upkeep at the weekend."""

import dagster as dg

from batch_assets.automation.jobs import score_batches, upkeep
from batch_assets.automation.look import champion_number, look, stale_now
from batch_assets.automation.runs import run_requests
from batch_assets.lake.lake import Lake
from batch_assets.lake.tables import BATCH_INFERENCE, PROD_DATA
from batch_assets.resources.registry import ModelRegistry
from batch_assets.settings import Settings


def schedules(settings: Settings) -> list[dg.ScheduleDefinition]:
    """The schedules of a deployment."""
    status = dg.DefaultScheduleStatus.RUNNING if settings.sensors else dg.DefaultScheduleStatus.STOPPED

    @dg.schedule(
        name="nightly_scoring",
        job=score_batches,
        cron_schedule="0 2 * * *",
        default_status=status,
        description="Asks again for whatever is stale, also for what has failed.",
    )
    def nightly_scoring(
        context: dg.ScheduleEvaluationContext,
        lake: dg.ResourceParam[Lake],
        registry: dg.ResourceParam[ModelRegistry],
    ) -> list[dg.RunRequest] | dg.SkipReason:
        champion = champion_number(registry, settings)
        if champion is None:
            return dg.SkipReason("there is no champion yet: materialize champion_model")
        stale = stale_now(context.instance, settings, look(lake, PROD_DATA), look(lake, BATCH_INFERENCE), champion)
        night = {batch: [reason, str(context.scheduled_execution_time)] for batch, reason in stale.items()}
        return run_requests(context.instance, score_batches.name, night, settings.batches_per_run)

    weekly_upkeep = dg.ScheduleDefinition(
        name="weekly_upkeep", job=upkeep, cron_schedule="0 4 * * 0", default_status=status
    )
    return [nightly_scoring, weekly_upkeep]

"""Schedules: nightly scoring of stale batches and weekly table maintenance."""

from collections.abc import Mapping

import dagster as dg

from batch_assets.automation.jobs import ExecutableJob
from batch_assets.automation.run_requests import run_requests
from batch_assets.graph.observation import champion_number, current_documents, current_snapshot, stale_batches_now
from batch_assets.graph.partitions import busy_batches
from batch_assets.graph.pipeline_names import SCORE_BATCHES, prefixed
from batch_assets.lake.lake import Lake
from batch_assets.resources.registry import ModelRegistry
from batch_assets.settings import Settings
from batch_assets.staleness import unfinished_batches
from batch_assets.tasks.output_tables import tables_of


def pipeline_schedules(settings: Settings, jobs: Mapping[str, ExecutableJob]) -> list[dg.ScheduleDefinition]:
    """Create the schedules of a pipeline; ``jobs`` has its jobs by name."""
    if settings.schedule is None:
        return []
    tables, pipeline = tables_of(settings), settings.pipeline

    @dg.schedule(
        name=prefixed(pipeline, "nightly_scoring"),
        job=jobs[prefixed(pipeline, SCORE_BATCHES)],
        cron_schedule=settings.schedule,
        default_status=_status(settings),
        description="Score all stale batches, and finish batches that a failed run left unfinished.",
    )
    def nightly_scoring(
        context: dg.ScheduleEvaluationContext,
        lake: dg.ResourceParam[Lake],
        registry: dg.ResourceParam[ModelRegistry],
    ) -> list[dg.RunRequest] | dg.SkipReason:
        champion = champion_number(registry, settings)
        if champion is None:
            return dg.SkipReason(f"no champion yet: materialize {settings.champion_asset}")
        documents = current_documents(lake, settings)
        scored, quality = current_snapshot(lake, tables.scored), current_snapshot(lake, tables.quality)
        answered = None if tables.answered is None else current_snapshot(lake, tables.answered)
        stale = stale_batches_now(context.instance, settings, documents, scored, answered, champion)
        busy = busy_batches(context.instance, pipeline)
        unfinished = unfinished_batches(documents, scored, answered, quality, busy)
        reasons = {**dict.fromkeys(unfinished), **stale}
        nightly = {batch: [reason, str(context.scheduled_execution_time)] for batch, reason in reasons.items()}
        return run_requests(context.instance, settings, SCORE_BATCHES, nightly)

    return [nightly_scoring]


def upkeep_schedule(settings: Settings, upkeep: dg.JobDefinition) -> dg.ScheduleDefinition:
    """Create the schedule of the job that maintains the tables of all pipelines."""
    return dg.ScheduleDefinition(
        name="weekly_upkeep", job=upkeep, cron_schedule="0 4 * * 0", default_status=_status(settings)
    )


def _status(settings: Settings) -> dg.DefaultScheduleStatus:
    return dg.DefaultScheduleStatus.RUNNING if settings.sensors else dg.DefaultScheduleStatus.STOPPED

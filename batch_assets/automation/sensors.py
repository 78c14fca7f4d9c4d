"""What happens by itself: new data is scored, a new champion is noticed, a run that failed for good is told of."""

import hashlib
import json
import shlex
import subprocess
from typing import Any

import dagster as dg

from batch_assets.automation.jobs import land_batches, materialize_all, score_batches
from batch_assets.automation.runs import busy_batches, known_batches, register_batches, run_requests
from batch_assets.automation.stale import input_version, stale_batches
from batch_assets.lake.lake import BatchSnapshot, Lake
from batch_assets.lake.tables import BATCH_INFERENCE, PROD_DATA, Table
from batch_assets.resources.registry import ModelRegistry
from batch_assets.settings import Settings
from batch_assets.sources.configured import landed_dataset, landing_folder

_SECONDS = 15
_DATA_VERSION_TAG = "dagster/data_version"

# What ticks of this process have seen of each table, so that the next one reads only what is new.
_seen: dict[str, BatchSnapshot] = {}


def _look(lake: Lake, table: Table) -> BatchSnapshot:
    """The table as it is now; of its log, only what is new since the last look is read."""
    now = lake.open(table)
    earlier = _seen.get(now.uri)
    if earlier is None or now.since(earlier) is None:
        now.know_all()
    _seen[now.uri] = now
    return now


def _status(settings: Settings) -> dg.DefaultSensorStatus:
    return dg.DefaultSensorStatus.RUNNING if settings.sensors else dg.DefaultSensorStatus.STOPPED


def _stale(
    context: Any, settings: Settings, documents: BatchSnapshot, output: BatchSnapshot, champion: int | None
) -> dict[str, object]:
    """Stale batches, and what makes them so."""
    known = known_batches(context.instance)
    rescored = {"all": set(known), "latest": set(known[-1:]), "none": set[str]()}[settings.rescore]
    stale = stale_batches(documents, output, busy_batches(context.instance), rescored, champion)
    return {
        batch: [input_version(documents, batch), champion if batch in rescored else None] for batch in stale
    }  # fmt: skip


def sensors(settings: Settings) -> list[dg.SensorDefinition]:
    """The sensors of a deployment."""

    @dg.sensor(
        name="landing_sensor",
        job=land_batches,
        minimum_interval_seconds=_SECONDS,
        default_status=_status(settings),
        description="Takes complete files out of the landing folder and asks for their batches.",
    )
    def landing_sensor(context: dg.SensorEvaluationContext) -> dg.SensorResult:
        looked: dict[str, Any] = json.loads(context.cursor or '{"files": {}, "asked": {}}')
        # What was taken by a tick that died before it asked for the batch is asked for by the next one.
        _, files = landing_folder(settings).take(looked["files"], settings.settle_seconds)
        dataset = landed_dataset(settings)
        wanted = {part.name: part.provenance["files"] for part in dataset.parts()}
        digests = {name: _digest(about) for name, about in wanted.items()}
        new = [name for name, digest in digests.items() if looked["asked"].get(name) != digest]
        batches = dataset.batches_of(new)
        register_batches(context.instance, batches)
        reasons = {batch: digests[dataset.part_of(batch)] for batch in batches}
        requests = run_requests(context.instance, land_batches.name, reasons, settings.batches_per_run)
        return dg.SensorResult(run_requests=requests, cursor=json.dumps({"files": files, "asked": digests}))

    @dg.sensor(
        name="prod_data_sensor",
        job=score_batches,
        minimum_interval_seconds=_SECONDS,
        default_status=_status(settings),
        description="Sees every commit to m4_1_prod_data, whoever made it, and asks for what is stale.",
    )
    def prod_data_sensor(
        context: dg.SensorEvaluationContext,
        lake: dg.ResourceParam[Lake],
        registry: dg.ResourceParam[ModelRegistry],
    ) -> dg.SensorResult:
        documents = _look(lake, PROD_DATA)
        output = _look(lake, BATCH_INFERENCE)
        register_batches(context.instance, documents.batches())
        reported: dict[str, int] = json.loads(context.cursor or "{}")
        _report_foreign(context, documents, reported)
        cursor = json.dumps(reported)
        champion = _champion(registry, settings)
        if champion is None:
            return dg.SensorResult(skip_reason="there is no champion yet: materialize champion_model", cursor=cursor)
        stale = _stale(context, settings, documents, output, champion)
        requests = run_requests(context.instance, score_batches.name, stale, settings.batches_per_run)
        return dg.SensorResult(run_requests=requests, cursor=cursor)

    @dg.sensor(
        name="champion_sensor",
        minimum_interval_seconds=_SECONDS,
        default_status=_status(settings),
        description="Sees that the alias champion has moved, whoever moved it, and reports it as a materialization.",
    )
    def champion_sensor(
        context: dg.SensorEvaluationContext, registry: dg.ResourceParam[ModelRegistry]
    ) -> dg.SkipReason:
        number = _champion(registry, settings)
        if number is None:
            return dg.SkipReason("there is no champion yet")
        if context.cursor == str(number):
            return dg.SkipReason(f"version {number} is still the champion")
        if not _is_reported(context, "champion_model", None, str(number)):
            page = registry.version_page(settings.registered_model, number)
            metadata = {"version": number, "version_page": dg.MetadataValue.url(page)}
            _report(context, dg.AssetKey("champion_model"), None, str(number), metadata)
        context.update_cursor(str(number))
        return dg.SkipReason(f"version {number} is the champion")

    @dg.run_failure_sensor(
        name="alert_sensor",
        minimum_interval_seconds=_SECONDS,
        default_status=_status(settings),
        monitor_all_code_locations=False,
        description="Tells the command or address of BATCH_ASSETS_ALERT of a run that failed for good.",
    )
    def alert_sensor(context: dg.RunFailureSensorContext) -> None:
        run = context.dagster_run
        if settings.alert is None or run.tags.get("dagster/will_retry") == "true":
            return
        _tell(settings.alert, {"run_id": run.run_id, "job": run.job_name, "message": context.failure_event.message})

    return [landing_sensor, prod_data_sensor, champion_sensor, alert_sensor]


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
        champion = _champion(registry, settings)
        if champion is None:
            return dg.SkipReason("there is no champion yet: materialize champion_model")
        stale = _stale(context, settings, _look(lake, PROD_DATA), _look(lake, BATCH_INFERENCE), champion)
        night = {batch: [reason, str(context.scheduled_execution_time)] for batch, reason in stale.items()}
        return run_requests(context.instance, score_batches.name, night, settings.batches_per_run)

    weekly_upkeep = dg.ScheduleDefinition(
        name="weekly_upkeep", job=upkeep, cron_schedule="0 4 * * 0", default_status=status
    )
    return [nightly_scoring, weekly_upkeep]


@dg.op(description="Put small files together, write checkpoints, remove data files that nothing needs any more.")
def keep_tables_up(
    context: dg.OpExecutionContext, settings: dg.ResourceParam[Settings], lake: dg.ResourceParam[Lake]
) -> None:
    """Upkeep of all tables."""
    from batch_assets.lake.tables import TABLES
    from batch_assets.lake.upkeep import keep_up

    for table in TABLES:
        if lake.exists(table):
            keep_up(lake.open(table).delta, settings.vacuum_hours, context.log.info)


@dg.job(executor_def=dg.in_process_executor, description="Upkeep of all tables.")
def upkeep() -> None:
    """Upkeep of all tables."""
    keep_tables_up()


JOBS = (materialize_all, land_batches, score_batches, upkeep)


def _digest(about: Any) -> str:
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:16]


def _champion(registry: ModelRegistry, settings: Settings) -> int | None:
    from batch_assets.models.registry import CHAMPION, with_alias

    version = with_alias(registry.client, settings.registered_model, CHAMPION)
    return None if version is None else version.number


def _report_foreign(context: Any, documents: BatchSnapshot, reported: dict[str, int]) -> None:
    """Report a materialization of each batch that another writer has changed, once for each change."""
    for batch in documents.batches():
        commit = documents.last_commit(batch)
        if commit is None or documents.is_ours(batch) or reported.get(batch) == commit.version:
            continue
        metadata: dict[str, Any] = {"rows": documents.rows(batch), "author": commit.author}
        _report(context, dg.AssetKey("prod_data"), batch, str(commit.version), metadata)
        reported[batch] = commit.version


def _report(context: Any, key: dg.AssetKey, batch: str | None, version: str, metadata: dict[str, Any]) -> None:
    event = dg.AssetMaterialization(key, partition=batch, metadata=metadata, tags={_DATA_VERSION_TAG: version})
    context.instance.report_runless_asset_event(event)


def _is_reported(context: Any, asset: str, batch: str | None, version: str) -> bool:
    last = context.instance.get_latest_materialization_event(dg.AssetKey(asset))
    return bool(last and (last.asset_materialization.tags or {}).get(_DATA_VERSION_TAG) == version)


def _tell(alert: str, what: dict[str, Any]) -> None:
    """Post to an address, or run a command with the facts as JSON on its standard input."""
    import httpx

    if alert.startswith(("http://", "https://")):
        httpx.post(alert, json=what, timeout=30).raise_for_status()
    else:
        subprocess.run(shlex.split(alert), input=json.dumps(what), text=True, check=True, timeout=60)

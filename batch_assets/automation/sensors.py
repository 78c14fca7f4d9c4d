"""What happens by itself: new data is scored, a new champion is noticed, a run that failed for good is told of."""

import hashlib
import json
import time
from collections.abc import Mapping
from dataclasses import astuple, replace
from typing import Any

import dagster as dg

from batch_assets.automation.alert import tell
from batch_assets.automation.jobs import land_batches, score_batches, take_files
from batch_assets.automation.look import champion_number, look, stale_now
from batch_assets.automation.runs import busy_batches, register_batches, run_requests
from batch_assets.lake.lake import BatchSnapshot, Lake
from batch_assets.lake.tables import BATCH_INFERENCE, PROD_DATA
from batch_assets.resources.registry import ModelRegistry
from batch_assets.settings import Settings
from batch_assets.sources.configured import landing_folder
from batch_assets.sources.landing_folder import Group, Seen

# A tick should be over in two seconds. Reading a file of this size takes half of one; a larger one is left to a run.
_SECONDS_OF_TAKING = 1.0
_SECONDS_OF_REPORTING = 0.5
_LARGE_BYTES, _MANY_FILES = 16 * 1024 * 1024, 100
_DATA_VERSION_TAG = "dagster/data_version"


def _status(settings: Settings) -> dg.DefaultSensorStatus:
    return dg.DefaultSensorStatus.RUNNING if settings.sensors else dg.DefaultSensorStatus.STOPPED


def sensors(settings: Settings) -> list[dg.SensorDefinition]:
    """The sensors of a deployment."""

    @dg.sensor(
        name="landing_sensor",
        jobs=[land_batches, take_files],
        minimum_interval_seconds=settings.sensor_seconds,
        default_status=_status(settings),
        description="Takes complete files out of the landing folder and asks for their batches.",
    )
    def landing_sensor(context: dg.SensorEvaluationContext) -> dg.SensorResult:
        looked: dict[str, Any] = json.loads(context.cursor or '{"files": {}, "asked": {}}')
        folder = landing_folder(settings)
        for name, digest in folder.news().items():
            if looked["asked"].get(name) == digest:
                folder.forget(name)
        seen = folder.look({key: Seen(*values) for key, values in looked["files"].items()})
        requests = []
        deadline = time.monotonic() + _SECONDS_OF_TAKING
        for group in folder.complete(seen, settings.settle_seconds):
            if group.size > _LARGE_BYTES or len(group.files) > _MANY_FILES:
                folder.claim(group)
                requests.append(_take_in_a_run(group, seen))
            elif time.monotonic() < deadline:
                try:
                    folder.take(group)
                except PermissionError as error:
                    # The next look tries again; other files don't wait for it.
                    context.log.error(f"{', '.join(group.files)} can't be taken: {error}")
                    continue
                seen |= {key: replace(seen[key], is_taken=True) for key in group.files}
        # What was taken by a tick that died before it asked for the batch is asked for by the next one.
        asked = folder.news()
        reasons = {batch: digest for name, digest in asked.items() for batch in folder.keys_of(name)}
        register_batches(context.instance, list(reasons))
        requests += run_requests(context.instance, land_batches.name, reasons, settings.batches_per_run)
        files = {key: astuple(file) for key, file in seen.items()}
        return dg.SensorResult(run_requests=requests, cursor=json.dumps({"files": files, "asked": asked}))

    @dg.sensor(
        name="prod_data_sensor",
        job=score_batches,
        minimum_interval_seconds=settings.sensor_seconds,
        default_status=_status(settings),
        description="Sees every commit to m4_1_prod_data, whoever made it, and asks for what is stale.",
    )
    def prod_data_sensor(
        context: dg.SensorEvaluationContext,
        lake: dg.ResourceParam[Lake],
        registry: dg.ResourceParam[ModelRegistry],
    ) -> dg.SensorResult:
        documents = look(lake, PROD_DATA)
        output = look(lake, BATCH_INFERENCE)
        register_batches(context.instance, documents.batches())
        looked: dict[str, Any] = json.loads(context.cursor or '{"reported": {}, "asked": {}}')
        _report_foreign(context, documents, looked["reported"])
        champion = champion_number(registry, settings)
        if champion is None:
            reason = "there is no champion yet: materialize champion_model"
            return dg.SensorResult(skip_reason=reason, cursor=json.dumps(looked))
        busy = busy_batches(context.instance)
        stale = stale_now(context.instance, settings, documents, output, champion)
        # What was asked for and has failed for good is not asked for again because its neighbour is.
        fresh = {batch: reason for batch, reason in stale.items() if looked["asked"].get(batch) != reason}
        requests = run_requests(context.instance, score_batches.name, fresh, settings.batches_per_run)
        # What has been done since is forgotten: the cursor is written by every tick, and should not grow with the lake.
        waiting = {*stale, *busy}
        looked["asked"] = {batch: reason for batch, reason in looked["asked"].items() if batch in waiting} | fresh
        return dg.SensorResult(run_requests=requests, cursor=json.dumps(looked))

    @dg.sensor(
        name="champion_sensor",
        minimum_interval_seconds=settings.sensor_seconds,
        default_status=_status(settings),
        description="Sees that the alias champion has moved, whoever moved it, and reports it as a materialization.",
    )
    def champion_sensor(
        context: dg.SensorEvaluationContext, registry: dg.ResourceParam[ModelRegistry]
    ) -> dg.SkipReason:
        number = champion_number(registry, settings)
        if number is None:
            return dg.SkipReason("there is no champion yet")
        if context.cursor == str(number):
            return dg.SkipReason(f"version {number} is still the champion")
        if _reported_version(context, "champion_model") != str(number):
            metadata = {"version": number, **registry.version_link(settings.registered_model, number)}
            _report(context, dg.AssetKey("champion_model"), None, str(number), metadata)
        context.update_cursor(str(number))
        return dg.SkipReason(f"version {number} is the champion")

    @dg.run_failure_sensor(
        name="alert_sensor",
        minimum_interval_seconds=settings.sensor_seconds,
        default_status=_status(settings),
        monitor_all_code_locations=False,
        description="Tells the command or address of BATCH_ASSETS_ALERT of a run that failed for good.",
    )
    def alert_sensor(context: dg.RunFailureSensorContext) -> None:
        run = context.dagster_run
        if settings.alert is None or run.tags.get("dagster/will_retry") == "true":
            return
        # The event of the run names steps only; theirs name the batches, and why.
        errors = [event.step_failure_data.error for event in context.get_step_failure_events()]
        message = "\n".join([str(context.failure_event.message), *(error.message.strip() for error in errors if error)])
        tell(settings.alert, {"run_id": run.run_id, "job": run.job_name, "message": message})

    return [landing_sensor, prod_data_sensor, champion_sensor, alert_sensor]


def _take_in_a_run(group: Group, seen: Mapping[str, Seen]) -> dg.RunRequest:
    about = [group.batch, [[key, seen[key].size, seen[key].modified] for key in group.files]]
    config = {"ops": {"take": {"config": {"batch": group.batch, "files": list(group.files)}}}}
    key = hashlib.sha256(json.dumps(about).encode()).hexdigest()[:32]
    return dg.RunRequest(run_key=key, job_name=take_files.name, run_config=config)


def _report_foreign(context: Any, documents: BatchSnapshot, reported: dict[str, int]) -> None:
    """Report a materialization of each batch that another writer has changed, once for each change.

    Where there are more than a tick has time for, the next ones go on.
    """
    deadline = time.monotonic() + _SECONDS_OF_REPORTING
    for batch in documents.batches():
        if time.monotonic() > deadline:
            return
        commit = documents.last_commit(batch)
        if commit is None or documents.is_ours(batch) or reported.get(batch) == commit.version:
            continue
        metadata: dict[str, Any] = {"rows": documents.rows(batch), "author": commit.author}
        _report(context, dg.AssetKey("prod_data"), batch, str(commit.version), metadata)
        reported[batch] = commit.version


def _report(context: Any, key: dg.AssetKey, batch: str | None, version: str, metadata: dict[str, Any]) -> None:
    event = dg.AssetMaterialization(key, partition=batch, metadata=metadata, tags={_DATA_VERSION_TAG: version})
    context.instance.report_runless_asset_event(event)


def _reported_version(context: Any, asset: str) -> str | None:
    last = context.instance.get_latest_materialization_event(dg.AssetKey(asset))
    return None if last is None else (last.asset_materialization.tags or {}).get(_DATA_VERSION_TAG)

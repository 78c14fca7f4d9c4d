"""Sensors: take new files, score new data, report a new champion, and send alerts for failed runs."""

import hashlib
import json
import time
from collections.abc import Mapping
from dataclasses import astuple, replace
from typing import Any

import dagster as dg

from batch_assets.automation.alerts import send_alert
from batch_assets.automation.jobs import ExecutableJob
from batch_assets.automation.run_requests import run_requests
from batch_assets.graph.batch_checks import result
from batch_assets.graph.observation import champion_number, current_documents, current_snapshot, stale_batches_now
from batch_assets.graph.partitions import busy_batches, register_batches
from batch_assets.graph.pipeline_names import LAND_BATCHES, SCORE_BATCHES, TAKE_FILES, TAKE_OP, AssetKeys, prefixed
from batch_assets.graph.quality_checks import FRESHNESS, waiting_batches
from batch_assets.lake.lake import BatchSnapshot, Lake
from batch_assets.resources.registry import ModelRegistry
from batch_assets.settings import Settings
from batch_assets.sources.configured import landing_folder
from batch_assets.sources.documents import lost_rows, source_name
from batch_assets.sources.landing_folder import Group, ScannedFile
from batch_assets.tasks.output_tables import tables_of

# A tick should take at most two seconds. Reading a file of _LARGE_BYTES takes half a second; a run takes larger files.
_TAKE_SECONDS = 1.0
_REPORT_SECONDS = 0.5
_LARGE_BYTES, _MANY_FILES = 16 * 1024 * 1024, 100
_DATA_VERSION_TAG = "dagster/data_version"


def _status(settings: Settings) -> dg.DefaultSensorStatus:
    return dg.DefaultSensorStatus.RUNNING if settings.sensors else dg.DefaultSensorStatus.STOPPED


def pipeline_sensors(settings: Settings, jobs: Mapping[str, ExecutableJob]) -> list[dg.SensorDefinition]:
    """Create the sensors of a pipeline; ``jobs`` has its jobs by name."""
    keys, tables, pipeline = AssetKeys(settings.pipeline), tables_of(settings), settings.pipeline
    score_batches = jobs[prefixed(pipeline, SCORE_BATCHES)]
    watched = source_name(settings) if settings.is_in_place else tables.documents.name

    @dg.sensor(
        name=prefixed(pipeline, "landing_sensor"),
        jobs=[jobs[name] for job in (LAND_BATCHES, TAKE_FILES) if (name := prefixed(pipeline, job)) in jobs],
        minimum_interval_seconds=settings.sensor_seconds,
        default_status=_status(settings),
        description="Take complete files from the landing folder and request runs that land their batches.",
    )
    def landing_sensor(context: dg.SensorEvaluationContext) -> dg.SensorResult:
        state: dict[str, Any] = json.loads(context.cursor or '{"files": {}, "asked": {}}')
        folder = landing_folder(settings)
        for name, digest in folder.pending().items():
            if state["asked"].get(name) == digest:
                folder.mark_requested(name)
        seen = folder.scan({key: ScannedFile(*values) for key, values in state["files"].items()})
        requests = []
        deadline = time.monotonic() + _TAKE_SECONDS
        for group in folder.complete(seen, settings.settle_seconds):
            if group.size > _LARGE_BYTES or len(group.files) > _MANY_FILES:
                folder.claim(group)
                requests.append(_take_request(settings, group, seen))
            elif time.monotonic() < deadline:
                try:
                    folder.take(group)
                except PermissionError as error:
                    # The next tick tries again; other files need not wait.
                    context.log.error(f"cannot take {', '.join(group.files)}, trying again at the next tick: {error}")
                    continue
                seen |= {key: replace(seen[key], is_taken=True) for key in group.files}
        # Includes batches of an earlier tick that took files but died before it requested the run.
        pending = folder.pending()
        reasons = {batch: digest for name, digest in pending.items() for batch in folder.keys_of(name)}
        register_batches(context.instance, pipeline, list(reasons))
        requests += run_requests(context.instance, settings, LAND_BATCHES, reasons)
        files = {key: astuple(file) for key, file in seen.items()}
        return dg.SensorResult(run_requests=requests, cursor=json.dumps({"files": files, "asked": pending}))

    @dg.sensor(
        name=prefixed(pipeline, "prod_data_sensor"),
        job=score_batches,
        minimum_interval_seconds=settings.sensor_seconds,
        default_status=_status(settings),
        description=f"Watch {watched} for commits by any writer, and request scoring runs for stale batches.",
    )
    def prod_data_sensor(
        context: dg.SensorEvaluationContext,
        lake: dg.ResourceParam[Lake],
        registry: dg.ResourceParam[ModelRegistry],
    ) -> dg.SensorResult | dg.SkipReason:
        documents = current_documents(lake, settings)
        if not documents.exists:
            return dg.SkipReason(f"{source_name(settings)} does not exist yet")
        output = current_snapshot(lake, tables.scored)
        register_batches(context.instance, pipeline, documents.batches())
        state: dict[str, Any] = json.loads(context.cursor or '{"reported": {}, "asked": {}}')
        _report_other_writers(context, keys.documents, documents, state["reported"])
        lost = lost_rows(settings, documents, output)
        if lost is not None and lost != state.get("lost"):
            context.log.warning(lost)
        state["lost"] = lost
        evaluations = _freshness(settings, documents, output, state)
        champion = champion_number(registry, settings)
        if champion is None:
            reason = f"no champion yet: materialize {settings.champion_asset}"
            return dg.SensorResult(skip_reason=reason, cursor=json.dumps(state), asset_events=evaluations)
        busy = busy_batches(context.instance, pipeline)
        answered = None if tables.answered is None else current_snapshot(lake, tables.answered)
        stale = stale_batches_now(context.instance, settings, documents, output, answered, champion)
        # A batch whose run failed is not requested again just because a neighbouring batch is new.
        fresh = {batch: reason for batch, reason in stale.items() if state["asked"].get(batch) != reason}
        requests = run_requests(context.instance, settings, SCORE_BATCHES, fresh)
        # Finished batches are removed: every tick writes the cursor, so it must not grow with the lake.
        waiting = {*stale, *busy}
        state["asked"] = {batch: reason for batch, reason in state["asked"].items() if batch in waiting} | fresh
        return dg.SensorResult(run_requests=requests, cursor=json.dumps(state), asset_events=evaluations)

    @dg.sensor(
        name=prefixed(pipeline, "champion_sensor"),
        minimum_interval_seconds=settings.sensor_seconds,
        default_status=_status(settings),
        description="Report a materialization of champion_model when the alias champion moves, even by hand.",
    )
    def champion_sensor(
        context: dg.SensorEvaluationContext, registry: dg.ResourceParam[ModelRegistry]
    ) -> dg.SkipReason:
        number = champion_number(registry, settings)
        if number is None:
            return dg.SkipReason("there is no champion yet")
        if context.cursor == str(number):
            return dg.SkipReason(f"version {number} is still the champion")
        if _reported_version(context, keys.champion) != str(number):
            metadata = {"version": number, **registry.version_link(settings.registered_model, number)}
            _report(context, keys.champion, None, str(number), metadata)
        context.update_cursor(str(number))
        return dg.SkipReason(f"version {number} is the champion")

    return [
        *([landing_sensor] if settings.is_landing else []),
        prod_data_sensor,
        # The owner of a shared model reports its champion.
        *([champion_sensor] if settings.shared_model is None else []),
    ]


def alert_sensor(settings: Settings) -> dg.SensorDefinition:
    """Create the sensor that sends alerts about failed runs of any pipeline."""

    @dg.run_failure_sensor(
        name="alert_sensor",
        minimum_interval_seconds=settings.sensor_seconds,
        default_status=_status(settings),
        monitor_all_code_locations=False,
        description="Notify the URL or command in BATCH_ASSETS_ALERT when a run has failed and will not be retried.",
    )
    def alert(context: dg.RunFailureSensorContext) -> None:
        run = context.dagster_run
        if settings.alert is None or run.tags.get("dagster/will_retry") == "true":
            return
        # The run's event names only the failed steps; the step events name the batches and reasons.
        errors = [event.step_failure_data.error for event in context.get_step_failure_events()]
        message = "\n".join([str(context.failure_event.message), *(error.message.strip() for error in errors if error)])
        send_alert(settings.alert, {"run_id": run.run_id, "job": run.job_name, "message": message})

    return alert


def _take_request(settings: Settings, group: Group, seen: Mapping[str, ScannedFile]) -> dg.RunRequest:
    identity = [group.batch, [[key, seen[key].size, seen[key].modified] for key in group.files]]
    op = prefixed(settings.pipeline, TAKE_OP)
    config = {"ops": {op: {"config": {"batch": group.batch, "files": list(group.files)}}}}
    key = hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:32]
    return dg.RunRequest(run_key=key, job_name=prefixed(settings.pipeline, TAKE_FILES), run_config=config)


def _report_other_writers(context: Any, key: dg.AssetKey, documents: BatchSnapshot, reported: dict[str, int]) -> None:
    """Report a materialization for each batch that another writer has changed.

    If a tick runs out of time, the next ticks report the rest.
    """
    deadline = time.monotonic() + _REPORT_SECONDS
    for batch in documents.batches():
        if time.monotonic() > deadline:
            return
        commit = documents.last_commit(batch)
        if commit is None or documents.is_written_by_us(batch) or reported.get(batch) == commit.version:
            continue
        metadata: dict[str, Any] = {"rows": documents.rows(batch), "author": commit.author}
        _report(context, key, batch, str(commit.version), metadata)
        reported[batch] = commit.version


def _freshness(
    settings: Settings, documents: BatchSnapshot, output: BatchSnapshot, state: dict[str, Any]
) -> list[dg.AssetCheckEvaluation]:
    """Evaluate the check of freshness when the batches that wait too long are others than at the last tick."""
    waiting = waiting_batches(documents, output, settings.fresh_hours)
    if sorted(waiting) == state.get("waiting", []):
        return []
    state["waiting"] = sorted(waiting)
    found = result(waiting, dg.AssetCheckSeverity.WARN)
    return [
        dg.AssetCheckEvaluation(
            asset_key=AssetKeys(settings.pipeline).scored,
            check_name=FRESHNESS,
            passed=found.passed,
            severity=found.severity,
            metadata=found.metadata,
        )
    ]


def _report(context: Any, key: dg.AssetKey, batch: str | None, version: str, metadata: dict[str, Any]) -> None:
    event = dg.AssetMaterialization(key, partition=batch, metadata=metadata, tags={_DATA_VERSION_TAG: version})
    context.instance.report_runless_asset_event(event)


def _reported_version(context: Any, asset: dg.AssetKey) -> str | None:
    last = context.instance.get_latest_materialization_event(asset)
    return None if last is None else (last.asset_materialization.tags or {}).get(_DATA_VERSION_TAG)

"""Whether anything has changed since the last successful run of the whole graph; if not, another run is skipped."""

import hashlib
import importlib.metadata
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import dagster as dg

from batch_assets.automation.jobs import materialize_all
from batch_assets.automation.launch import launched_here
from batch_assets.automation.look import stale_now
from batch_assets.automation.runs import known_batches
from batch_assets.automation.stale import unfinished_batches
from batch_assets.lake.configured import configured_lake
from batch_assets.lake.forgotten import forgotten
from batch_assets.lake.tables import AI_QUERY_INFERENCE, BATCH_INFERENCE, PROD_DATA, SUMMARY_QUALITY, TABLES
from batch_assets.models.checkpoint import load_checkpoint
from batch_assets.models.registry import CHAMPION, versions, with_alias
from batch_assets.models.runs import find_run, search_runs
from batch_assets.models.tracking import look
from batch_assets.settings import Settings, redacted
from batch_assets.sources.configured import evaluation_dataset
from batch_assets.sources.dataset import Dataset

STATE_TAG = "batch_assets/state"
_PACKAGE = Path(__file__).parent.parent


def inputs_of(settings: Settings, dataset: Dataset) -> str:
    """Digest of what a run reads and doesn't change: settings, code, the checkpoint, the data sets, the endpoints.

    Files count by name, size and time of modification; the records of a data set by what it calls its provenance.

    Raises:
        BatchAssetsError: a data set or the checkpoint can't be read.
    """
    endpoints = settings.endpoints
    return _digest(
        {
            "settings": {name: redacted(str(value)) for name, value in settings},
            "packages": sorted(f"{one.name}=={one.version}" for one in importlib.metadata.distributions()),
            "code": _files(_PACKAGE),
            "checkpoint": _files(load_checkpoint(settings).folder),
            "data_set": {batch: dataset.provenance(batch) for batch in dataset.batches()},
            "evaluation": [part.provenance for part in evaluation_dataset(settings).parts()],
            "endpoints": endpoints.read_text(encoding="utf-8") if endpoints and endpoints.exists() else None,
        }
    )


def run_that_ended_alike(instance: dg.DagsterInstance, settings: Settings, dataset: Dataset) -> str | None:
    """The id of this home's last run, if it succeeded and nothing has changed since; else None.

    Args:
        instance: Dagster's storage.
        settings: name the home, the lake and the model.
        dataset: what would be scored.

    Raises:
        BatchAssetsError: the data set, the checkpoint or the state can't be read.
    """
    last = _last_run(instance)
    # After a run that failed or was killed, another one is needed.
    if last is None or last.status != dg.DagsterRunStatus.SUCCESS or STATE_TAG not in last.tags:
        return None
    if settings.new_model or not settings.report_file.exists():
        return None
    if not set(dataset.batches()) <= set(known_batches(instance)):
        return None
    return last.run_id if last.tags[STATE_TAG] == _state(settings, inputs_of(settings, dataset)) else None


def note(instance: dg.DagsterInstance, settings: Settings, batches: Sequence[str], inputs: str) -> None:
    """Tag this home's last run, which succeeded, with a digest of the state that it left.

    The run gets no tag if something was changed during the run that makes another one necessary.

    Args:
        instance: Dagster's storage.
        settings: name the home, the lake and the model.
        batches: what the run covered.
        inputs: as ``inputs_of`` gave it before the run.
    """
    state, last = _state(settings, inputs), _last_run(instance)
    client = look(settings)
    if state is None or last is None or client is None:
        return
    registered = {version.run_id for version in versions(client, settings.registered_model)}
    champion = with_alias(client, settings.registered_model, CHAMPION)
    lake = configured_lake(settings)
    documents, output = lake.open(PROD_DATA), lake.open(BATCH_INFERENCE)
    answered, quality = lake.open(AI_QUERY_INFERENCE), lake.open(SUMMARY_QUALITY)
    stale = stale_now(instance, settings, documents, output, None if champion is None else champion.number)
    unfinished = unfinished_batches(documents, output, answered, quality, frozenset())
    needs_work = {*stale, *unfinished} & {*batches}
    if find_run(client, settings).run_id in registered and not needs_work:
        instance.add_run_tags(last.run_id, {STATE_TAG: state})


def _last_run(instance: dg.DagsterInstance) -> dg.DagsterRun | None:
    filters = dg.RunsFilter(job_name=materialize_all.name, tags=launched_here(instance))
    return next(iter(instance.get_runs(filters, limit=1)), None)


def _state(settings: Settings, inputs: str) -> str | None:
    """Digest of the inputs together with what runs and people change: tables, registered versions, MLflow runs.

    None where MLflow's store or a table is missing.
    """
    client, lake = look(settings), configured_lake(settings)
    if client is None or not all(lake.exists(table) for table in TABLES):
        return None
    model = client.search_registered_models(f"name = '{settings.registered_model}'")
    return _digest(
        {
            "inputs": inputs,
            "tables": {table.name: (lake.open(table).table_id, lake.open(table).version) for table in TABLES},
            "forgotten": sorted(forgotten(lake)),
            "aliases": [one.aliases for one in model],
            "versions": [(one.number, one.run_id, one.tags) for one in versions(client, settings.registered_model)],
            "runs": [(run.run_id, run.tags, run.metrics) for run in search_runs(client, settings, "", [])],
        }
    )


def _files(folder: Path) -> list[tuple[str, int, int]]:
    # Python writes its compiled files whenever it likes.
    found = [(path, path.stat()) for path in sorted(folder.rglob("*")) if path.is_file() and path.suffix != ".pyc"]
    return [(str(path.relative_to(folder)), stat.st_size, stat.st_mtime_ns) for path, stat in found]


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()

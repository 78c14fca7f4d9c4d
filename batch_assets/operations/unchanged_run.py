"""Skip a run of the whole graph if nothing has changed since the last successful one."""

import hashlib
import importlib.metadata
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import dagster as dg

from batch_assets.graph.observation import stale_batches_now
from batch_assets.graph.partitions import known_batches
from batch_assets.graph.pipeline_names import MATERIALIZE_ALL, prefixed
from batch_assets.lake.forgotten import forgotten
from batch_assets.lake.lake import Lake
from batch_assets.mlflow_client import MlflowClient
from batch_assets.models.checkpoint_sources import checkpoint_source
from batch_assets.models.model_runs import find_run, search_runs
from batch_assets.models.registry import CHAMPION, RegisteredModel
from batch_assets.models.tracking import existing_client
from batch_assets.operations.local_runs import launch_tags
from batch_assets.settings import Settings, redacted
from batch_assets.sources.configured import evaluation_dataset, landing_folder
from batch_assets.sources.dataset import Dataset
from batch_assets.sources.documents import find_documents, open_documents
from batch_assets.staleness import batches_to_retry, unfinished_batches
from batch_assets.tasks.output_tables import tables_of

STATE_TAG = "batch_assets/state"
_PACKAGE = Path(__file__).parent.parent


def digest_of_inputs(settings: Settings, dataset: Dataset) -> str:
    """Digest of what a run reads but does not change: settings, code, the checkpoint, the data sets, the endpoints.

    It covers files by name, size and modification time, and records of a data set by its provenance.

    Raises:
        BatchAssetsError: a data set or the checkpoint can't be read.
    """
    endpoints, is_shared = settings.endpoints, settings.shared_model is not None
    return _digest(
        {
            "settings": {name: redacted(str(value)) for name, value in settings},
            "packages": sorted(_packages()),
            "code": _files(_PACKAGE),
            "checkpoint": None if is_shared else _files(checkpoint_source(settings).load().folder),
            "data_set": {batch: dataset.provenance(batch) for batch in dataset.batches()},
            "waiting": landing_folder(settings).pending() if settings.is_landing and settings.dataset is None else None,
            "table": _version_of_source(settings),
            "evaluation": None if is_shared else [part.provenance for part in evaluation_dataset(settings).parts()],
            "endpoints": endpoints.read_text(encoding="utf-8") if endpoints and endpoints.exists() else None,
        }
    )


def _version_of_source(settings: Settings) -> list[object]:
    """Id and version of the table that is read in place."""
    if not settings.is_in_place:
        return []
    documents = find_documents(Lake.of(settings), settings, tables_of(settings))
    return [documents.table_id, documents.version]


def last_run_with_same_state(instance: dg.DagsterInstance, settings: Settings, dataset: Dataset) -> str | None:
    """Id of this home's last run if it succeeded and nothing has changed since; otherwise None.

    Args:
        instance: Dagster's storage.
        settings: the home, the lake and the model.
        dataset: the data set to score.

    Raises:
        BatchAssetsError: the data set, the checkpoint or the state can't be read.
    """
    last = _last_run(instance, settings)
    # A run that failed or was killed must be repeated.
    if last is None or last.status != dg.DagsterRunStatus.SUCCESS or STATE_TAG not in last.tags:
        return None
    if settings.new_model or not settings.report_file.exists():
        return None
    if not set(dataset.batches()) <= set(known_batches(instance, settings.pipeline)):
        return None
    return last.run_id if last.tags[STATE_TAG] == _state(settings, digest_of_inputs(settings, dataset)) else None


def record_state(instance: dg.DagsterInstance, settings: Settings, batches: Sequence[str], inputs: str) -> None:
    """Tag this home's last run, which succeeded, with a digest of the state that it left.

    The run gets no tag if a change during the run makes another run necessary.

    Args:
        instance: Dagster's storage.
        settings: the home, the lake and the model.
        batches: batches that the run covered.
        inputs: result of ``digest_of_inputs`` before the run.
    """
    state, last = _state(settings, inputs), _last_run(instance, settings)
    client = existing_client(settings)
    if state is None or last is None or client is None:
        return
    model = RegisteredModel.of(client, settings)
    champion = model.with_alias(CHAMPION)
    lake = Lake.of(settings)
    tables = tables_of(settings)
    documents = open_documents(lake, settings, tables)
    output, quality = lake.open(tables.scored), lake.open(tables.quality)
    answered = None if tables.answered is None else lake.open(tables.answered)
    number = None if champion is None else champion.number
    stale = stale_batches_now(instance, settings, documents, output, answered, number)
    outputs = [output, *([] if answered is None else [answered])]
    retried = batches_to_retry(documents, outputs, frozenset(), settings.error_attempts, time.time())
    unfinished = unfinished_batches(documents, output, answered, quality, frozenset())
    needs_work = {*stale, *unfinished, *retried} & {*batches}
    if _is_registered(client, settings) and not needs_work:
        instance.add_run_tags(last.run_id, {STATE_TAG: state})


def _is_registered(client: MlflowClient, settings: Settings) -> bool:
    """Whether the run that the settings select has a version; the owner of a shared model sees to that."""
    if settings.shared_model is not None:
        return True
    registered = {version.run_id for version in RegisteredModel.of(client, settings).versions()}
    return find_run(client, settings).run_id in registered


def _last_run(instance: dg.DagsterInstance, settings: Settings) -> dg.DagsterRun | None:
    job = prefixed(settings.pipeline, MATERIALIZE_ALL)
    filters = dg.RunsFilter(job_name=job, tags=launch_tags(instance))
    return next(iter(instance.get_runs(filters, limit=1)), None)


def _state(settings: Settings, inputs: str) -> str | None:
    """Digest of the inputs and of what runs and people change: tables, registered versions, MLflow runs.

    None if MLflow's store or a table is missing.
    """
    client, lake = existing_client(settings), Lake.of(settings)
    tables = tables_of(settings).all
    if client is None or not all(lake.exists(table) for table in tables):
        return None
    model = RegisteredModel.of(client, settings)
    # Runs without a version don't concern a pipeline that uses a shared model.
    runs = [] if settings.shared_model is not None else search_runs(client, settings, "", [])
    return _digest(
        {
            "inputs": inputs,
            "tables": {table.name: (lake.open(table).table_id, lake.open(table).version) for table in tables},
            "forgotten": sorted(forgotten(lake)),
            "aliases": model.aliases(),
            "versions": [(one.number, one.run_id, one.tags) for one in model.versions()],
            "runs": [(run.run_id, run.tags, run.metrics) for run in runs],
        }
    )


def _packages() -> set[str]:
    # setuptools puts the packages that it carries on the path as soon as something imports it.
    found = (one for one in importlib.metadata.distributions() if Path(str(one.locate_file(""))).name != "_vendor")
    return {f"{one.name}=={one.version}" for one in found}


def _files(folder: Path) -> list[tuple[str, int, int]]:
    # Python may write compiled files at any time.
    found = [(path, path.stat()) for path in sorted(folder.rglob("*")) if path.is_file() and path.suffix != ".pyc"]
    return [(str(path.relative_to(folder)), stat.st_size, stat.st_mtime_ns) for path, stat in found]


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()

"""Check whether this machine and the state have what a run needs, and how to fix what is missing. Changes nothing."""

import os
import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Final, Literal

from batch_assets.ai_functions.endpoints import Endpoint, check_key, configured_endpoint, read_endpoints
from batch_assets.errors import BatchAssetsError
from batch_assets.lake.contracts import Table
from batch_assets.lake.lake import Lake
from batch_assets.locks import is_held
from batch_assets.machine import available_memory, cores
from batch_assets.models.checkpoint_sources import checkpoint_source
from batch_assets.models.smollm2 import gguf_file
from batch_assets.operations.preflight import shared_champion
from batch_assets.operations.run import run_lock
from batch_assets.pipelines.deployment import Deployment
from batch_assets.resources.java import check_java
from batch_assets.settings import Settings, named, redacted
from batch_assets.sources.configured import evaluation_dataset, is_on_hub, scored_dataset
from batch_assets.sources.documents import find_documents, source_name
from batch_assets.tasks.output_tables import tables_of

Level = Literal["ok", "warning", "problem"]
OK: Final = "ok"
WARNING: Final = "warning"
PROBLEM: Final = "problem"

_GIB, _MIB = 1024**3, 1024**2
# Java's heap, and the driver with its imports.
_DRIVER_BYTES = 2 * _GIB
# Memory of a worker besides the weights: libraries, and the texts in progress.
_WORKER_BYTES = 512 * _MIB
# The checkpoint, MLflow's copy of it, and a converted model.
_COPIES_OF_WEIGHTS = 3
_LEAST_DISK = _GIB
_SECONDS = 5


@dataclass(frozen=True)
class Finding:
    """What was checked, what was found, and how to fix it (empty if all is well)."""

    level: Level
    what: str
    found: str
    remedy: str = ""


Check = Callable[[Settings], list[Finding]]


def examine(deployment: Deployment) -> list[Finding]:
    """Run every check; one that fails counts as a problem and does not stop the others."""
    first = deployment.default
    others = [settings for settings in deployment.pipelines if not settings.is_default]
    findings = [finding for check in _CHECKS for finding in _run(check, first)]
    for settings in others:
        for check in _CHECKS:
            if check[0] in _OF_EACH_PIPELINE:
                found = _run(check, settings)
                findings += [replace(one, what=f"{settings.pipeline}: {one.what}") for one in found]
    findings += [
        Finding(PROBLEM, f"{problem.name}: file", problem.message, "fix the file; the pipeline is left out until then")
        for problem in deployment.problems
    ]
    return findings


def _run(named_check: tuple[str, Check, str], settings: Settings) -> list[Finding]:
    what, check, remedy = named_check
    try:
        return check(settings)
    except (BatchAssetsError, OSError) as error:
        # delta-rs colors its messages.
        found = re.sub(r"\x1b\[[\d;]*m", "", str(error))
        return [Finding(PROBLEM, what, " ".join(found.split()), remedy)]


def _java(settings: Settings) -> list[Finding]:
    return [Finding(OK, "java", check_java())]


def _memory(settings: Settings) -> list[Finding]:
    available, weights, workers = available_memory(), _weights(settings), _workers(settings)
    if workers is None:
        return [Finding(OK, "memory", f"{_gib(available)} available here; workers run on {_cluster(settings)}")]
    if weights is None:
        return [Finding(OK, "memory", f"{_gib(available)} available; the size of {settings.model} is not known yet")]
    each = weights + _WORKER_BYTES
    needed = _DRIVER_BYTES + workers * each
    found = (
        f"{_gib(available)} available, about {_gib(needed)} needed: {_gib(_DRIVER_BYTES)} for Java and the driver, and "
        f"for each of {workers} workers {_gib(weights)} of weights in {settings.dtype} plus {_gib(_WORKER_BYTES)}"
    )
    if available >= needed:
        return [Finding(OK, "memory", found)]
    fitting = (available - _DRIVER_BYTES) // each
    if fitting < 1:
        return [
            Finding(
                PROBLEM, "memory", found, f"close other programs, or set {named(settings, 'model')} to a smaller model"
            )
        ]
    return [Finding(WARNING, "memory", found, f"set BATCH_ASSETS_SPARK_MASTER=local[{fitting},4] for fewer workers")]


def _weights(settings: Settings) -> int | None:
    try:
        return checkpoint_source(settings).weight_bytes(settings.dtype)
    except BatchAssetsError:
        return None  # the finding about the model says why


def _cluster(settings: Settings) -> str:
    return redacted(settings.spark_remote or settings.spark_master)


def _workers(settings: Settings) -> int | None:
    """Number of workers that load the model at the same time; None if they run on other machines."""
    if settings.spark_remote is not None:
        return None
    local = re.fullmatch(r"local(?:\[(\d+|\*)(?:,\d+)?\])?", settings.spark_master)
    if local is None:
        return None
    available = cores()
    if settings.device_map.startswith(("cuda", "mps")):
        return 1
    return available if local[1] == "*" else min(int(local[1] or 1), available)


def _disk(settings: Settings) -> list[Finding]:
    needed = _LEAST_DISK
    if not (settings.home / "mlflow").exists():
        needed += _COPIES_OF_WEIGHTS * (_weights(settings) or 0)
    folders = {"disk of the home": settings.home}
    if "://" not in settings.lake_uri:
        folders["disk of the lake"] = Path(settings.lake_uri)
    findings: dict[int, Finding] = {}
    for what, folder in folders.items():
        existing = _nearest_existing(folder)
        free = shutil.disk_usage(existing).free
        level: Level = OK if free >= needed else WARNING if free >= _LEAST_DISK else PROBLEM
        remedy = "" if level == OK else f"free space on the disk of {existing} or set BATCH_ASSETS_HOME to a larger one"
        found = f"{_gib(free)} free for {folder}, about {_gib(needed)} needed"
        findings.setdefault(existing.stat().st_dev, Finding(level, what, found, remedy))
    return list(findings.values())


def _nearest_existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that exists."""
    return next(path for path in (folder, *folder.parents) if path.exists())


def _model(settings: Settings) -> list[Finding]:
    if settings.shared_model is not None:
        champion, owner = shared_champion(settings), settings.shared_model
        if champion is None:
            found = f"the pipeline {owner}, whose model is used, has no champion yet"
            return [Finding(WARNING, "model", found, f"run 'batch-assets run {owner}' first")]
        found = f"version {champion.number} of {champion.name}, the champion of the pipeline {owner}"
        return [Finding(OK, "model", found)]
    is_here = _weights(settings) is not None
    checkpoint_source(settings).check(quickly=True)
    return [Finding(OK, "model", f"{settings.model} {'is available' if is_here else 'can be downloaded from the hub'}")]


def _data(settings: Settings) -> list[Finding]:
    found = [Finding(OK, "data set", f"{scored_dataset(settings).name} for scoring")]
    if settings.is_in_place:
        documents = find_documents(Lake.of(settings, fail_fast=True), settings, tables_of(settings))
        there = f"{documents.rows()} rows in {len(documents.batches())} batches"
        found = [Finding(OK, "source", f"{source_name(settings)}: {there}")]
    if settings.shared_model is None:
        found.append(Finding(OK, "data set", f"{evaluation_dataset(settings).name} for evaluation"))
    return found


def _hub(settings: Settings) -> list[Finding]:
    has_model = settings.shared_model is None
    names = (settings.dataset, settings.evaluation_dataset if has_model else None)
    wanted = [name for name in dict.fromkeys(names) if name is not None and is_on_hub(name)]
    if not wanted and not (has_model and checkpoint_source(settings).is_on_hub):
        return [Finding(OK, "hub", "not needed: the model and the data sets are not from the hub")]
    return [_hub_dataset(settings, name) for name in wanted]


def _hub_dataset(settings: Settings, name: str) -> Finding:
    import huggingface_hub

    # Versions of the datasets library spell the names of these folders differently.
    wanted = re.sub("[/_]", "", name).lower()
    folders = (settings.home / "datasets").glob("*/")
    if any(re.sub("_", "", folder.name).lower() == wanted for folder in folders):
        return Finding(OK, "hub", f"the data set {name} is already downloaded")
    try:
        huggingface_hub.dataset_info(name, timeout=_SECONDS)
    except (OSError, ValueError) as error:
        return Finding(
            PROBLEM,
            "hub",
            f"the data set {name} can't be downloaded from the hub ({type(error).__name__})",
            f"check the name and the network, or set {named(settings, 'dataset')} to aclsum, which needs no hub",
        )
    return Finding(OK, "hub", f"the data set {name} can be downloaded")


def _endpoints(settings: Settings) -> list[Finding]:
    if settings.endpoint is None:
        return []
    endpoints = {} if settings.endpoints is None else read_endpoints(settings.endpoints)
    findings = [_endpoint(endpoint, settings.endpoint) for endpoint in endpoints.values()]
    if configured_endpoint(settings.endpoints, settings.endpoint) is None:
        findings.append(_embedded_endpoint(settings.endpoint))
    return findings


def _endpoint(endpoint: Endpoint, used_by_graph: str) -> Finding:
    """Send an endpoint a request that costs nothing, using its API key."""
    import httpx

    what = f"endpoint {endpoint.name}"
    # Only statements that name another endpoint need that one.
    bad: Level = PROBLEM if endpoint.name == used_by_graph else WARNING
    key = os.environ.get(endpoint.api_key_env or "", "").strip()
    try:
        check_key(endpoint)
    except BatchAssetsError as error:
        return Finding(bad, what, str(error), f"export {endpoint.api_key_env}=<the key> before the command")
    if not (key.isascii() and key.isprintable()):
        found = f"the value of {endpoint.api_key_env} is not a key: it has characters that HTTP headers don't allow"
        return Finding(bad, what, found, f"set {endpoint.api_key_env} to the key and nothing else")
    url = endpoint.base_url + ("/models" if endpoint.kind == "openai" else "/ping")
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    try:
        status = httpx.get(url, headers=headers, timeout=_SECONDS, follow_redirects=False).status_code
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        remedy = "start the server, or fix base_url in BATCH_ASSETS_ENDPOINTS"
        return Finding(bad, what, f"no answer from {endpoint.base_url} ({type(error).__name__})", remedy)
    if status in (httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN):
        remedy = f"check the key in {endpoint.api_key_env}" if endpoint.api_key_env else "set its api_key_env"
        return Finding(bad, what, f"{endpoint.base_url} refuses access (HTTP status {status})", remedy)
    if httpx.codes.is_redirect(status):
        remedy = "set base_url to the address that it redirects to"
        return Finding(bad, what, f"{endpoint.base_url} redirects (HTTP status {status})", remedy)
    # Not every server has these paths; any other answer means that it is up.
    if status >= httpx.codes.INTERNAL_SERVER_ERROR and status != httpx.codes.NOT_IMPLEMENTED:
        return Finding(bad, what, f"{endpoint.base_url} answers with HTTP status {status}", "check the server's log")
    secured = f" with the key in {endpoint.api_key_env}" if endpoint.api_key_env else ""
    return Finding(OK, what, f"{endpoint.base_url} answers{secured}")


def _embedded_endpoint(name: str) -> Finding:
    what = f"endpoint {name}"
    path = gguf_file()
    if find_spec("xllamacpp") is None:
        return Finding(PROBLEM, what, "the package xllamacpp is not installed", "run pip install xllamacpp")
    return Finding(OK, what, f"the embedded server starts with {path.name} when needed")


def _tracking(settings: Settings) -> list[Finding]:
    from batch_assets.models.tracking import existing_client

    shown = redacted(settings.tracking_uri)
    client = existing_client(settings)
    if client is None:
        return [Finding(OK, "tracking server", f"nothing at {shown} yet; the first run creates it")]
    exists = client.get_experiment_by_name(settings.experiment) is not None
    experiment = f"the experiment {settings.experiment} {'exists' if exists else 'is created by the first run'}"
    return [Finding(OK, "tracking server", f"{shown} answers, {experiment}")]


def _home(settings: Settings) -> list[Finding]:
    home = settings.home
    existing = _nearest_existing(home)
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        reason = "is not writable" if existing.is_dir() else "is not a folder"
        return [Finding(PROBLEM, "home", f"{existing} {reason}", "set BATCH_ASSETS_HOME to a writable folder")]
    state = "is writable" if existing == home else "is created by the first run"
    findings = [Finding(OK, "home", f"{home} {state}")]
    if is_held(run_lock(settings)):
        found = f"a 'batch-assets run' is running in {home}"
        findings.append(Finding(WARNING, "lock", found, "wait for it to finish: a second one would be refused"))
    return findings


def _tables(settings: Settings) -> list[Finding]:
    lake = Lake.of(settings, fail_fast=True)
    tables = tables_of(settings).all
    existing = [table for table in tables if lake.exists(table)]
    wrong = [finding for table in existing if (finding := _table(lake, table)) is not None]
    if wrong:
        return wrong
    found = f"{len(existing)} of {len(tables)} tables exist in {redacted(lake.uri)}, all with the expected layout"
    none = f"none in {redacted(lake.uri)} yet; the first run creates them"
    return [Finding(OK, "tables", found if existing else none)]


def _table(lake: Lake, table: Table) -> Finding | None:
    what = f"table {table.name}"
    try:
        difference = lake.difference(table)
    except BatchAssetsError as error:
        return Finding(PROBLEM, what, str(error), "make it readable, or restore it")
    if difference is None:
        return None
    remedy = "move it away, or set BATCH_ASSETS_CATALOG or BATCH_ASSETS_SCHEMA to another name"
    return Finding(PROBLEM, what, difference, remedy)


def _runs(settings: Settings) -> list[Finding]:
    from batch_assets.operations.local_runs import claimed_pools, orphaned_runs
    from batch_assets.resources.dagster_storage import existing_instance

    instance = existing_instance(settings)
    if instance is None:
        return [Finding(OK, "runs", "no runs yet")]
    with instance:
        claimed = claimed_pools(instance)
        dead = orphaned_runs(instance)
    findings = [
        Finding(
            PROBLEM,
            "runs",
            f"run {run.run_id} ({run.job_name}) is recorded as running, but its process is gone; others wait for it",
            "start 'batch-assets ui', which marks it as failed and retries it, or 'batch-assets run'",
        )
        for run in dead
    ]
    gone = {run.run_id for run in dead}
    for pool, run_id, is_over in claimed:
        if is_over:
            found = f"run {run_id} has ended but still holds the pool {pool}; other runs wait for it"
            findings.append(Finding(WARNING, "runs", found, "start 'batch-assets run' or Dagster's daemon to free it"))
        elif run_id not in gone:
            findings.append(Finding(OK, "runs", f"run {run_id} holds the pool {pool}"))
    return findings or [Finding(OK, "runs", "no run is dead or holds a pool")]


_CHECKS: Sequence[tuple[str, Check, str]] = (
    ("java", _java, ""),
    ("memory", _memory, ""),
    ("disk", _disk, "set BATCH_ASSETS_HOME to a readable folder"),
    ("model", _model, ""),
    ("data set", _data, ""),
    ("hub", _hub, ""),
    ("endpoints", _endpoints, ""),
    ("tracking server", _tracking, ""),
    ("home", _home, "set BATCH_ASSETS_HOME to a writable folder"),
    ("tables", _tables, "check BATCH_ASSETS_LAKE, the network and your access to the lake"),
    ("runs", _runs, ""),
)

# The other checks are about the machine or the deployment.
_OF_EACH_PIPELINE = {"model", "data set", "hub", "endpoints", "tables"}


def _gib(count: int) -> str:
    return f"{count / _GIB:.1f} GiB"

"""Whether this machine and the state have what a run needs, and what to do where they don't. Looks, changes nothing."""

import os
import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Final, Literal

from batch_assets.ai_functions.endpoints import Endpoint, check_key, configured_endpoint, read_endpoints
from batch_assets.errors import BatchAssetsError
from batch_assets.java import check_java
from batch_assets.lake.configured import configured_lake
from batch_assets.lake.lake import Lake
from batch_assets.lake.tables import TABLES, Table
from batch_assets.locks import is_held
from batch_assets.models.checkpoint import check_checkpoint, weight_bytes
from batch_assets.models.checkpoint import is_on_hub as is_model_on_hub
from batch_assets.models.smollm2 import gguf_file
from batch_assets.settings import Settings, redacted
from batch_assets.sources.configured import evaluation_dataset, scored_dataset
from batch_assets.sources.configured import is_on_hub as is_dataset_on_hub

Level = Literal["ok", "warning", "problem"]
OK: Final = "ok"
WARNING: Final = "warning"
PROBLEM: Final = "problem"

_GIB, _MIB = 1024**3, 1024**2
# Java's heap, and the driver with what it imports.
_DRIVER_BYTES = 2 * _GIB
# What a worker takes beside the weights: libraries, and the texts that it works on.
_WORKER_BYTES = 512 * _MIB
# The checkpoint, MLflow's copy of it, and a converted engine.
_COPIES_OF_WEIGHTS = 3
_LEAST_DISK = _GIB
_SECONDS = 5


@dataclass(frozen=True)
class Finding:
    """What was looked at, what was found, and what to do about it; nothing where all is well."""

    level: Level
    what: str
    found: str
    remedy: str = ""


Check = Callable[[Settings], list[Finding]]


def examine(settings: Settings) -> list[Finding]:
    """Make every check; one that fails is a problem, and doesn't stop the others."""
    findings = []
    for what, check, remedy in _CHECKS:
        try:
            findings += check(settings)
        except (BatchAssetsError, OSError) as error:
            # delta-rs paints its messages.
            found = re.sub(r"\x1b\[[\d;]*m", "", str(error))
            findings.append(Finding(PROBLEM, what, " ".join(found.split()), remedy))
    return findings


def _java(settings: Settings) -> list[Finding]:
    return [Finding(OK, "java", check_java())]


def _memory(settings: Settings) -> list[Finding]:
    available, weights, workers = _available_memory(), _weights(settings), _workers(settings)
    if available is None:
        return [Finding(WARNING, "memory", "this system doesn't say how much memory is available")]
    if workers is None:
        return [Finding(OK, "memory", f"{_gib(available)} available here; workers are on {_cluster(settings)}")]
    if weights is None:
        return [Finding(OK, "memory", f"{_gib(available)} available; {settings.model} is not here yet to be weighed")]
    each = weights + _WORKER_BYTES
    needed = _DRIVER_BYTES + workers * each
    found = (
        f"{_gib(available)} available, about {_gib(needed)} needed: {_gib(_DRIVER_BYTES)} for Java and the driver, and "
        f"for each of {workers} workers {_gib(weights)} of weights in {settings.dtype} and {_gib(_WORKER_BYTES)} more"
    )
    if available >= needed:
        return [Finding(OK, "memory", found)]
    fitting = (available - _DRIVER_BYTES) // each
    if fitting < 1:
        return [Finding(PROBLEM, "memory", found, "end other programs, or set BATCH_ASSETS_MODEL to a smaller model")]
    return [Finding(WARNING, "memory", found, f"set BATCH_ASSETS_SPARK_MASTER=local[{fitting},4] for fewer workers")]


def _weights(settings: Settings) -> int | None:
    try:
        return weight_bytes(settings)
    except BatchAssetsError:
        return None  # the finding about the model says why


def _cluster(settings: Settings) -> str:
    return redacted(settings.spark_remote or settings.spark_master)


def _workers(settings: Settings) -> int | None:
    """Workers that load the model at a time, None where they are on other machines."""
    if settings.spark_remote is not None:
        return None
    local = re.fullmatch(r"local(?:\[(\d+|\*)(?:,\d+)?\])?", settings.spark_master)
    if local is None:
        return None
    cores = os.cpu_count() or 1
    if settings.device_map.startswith(("cuda", "mps")):
        return 1
    return cores if local[1] == "*" else min(int(local[1] or 1), cores)


def _available_memory() -> int | None:
    """Bytes that programs may still take: of the machine, or of the container if it has a limit."""
    try:
        machine = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        available = int(machine["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError):
        return None
    group = Path("/sys/fs/cgroup")
    try:
        limit = (group / "memory.max").read_text().strip()
        used = int((group / "memory.current").read_text())
        usage = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
    except OSError:
        return available  # no container, or one of another kind
    if limit == "max":
        return available
    # What only keeps files at hand is given up when memory is wanted.
    return min(available, int(limit) - used + int(usage.get("inactive_file", 0)))


def _disk(settings: Settings) -> list[Finding]:
    needed = _LEAST_DISK
    if not (settings.home / "mlflow").exists():
        needed += _COPIES_OF_WEIGHTS * (_weights(settings) or 0)
    folders = {"disk of the home": settings.home}
    if "://" not in settings.lake_uri:
        folders["disk of the lake"] = Path(settings.lake_uri)
    findings: dict[int, Finding] = {}
    for what, folder in folders.items():
        there = _nearest(folder)
        free = shutil.disk_usage(there).free
        level: Level = OK if free >= needed else WARNING if free >= _LEAST_DISK else PROBLEM
        remedy = "" if level == OK else f"make room on the disk of {there}, or set BATCH_ASSETS_HOME to a larger one"
        found = f"{_gib(free)} free for {folder}, about {_gib(needed)} needed"
        findings.setdefault(there.stat().st_dev, Finding(level, what, found, remedy))
    return list(findings.values())


def _nearest(folder: Path) -> Path:
    """The folder, or the nearest one above it that exists."""
    return next(path for path in (folder, *folder.parents) if path.exists())


def _model(settings: Settings) -> list[Finding]:
    is_here = _weights(settings) is not None
    check_checkpoint(settings, quickly=True)
    return [Finding(OK, "model", f"{settings.model} {'is there' if is_here else 'can be had from the hub'}")]


def _data(settings: Settings) -> list[Finding]:
    return [
        Finding(OK, "data set", f"{dataset.name} to be {use}")
        for use, dataset in (("scored", scored_dataset(settings)), ("evaluated on", evaluation_dataset(settings)))
    ]


def _hub(settings: Settings) -> list[Finding]:
    datasets = dict.fromkeys(name for name in (settings.dataset, settings.evaluation_dataset) if name is not None)
    wanted = [name for name in datasets if is_dataset_on_hub(name)]
    if not wanted and not is_model_on_hub(settings.model):
        return [Finding(OK, "hub", "not needed: neither the model nor a data set comes from there")]
    return [_hub_dataset(settings, name) for name in wanted]


def _hub_dataset(settings: Settings, name: str) -> Finding:
    import huggingface_hub

    # The library's own spelling differs from version to version in these.
    wanted = re.sub("[/_]", "", name).lower()
    folders = (settings.home / "datasets").glob("*/")
    if any(re.sub("_", "", folder.name).lower() == wanted for folder in folders):
        return Finding(OK, "hub", f"the data set {name} was downloaded before")
    try:
        huggingface_hub.dataset_info(name, timeout=_SECONDS)
    except (OSError, ValueError) as error:
        return Finding(
            PROBLEM,
            "hub",
            f"the data set {name} is not here, and can't be had ({type(error).__name__})",
            "check the name and the network, or set BATCH_ASSETS_DATASET=aclsum, which needs no hub",
        )
    return Finding(OK, "hub", f"the data set {name} can be downloaded")


def _endpoints(settings: Settings) -> list[Finding]:
    endpoints = {} if settings.endpoints is None else read_endpoints(settings.endpoints)
    findings = [_endpoint(endpoint, settings.endpoint) for endpoint in endpoints.values()]
    if configured_endpoint(settings.endpoints, settings.endpoint) is None:
        findings.append(_embedded_endpoint(settings.endpoint))
    return findings


def _endpoint(endpoint: Endpoint, asked_by_graph: str) -> Finding:
    """Ask an endpoint for what costs nothing, with its key."""
    import httpx

    what = f"endpoint {endpoint.name}"
    # Of another one, only statements that name it have need.
    bad: Level = PROBLEM if endpoint.name == asked_by_graph else WARNING
    key = os.environ.get(endpoint.api_key_env or "", "").strip()
    try:
        check_key(endpoint)
    except BatchAssetsError as error:
        return Finding(bad, what, str(error), f"export {endpoint.api_key_env}=<the key> before the command")
    if not (key.isascii() and key.isprintable()):
        found = f"what is in {endpoint.api_key_env} is no key: it has characters that no HTTP header takes"
        return Finding(bad, what, found, f"set {endpoint.api_key_env} to the key alone")
    url = endpoint.base_url + ("/models" if endpoint.kind == "openai" else "/ping")
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    try:
        status = httpx.get(url, headers=headers, timeout=_SECONDS, follow_redirects=False).status_code
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        remedy = "start the server, or mend base_url in BATCH_ASSETS_ENDPOINTS"
        return Finding(bad, what, f"no answer from {endpoint.base_url} ({type(error).__name__})", remedy)
    if status in (httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN):
        remedy = f"check the key in {endpoint.api_key_env}" if endpoint.api_key_env else "name its key in api_key_env"
        return Finding(bad, what, f"{endpoint.base_url} refuses access (HTTP status {status})", remedy)
    if httpx.codes.is_redirect(status):
        remedy = "write the address that it redirects to as base_url"
        return Finding(bad, what, f"{endpoint.base_url} redirects (HTTP status {status})", remedy)
    # Not every server has these pages; any other answer means that it is up.
    if status >= httpx.codes.INTERNAL_SERVER_ERROR and status != httpx.codes.NOT_IMPLEMENTED:
        return Finding(bad, what, f"{endpoint.base_url} answers with HTTP status {status}", "look at the server's log")
    secured = f", its key is in {endpoint.api_key_env}" if endpoint.api_key_env else ""
    return Finding(OK, what, f"{endpoint.base_url} answers{secured}")


def _embedded_endpoint(name: str) -> Finding:
    what = f"endpoint {name}"
    path = gguf_file()
    if find_spec("xllamacpp") is None:
        return Finding(PROBLEM, what, "the package xllamacpp is not installed", "run pip install xllamacpp")
    return Finding(OK, what, f"the embedded server starts with {path.name} when it is needed")


def _tracking(settings: Settings) -> list[Finding]:
    from batch_assets.models.tracking import look

    shown = redacted(settings.tracking_uri)
    client = look(settings)
    if client is None:
        return [Finding(OK, "tracking server", f"nothing at {shown} yet; the first run makes it")]
    there = client.get_experiment_by_name(settings.experiment) is not None
    experiment = f"the experiment {settings.experiment} {'is there' if there else 'is made by the first run'}"
    return [Finding(OK, "tracking server", f"{shown} answers, {experiment}")]


def _home(settings: Settings) -> list[Finding]:
    home = settings.home
    there = _nearest(home)
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        reason = "may not be written" if there.is_dir() else "is no folder"
        return [Finding(PROBLEM, "home", f"{there} {reason}", "set BATCH_ASSETS_HOME to a folder of yours")]
    made = "can be written" if there == home else "is made by the first run"
    findings = [Finding(OK, "home", f"{home} {made}")]
    if is_held(home / ".run.lock"):
        found = f"a 'batch-assets run' is working in {home}"
        findings.append(Finding(WARNING, "lock", found, "wait for it: a second one would be refused"))
    return findings


def _tables(settings: Settings) -> list[Finding]:
    lake = configured_lake(settings, soon=True)
    there = [table for table in TABLES if lake.exists(table)]
    wrong = [finding for table in there if (finding := _table(lake, table)) is not None]
    if wrong:
        return wrong
    found = f"{len(there)} of {len(TABLES)} tables are in {redacted(lake.uri)}, each as this package knows it"
    return [Finding(OK, "tables", found if there else f"none in {redacted(lake.uri)} yet; the first run makes them")]


def _table(lake: Lake, table: Table) -> Finding | None:
    what = f"table {table.name}"
    try:
        difference = lake.difference(table)
    except BatchAssetsError as error:
        return Finding(PROBLEM, what, str(error), "make it readable, or restore it")
    if difference is None:
        return None
    remedy = "move it away, or set BATCH_ASSETS_CATALOG or BATCH_ASSETS_SCHEMA to other names"
    return Finding(PROBLEM, what, difference, remedy)


def _runs(settings: Settings) -> list[Finding]:
    from batch_assets.automation.launch import claimed_pools, orphaned_runs
    from batch_assets.automation.storage import existing_instance

    instance = existing_instance(settings)
    if instance is None:
        return [Finding(OK, "runs", "there are none yet")]
    with instance:
        claimed = claimed_pools(instance)
        dead = orphaned_runs(instance)
    findings = [
        Finding(
            PROBLEM,
            "runs",
            f"run {run.run_id} ({run.job_name}) counts as running, but its process is gone; others wait for it",
            "start 'batch-assets ui', which closes it and tries it again, or 'batch-assets run'",
        )
        for run in dead
    ]
    gone = {run.run_id for run in dead}
    for pool, run_id, is_over in claimed:
        if is_over:
            found = f"run {run_id} is over and still holds the pool {pool}; others wait for it"
            findings.append(
                Finding(WARNING, "runs", found, "'batch-assets run' frees it, and so does Dagster's daemon")
            )
        elif run_id not in gone:
            findings.append(Finding(OK, "runs", f"run {run_id} holds the pool {pool}"))
    return findings or [Finding(OK, "runs", "none is dead, none holds a pool")]


_CHECKS: Sequence[tuple[str, Check, str]] = (
    ("java", _java, ""),
    ("memory", _memory, ""),
    ("disk", _disk, "set BATCH_ASSETS_HOME to a folder that can be read"),
    ("model", _model, ""),
    ("data set", _data, ""),
    ("hub", _hub, ""),
    ("endpoints", _endpoints, ""),
    ("tracking server", _tracking, ""),
    ("home", _home, "set BATCH_ASSETS_HOME to a folder of yours"),
    ("tables", _tables, "check BATCH_ASSETS_LAKE, the network and the access to it"),
    ("runs", _runs, ""),
)


def _gib(count: int) -> str:
    return f"{count / _GIB:.1f} GiB"

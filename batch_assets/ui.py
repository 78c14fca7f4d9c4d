"""The Dagster UI and the MLflow UI, on loopback, started and stopped together."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import httpx

from batch_assets.errors import BatchAssetsError
from batch_assets.models.tracking import connect
from batch_assets.preflight import check_port
from batch_assets.settings import PREFIX, Settings

_START_SECONDS = 120.0
_STOP_SECONDS = 20.0
_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def serve(settings: Settings, say: Callable[[str], None]) -> None:
    """Serve until interrupted, or until one of the servers ends.

    Args:
        settings: ports and state.
        say: takes lines for the user.

    Raises:
        BatchAssetsError: a port is taken, or a server doesn't start or ends by itself.
    """
    check_port(settings.ui_port, f"{PREFIX}UI_PORT")
    check_port(settings.mlflow_port, f"{PREFIX}MLFLOW_PORT")
    connect(settings)
    for number in _ENDING:
        signal.signal(number, _interrupt)
    servers = {"Dagster": (_dagster(settings), f"http://127.0.0.1:{settings.ui_port}", "/server_info")}
    if not settings.has_tracking_server:
        servers["MLflow"] = (_mlflow(settings), settings.local_mlflow_ui, "/health")
    processes: dict[str, subprocess.Popen[bytes]] = {}
    try:
        for name, (command, _, _) in servers.items():
            processes[name] = _start(command, settings)
        for name, (_, url, path) in servers.items():
            _wait_for(name, f"{url}{path}", processes[name])
            say(f"{name:<8} {url}")
        say("Press Ctrl-C to stop.")
        while all(process.poll() is None for process in processes.values()):
            time.sleep(0.5)
        ended = next(name for name, process in processes.items() if process.poll() is not None)
        raise BatchAssetsError(f"{ended} ended with status {processes[ended].returncode}; its last lines are above")
    except KeyboardInterrupt:
        say("Stopping.")
    finally:
        for process in processes.values():
            _stop(process)


def _dagster(settings: Settings) -> list[str]:
    workspace = Path(__file__).parent.parent / "workspace.yaml"
    location = ["-w", str(workspace)] if workspace.exists() else ["-m", "batch_assets.definitions"]
    address = ["-h", "127.0.0.1", "-p", str(settings.ui_port)]
    return [sys.executable, "-m", "dagster", "dev", *location, *address, "--log-level", "warning"]


def _mlflow(settings: Settings) -> list[str]:
    store = ["--artifacts-destination", settings.artifact_root.as_uri()]
    address = ["--host", "127.0.0.1", "--port", str(settings.mlflow_port), "--workers", "1"]
    return [sys.executable, "-m", "mlflow", "server", *store, *address]


def _start(command: list[str], settings: Settings) -> "subprocess.Popen[bytes]":
    environment = {
        **os.environ,
        # Both servers look for the programs of their own environment.
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]),
        f"{PREFIX}HOME": str(settings.home),
        # Not on the command line: the address of a store may hold a password, and others can list processes.
        "MLFLOW_BACKEND_STORE_URI": settings.tracking_uri,
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    }
    # A shell starts background jobs with interrupts ignored, and Dagster would inherit that and never stop.
    return subprocess.Popen(
        command,
        env=environment,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL) and None,
    )


def _wait_for(name: str, url: str, process: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise BatchAssetsError(f"{name} ended with status {process.returncode} while it was starting")
        try:
            if httpx.get(url, timeout=5).is_success:
                return
        except httpx.TransportError:
            pass  # not listening yet
        time.sleep(0.3)
    raise BatchAssetsError(f"{name} didn't answer at {url} within {_START_SECONDS:.0f} seconds")


def _stop(process: "subprocess.Popen[bytes]") -> None:
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _interrupt(number: int, frame: object) -> None:
    # make hands on a signal that this process has got as well, and people press Ctrl-C twice: a second interrupt would
    # end the stopping half-way, and leave a server behind.
    for one in _ENDING:
        signal.signal(one, signal.SIG_IGN)
    raise KeyboardInterrupt

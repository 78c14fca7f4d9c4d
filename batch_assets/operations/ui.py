"""Serve the Dagster UI and the MLflow UI on loopback; they start and stop together."""

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
from batch_assets.operations.preflight import check_port
from batch_assets.settings import PREFIX, Settings

_START_SECONDS = 120.0
_STOP_SECONDS = 20.0
_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def serve(settings: Settings, say: Callable[[str], None]) -> None:
    """Serve until interrupted or until a server exits.

    Args:
        settings: the ports and the state.
        say: called with each message for the user.

    Raises:
        BatchAssetsError: a port is in use, or a server does not start or exits by itself.
    """
    check_port(settings.ui_port, f"{PREFIX}UI_PORT")
    check_port(settings.mlflow_port, f"{PREFIX}MLFLOW_PORT")
    connect(settings)
    for number in _STOP_SIGNALS:
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
        raise BatchAssetsError(f"{ended} exited with status {processes[ended].returncode}: see its output above")
    except KeyboardInterrupt:
        say("Stopping.")
    finally:
        for process in processes.values():
            _stop(process)


def _dagster(settings: Settings) -> list[str]:
    workspace = Path(__file__).parents[2] / "workspace.yaml"
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
        # Both servers look for programs in their environment.
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]),
        f"{PREFIX}HOME": str(settings.home),
        # Not on the command line: a store's address may contain a password, and other users can list processes.
        "MLFLOW_BACKEND_STORE_URI": settings.tracking_uri,
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    }
    # A shell starts background jobs with interrupts ignored; Dagster would inherit that and never stop.
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
            raise BatchAssetsError(f"{name} exited with status {process.returncode} at its start: see its output above")
        try:
            if httpx.get(url, timeout=5).is_success:
                return
        except httpx.TransportError:
            pass  # not listening yet
        time.sleep(0.3)
    raise BatchAssetsError(f"{name} did not answer at {url} within {_START_SECONDS:.0f} seconds: see its output above")


def _stop(process: "subprocess.Popen[bytes]") -> None:
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _interrupt(number: int, frame: object) -> None:
    # make forwards a signal that this process has already received, and people press Ctrl-C twice. A second interrupt
    # would abort the shutdown and leave a server running.
    for one in _STOP_SIGNALS:
        signal.signal(one, signal.SIG_IGN)
    raise KeyboardInterrupt

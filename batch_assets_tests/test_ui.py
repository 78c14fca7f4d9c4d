"""Stopping the UIs, using two small servers in their place."""

import signal
import socket
import subprocess
import sys
import time

import pytest

from batch_assets_tests.conftest import environment
from tools.ports import free_port

_SERVER = """
import http.server, signal, sys, time

class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()

    def log_message(self, *parts):
        pass

def slowly(number, frame):
    time.sleep(1)
    sys.exit()

signal.signal(signal.SIGTERM, slowly)
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""

_PROGRAM = f"""
import sys
from batch_assets.operations import ui
from batch_assets.settings import load_settings

def server(port):
    return [sys.executable, "-c", {_SERVER!r}, str(port)]

ui.connect = lambda settings: None
ui._dagster = lambda settings: server(settings.ui_port)
ui._mlflow = lambda settings: server(settings.mlflow_port)
ui.serve(load_settings(), lambda line: print(line, flush=True))
"""


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        return probe.connect_ex(("127.0.0.1", port)) != 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
def test_a_second_signal_during_shutdown_leaves_no_server_running(home, number):
    ports = (free_port(), free_port())
    env = environment(home, UI_PORT=str(ports[0]), MLFLOW_PORT=str(ports[1]))
    process = subprocess.Popen([sys.executable, "-c", _PROGRAM], env=env, stdout=subprocess.PIPE, text=True)
    try:
        assert any("Ctrl-C" in line for line in process.stdout)
        process.send_signal(number)
        time.sleep(0.3)
        process.send_signal(number)
        assert process.wait(30) == 0
        assert [_is_free(port) for port in ports] == [True, True]
    finally:
        process.kill()

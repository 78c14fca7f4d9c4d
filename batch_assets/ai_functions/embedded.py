"""The embedded endpoint: SmolLM2 behind llama.cpp's OpenAI-compatible server, started on first use."""

import json
import os
import subprocess
import sys
import time

import httpx

from batch_assets.ai_functions.endpoints import Endpoint
from batch_assets.errors import BatchAssetsError
from batch_assets.machine import cores
from batch_assets.models import smollm2

EMBEDDED_MODEL_NAME = smollm2.NAME
# One slot: llama.cpp's answers depend on what it computes in parallel, and a rerun must give the same answers.
# Four slots were a fifth faster on two cores, but 7 of 12 answers changed with the order of the requests.
_SLOTS = 1
# Requests queue at the server, so that it never idles. This limit is divided among the cores in plain SQL, and among
# the parallel branches of a query in ai_sql(); each needs at least one.
_REQUESTS_IN_FLIGHT = max(cores(), 8)
_START_SECONDS = 60.0
_ANSWER_SECONDS = 1800.0
# "less than 100 words" is about 130 tokens; the small model sometimes writes more.
EMBEDDED_PARAMETERS = {"max_tokens": 160, "temperature": 0, "cache_prompt": False}


class EmbeddedServer:
    """Starts and stops the server. The server also ends when the process that started it dies."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._process: subprocess.Popen[bytes] | None = None
        self._endpoint: Endpoint | None = None

    def start(self) -> Endpoint:
        """Start the server unless it is running, wait until it answers, and return its endpoint.

        Raises:
            BatchAssetsError: the server didn't start.
        """
        if self._endpoint is not None and self._process is not None and self._process.poll() is None:
            return self._endpoint
        command = [sys.executable, "-m", "batch_assets.ai_functions.llama_server"]
        options = {
            "--model": str(smollm2.gguf_file()),
            "--name": EMBEDDED_MODEL_NAME,
            "--slots": str(_SLOTS),
            "--threads": str(cores()),
        }
        command += [word for option in options.items() for word in option]
        # Threads that wait for each other would otherwise spin for long. Beside a busy process, that was ten times
        # slower; on idle cores, it makes no difference.
        environment = {"GOMP_SPINCOUNT": "1000", **os.environ}
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            code = self._process.wait()
            raise BatchAssetsError(f"the embedded model server exited with status {code} during startup")
        address = json.loads(line)["address"]
        self._wait_until_healthy(address)
        self._endpoint = Endpoint(
            name=self._name,
            base_url=f"{address}/v1",
            model=EMBEDDED_MODEL_NAME,
            parameters=EMBEDDED_PARAMETERS,
            requests_in_flight=_REQUESTS_IN_FLIGHT,
            # On a busy machine an answer can take minutes; a retry would only add load.
            timeout_seconds=_ANSWER_SECONDS,
            deadline_seconds=_ANSWER_SECONDS,
        )
        return self._endpoint

    def stop(self) -> None:
        """Stop the server if it is running."""
        if self._process is not None and self._process.stdin is not None:
            self._process.stdin.close()
            self._process.wait()
        self._process = self._endpoint = None

    def _wait_until_healthy(self, address: str) -> None:
        assert self._process is not None
        deadline = time.monotonic() + _START_SECONDS
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                raise BatchAssetsError(f"the embedded model server exited with status {self._process.returncode}")
            try:
                if httpx.get(f"{address}/health", timeout=5).status_code == httpx.codes.OK:
                    return
            except httpx.TransportError:
                pass  # not listening yet
            time.sleep(0.1)
        self.stop()
        raise BatchAssetsError(f"the embedded model server didn't answer within {_START_SECONDS:.0f} seconds")

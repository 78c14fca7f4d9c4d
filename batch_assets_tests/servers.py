"""Real servers on loopback: chat servers with preset replies or as a recording proxy, MLflow, S3, PostgreSQL."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from tempfile import TemporaryDirectory

import httpx
import pytest

from tools.ports import free_port

Reply = tuple[int, dict[str, str], bytes]

# Missing replies: the connection is closed, or nothing is sent until the server closes.
DROPPED: Reply = (0, {}, b"dropped")
HUNG: Reply = (0, {}, b"hung")


def completion(text: str, finish_reason: str = "stop") -> Reply:
    """A chat completion as an OpenAI-compatible server sends it."""
    body = {
        "model": "said-by-server",
        "choices": [{"index": 0, "finish_reason": finish_reason, "message": {"role": "assistant", "content": text}}],
        "usage": {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10},
    }
    return 200, {"Content-Type": "application/json"}, json.dumps(body).encode()


class _QuietServer(ThreadingHTTPServer):
    request_queue_size = 128  # simultaneous connections; any more would wait for over a second

    def handle_error(self, request: object, client_address: object) -> None:
        """Print nothing: clients that are told to stop disconnect in the middle of a reply."""


class ChatServer:
    """Answers POST requests with the result of ``reply``, which can be changed at any time.

    Tests rely on its log: ``requests`` holds the body and headers of every request, ``times`` its arrival time, and
    ``most_at_once`` the highest number of concurrent requests.
    """

    def __init__(self, reply: Callable[[dict, int], Reply]) -> None:
        self.reply = reply
        self.requests: list[tuple[dict, dict[str, str]]] = []
        self.times: list[float] = []
        self.most_at_once = 0
        self._at_once = 0
        self._closing = threading.Event()
        lock = threading.Lock()
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            wbufsize = -1  # headers and body are sent together, or the client's kernel delays its acknowledgement

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with lock:
                    server.requests.append((body, dict(self.headers)))
                    server.times.append(time.monotonic())
                    server._at_once += 1
                    server.most_at_once = max(server.most_at_once, server._at_once)
                    number = len(server.requests)
                try:
                    answer = server.reply(body, number)
                    if answer is HUNG:
                        server._closing.wait()
                finally:
                    with lock:
                        server._at_once -= 1
                status, headers, content = answer
                if not status:
                    self.close_connection = True
                    return
                self.send_response(status)
                for key, value in headers.items():
                    self.send_header(key, value)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *arguments: object) -> None:
                pass

        self._server = _QuietServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/v1"
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    @property
    def prompts(self) -> list[str]:
        return [body["messages"][0]["content"] for body, _ in self.requests]

    def __enter__(self) -> "ChatServer":
        return self

    def __exit__(self, *exception: object) -> None:
        self._closing.set()
        self._server.shutdown()
        self._server.server_close()


def passing_on_to(url: str) -> ChatServer:
    """A server that forwards every request to another server, so that its log shows the requests actually sent."""

    def reply(body: dict, number: int) -> Reply:
        answer = httpx.post(f"{url}/chat/completions", json=body, timeout=300)
        return answer.status_code, {"Content-Type": "application/json"}, answer.content

    return ChatServer(reply)


def serve(folder: Path, port: int, *options: str) -> subprocess.Popen[bytes]:
    """An MLflow server; its store and artifacts are in the folder unless the options override it."""
    folder.mkdir(exist_ok=True)
    command = [
        "server", "--backend-store-uri", f"sqlite:///{folder}/mlflow.db",
        "--artifacts-destination", f"{folder}/artifacts", "--host", "127.0.0.1", "--port", str(port), "--workers", "1",
        *options,
    ]  # fmt: skip
    env = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with (folder / "server.log").open("ab") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "mlflow", *command], env=env, stdout=log, stderr=log, start_new_session=True
        )
    try:
        _wait_for(lambda: httpx.get(f"http://127.0.0.1:{port}/health", timeout=2).is_success, 90, httpx.TransportError)
    except BaseException:
        stop(server)
        raise
    return server


def stop(server: subprocess.Popen[bytes]) -> None:
    os.killpg(server.pid, signal.SIGKILL)
    server.wait()


@contextmanager
def s3_server(*buckets: str) -> Iterator[dict[str, str]]:
    """Start an S3 server with some buckets, and yield the environment variables that point to it."""
    port = free_port()
    command = [sys.executable, "-m", "batch_assets_tests.s3_server", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    try:
        url = f"http://127.0.0.1:{port}"
        _wait_for(lambda: httpx.get(url).is_success, 60, httpx.TransportError)
        for bucket in buckets:
            httpx.put(f"{url}/{bucket}").raise_for_status()
        yield {
            "AWS_ENDPOINT_URL": url,
            "AWS_ALLOW_HTTP": "true",
            "AWS_ACCESS_KEY_ID": "somebody",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_REGION": "us-east-1",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }
    finally:
        stop(server)


@contextmanager
def postgres_server(*databases: str) -> Iterator[str]:
    """Start a PostgreSQL server with some databases, and yield its address; append /DATABASE to it."""
    import psycopg2

    found = [shutil.which("initdb"), *map(str, sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb")))]
    initdb = next((Path(path).resolve() for path in found if path), None)
    if initdb is None:
        pytest.fail("there is no PostgreSQL: apt-get install postgresql")
    with TemporaryDirectory(prefix="postgres") as name:
        folder, user = Path(name), {}
        if os.geteuid() == 0:  # PostgreSQL refuses to run as root
            user = {"user": "nobody", "group": "nogroup", "extra_groups": ()}
            shutil.chown(folder, "nobody", "nogroup")
        options = ["--auth=trust", "--username=somebody", "--encoding=UTF8", "--no-sync"]
        subprocess.run([initdb, "-D", folder / "data", *options], check=True, capture_output=True, cwd="/", **user)
        port = free_port()
        somebody = {"host": "127.0.0.1", "port": port, "user": "somebody", "dbname": "postgres"}
        options = ["-h", "127.0.0.1", "-p", str(port), "-k", "", "-F"]
        server = subprocess.Popen(
            [initdb.with_name("postgres"), "-D", folder / "data", *options],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd="/", start_new_session=True, **user,
        )  # fmt: skip
        try:
            _wait_for(lambda: not psycopg2.connect(**somebody).closed, 60, psycopg2.OperationalError)
            for database in databases:
                connection = psycopg2.connect(**somebody)
                connection.autocommit = True
                connection.cursor().execute(f'CREATE DATABASE "{database}"')
                connection.close()
            yield f"postgresql+psycopg2://somebody@127.0.0.1:{port}"
        finally:
            server.send_signal(signal.SIGINT)  # also ends the processes that serve its clients
            server.wait(30)


def _wait_for(is_up: Callable[[], bool], seconds: float, not_yet: type[Exception]) -> None:
    deadline = time.monotonic() + seconds
    while True:
        try:
            if is_up():
                return
        except not_yet:
            pass
        assert time.monotonic() < deadline, "the server doesn't answer"
        time.sleep(0.1)

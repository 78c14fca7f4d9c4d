"""Real HTTP servers on loopback: one that answers as it is told, and one that passes on and counts."""

import json
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx

Reply = tuple[int, dict[str, str], bytes]

# Replies that are none: the connection is closed, or nothing comes until the server is.
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
    request_queue_size = 128  # connections that come at the same time; others would wait for a second and more

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing: clients that are told to stop hang up in the middle of a reply."""


class ChatServer:
    """Answers POST requests with what ``reply`` says.

    Its log is what tests believe: ``requests`` has every body and its headers, ``times`` when it came, ``most_at_once``
    how many there were at the same time.
    """

    def __init__(self, reply: Callable[[dict, int], Reply]) -> None:
        self.requests: list[tuple[dict, dict[str, str]]] = []
        self.times: list[float] = []
        self.most_at_once = 0
        self._at_once = 0
        self._closing = threading.Event()
        lock = threading.Lock()
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            wbufsize = -1  # headers and body go out together, or the client's kernel waits before it says it got them

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with lock:
                    server.requests.append((body, dict(self.headers)))
                    server.times.append(time.monotonic())
                    server._at_once += 1
                    server.most_at_once = max(server.most_at_once, server._at_once)
                    number = len(server.requests)
                try:
                    answer = reply(body, number)
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
    """A server that hands every request to another one: its own log counts what really came over the wire."""

    def reply(body: dict, number: int) -> Reply:
        answer = httpx.post(f"{url}/chat/completions", json=body, timeout=300)
        return answer.status_code, {"Content-Type": "application/json"}, answer.content

    return ChatServer(reply)

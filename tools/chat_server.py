"""A chat server on loopback with a known limit: it answers a number of requests at once, each after a fixed time.

``python -m tools.chat_server SECONDS AT_ONCE`` prints its address. When its standard input closes, it prints as
JSON the number of requests, the seconds from the first request to the last answer, and the maximum of concurrent
requests.
"""

import asyncio
import json
import os
import sys
import time


class ChatServer:
    """Answers requests and counts them."""

    def __init__(self, seconds: float, at_once: int) -> None:
        self._seconds, self._slots = seconds, asyncio.Semaphore(at_once)
        self._requests, self._busy, self._most = 0, 0, 0
        self._first = self._last = 0.0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer the requests of one connection."""
        while head := await self._head(reader):
            lengths = [int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
            await reader.readexactly(sum(lengths))  # a request for the list of models has no body
            self._first = self._first or time.monotonic()
            self._requests += 1
            async with self._slots:
                self._busy += 1
                self._most = max(self._most, self._busy)
                await asyncio.sleep(self._seconds)
                self._busy -= 1
            writer.write(_ANSWER)
            await writer.drain()
            self._last = time.monotonic()
        writer.close()

    async def _head(self, reader: asyncio.StreamReader) -> bytes:
        try:
            return await reader.readuntil(b"\r\n\r\n")
        except asyncio.IncompleteReadError:
            return b""

    def report(self) -> dict[str, float]:
        """Counts and times of the requests so far."""
        return {"requests": self._requests, "seconds": self._last - self._first, "most_at_once": self._most}


_BODY = json.dumps(
    {
        "model": "m",
        "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "fine"}}],
        "usage": {"prompt_tokens": 7, "completion_tokens": 3},
    }
).encode()
_ANSWER = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (len(_BODY), _BODY)


async def main() -> None:
    """Serve until standard input closes."""
    server = ChatServer(float(sys.argv[1]), int(sys.argv[2]))
    listening = await asyncio.start_server(server.serve, "127.0.0.1", 0, backlog=1024)
    port = listening.sockets[0].getsockname()[1]
    print(json.dumps({"url": f"http://127.0.0.1:{port}/v1"}), flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    print(json.dumps(server.report()), flush=True)
    os._exit(0)  # connections may still be open


if __name__ == "__main__":
    asyncio.run(main())

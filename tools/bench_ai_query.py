"""Benchmark how well ``ai_query`` keeps a chat server busy.

Run it with ``make bench``, or one part with ``python -m tools.bench_ai_query steady|llama [runs]``.

``steady`` uses a server that answers 64 requests at a time in 200 ms each, so its limit is known, and compares with one
request at a time. ``llama`` uses the embedded llama.cpp server, and compares with the best load without Spark. Both
measure from the first request to the last answer, and print Spark's own time separately.
"""

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import httpx

from batch_assets.ai_functions.embedded import EmbeddedServer
from batch_assets.ai_functions.endpoints import Endpoint
from batch_assets.ai_functions.functions import register_ai_functions
from batch_assets.ai_functions.planner import ai_sql
from batch_assets.resources.spark import SparkResource
from batch_assets.sources.aclsum import ACLSumDataset

_SECONDS, _AT_ONCE, _ROWS = 0.2, 64, 1000
_PROMPT = "Based on the following document, provide a summary in less than 100 words. Document: "


@contextmanager
def _server() -> Iterator[tuple[str, dict[str, float]]]:
    command = [sys.executable, "-m", "tools.chat_server", str(_SECONDS), str(_AT_ONCE)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin is not None and process.stdout is not None
    report: dict[str, float] = {}
    yield json.loads(process.stdout.readline())["url"], report
    process.stdin.close()
    report |= json.loads(process.stdout.readline())
    process.wait()


def steady(runs: int) -> None:
    """Use a server with a known limit."""
    spark = SparkResource(master="local[*,4]").session
    limit = _AT_ONCE / _SECONDS
    rates, around = [], []
    for _ in range(runs):
        began = time.monotonic()
        with _server() as (url, report):
            endpoint = Endpoint(name="e", base_url=url, model="m", requests_in_flight=_AT_ONCE)
            register_ai_functions(spark, {"e": endpoint})
            query = f"SELECT ai_query('e', concat('row ', id)) AS said FROM range(0, {_ROWS}, 1, 8)"
            assert len(ai_sql(spark, query).collect()) == _ROWS
        assert (report["requests"], report["most_at_once"] <= _AT_ONCE) == (_ROWS, True)
        rates.append(_ROWS / report["seconds"])
        around.append(time.monotonic() - began - report["seconds"])
    with _server() as (url, report), httpx.Client() as client:
        for number in range(20):
            _ask(client, url, "m", f"row {number}")
    one = report["requests"] / report["seconds"]
    rate = statistics.median(rates)
    _say(
        f"{_ROWS} rows, a server that answers in {_SECONDS * 1000:.0f} ms, {_AT_ONCE} at a time: {limit:.0f} requests/s"
    )
    _say(f"ai_query          {rate:7.1f} requests/s ({min(rates):.1f} to {max(rates):.1f})")
    _say(f"one at a time     {one:7.1f} requests/s")
    _say(f"  {rate / limit:.2f} of the server's limit (wanted: 0.90), {rate / one:.1f} times one at a time")
    _say(f"  the statement took {statistics.median(around):.1f} s around its requests (start of workers and server)")
    spark.stop()


def llama(runs: int) -> None:
    """Use the embedded server with the embedded model on real documents."""
    spark = SparkResource(master="local[*,4]").session
    server = EmbeddedServer("smollm2")
    endpoint = server.start()
    texts = [_PROMPT + (item.document or "") for item in ACLSumDataset("test", 16).held_out(16)]
    register_ai_functions(spark, {"smollm2": endpoint})
    spark.createDataFrame([(text,) for text in texts], "text string").createOrReplaceTempView("papers")

    def ours() -> None:
        rows = ai_sql(spark, "SELECT ai_query('smollm2', text) AS said FROM papers").collect()
        assert all(row.said for row in rows)

    def bare() -> None:
        with httpx.Client(timeout=600) as client, ThreadPoolExecutor(endpoint.requests_in_flight) as pool:
            list(
                pool.map(lambda text: _ask(client, endpoint.base_url, endpoint.model, text, endpoint.parameters), texts)
            )

    # Alternate, because the speed of the machine varies.
    seconds: dict[str, list[float]] = {"ours": [], "bare": []}
    for _ in range(runs):
        seconds["ours"].append(_time(ours))
        seconds["bare"].append(_time(bare))
    server.stop()
    with_spark, without = (len(texts) / statistics.median(seconds[name]) for name in ("ours", "bare"))
    _say(f"{len(texts)} abstracts, llama.cpp with SmolLM2 on this machine")
    _say(f"ai_query          {with_spark:7.2f} documents/s")
    _say(f"without Spark     {without:7.2f} documents/s")
    _say(f"  {with_spark / without:.2f} of the same server under the best load")
    spark.stop()


def _ask(client: httpx.Client, url: str, model: str, text: str, parameters: dict[str, object] | None = None) -> None:
    body = {**(parameters or {}), "model": model, "messages": [{"role": "user", "content": text}]}
    client.post(f"{url}/chat/completions", json=body).raise_for_status()


def _time(work: Callable[[], None]) -> float:
    began = time.monotonic()
    work()
    return time.monotonic() - began


def _say(line: str) -> None:
    print(line, flush=True)


def main() -> None:
    """Run the named parts, or both."""
    parts: dict[str, Callable[[int], None]] = {"steady": steady, "llama": llama}
    names = [name for name in sys.argv[1:] if name in parts] or list(parts)
    runs = next((int(name) for name in sys.argv[1:] if name.isdigit()), 3)
    for name in names:
        parts[name](runs)


if __name__ == "__main__":
    main()

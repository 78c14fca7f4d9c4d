"""Progress messages: rows done, rate and time left."""

import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_SECONDS = 5.0
_WIDTH = 24


@contextmanager
def progress(
    what: str, total: int | None, count: Callable[[], int], report: Callable[[str], None], seconds: float = _SECONDS
) -> Iterator[None]:
    """Report the progress of the block every few seconds, if it has changed.

    Args:
        what: start of each message.
        total: number of rows to do, None if unknown.
        count: returns the rows done so far, including those done before the block; called from another thread.
        report: called with each progress message.
        seconds: time between two messages.
    """
    finished = threading.Event()
    first, started = count(), time.monotonic()

    def watch() -> None:
        last = 0
        while not finished.wait(seconds):
            done = count() - first
            if done != last:
                last = done
                report(_line(what, done, total, time.monotonic() - started))

    thread = threading.Thread(target=watch, name="progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        finished.set()
        thread.join()


def is_progress(line: str) -> bool:
    """Whether a message comes from ``progress``."""
    return re.search(r": \[[#.]+\] ", line) is not None


def _line(what: str, done: int, total: int | None, seconds: float) -> str:
    if total is None:
        return f"{what}: [{'.' * _WIDTH}] {done} rows, {done / seconds:.1f} rows/s"
    filled = round(_WIDTH * min(done / total, 1)) if total else _WIDTH
    bar = "#" * filled + "." * (_WIDTH - filled)
    rate = done / seconds
    return f"{what}: [{bar}] {done} of {total} rows, {rate:.1f} rows/s, {max(total - done, 0) / rate:.0f} s left"

"""Rows done, rate and time left, while workers are busy."""

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
    """Report how far the block has come, every few seconds, when something has changed.

    Args:
        what: start of each line.
        total: rows that there are to do, None if nobody knows.
        count: rows that are done now, those from before the block among them; called from another thread.
        report: takes a line.
        seconds: time between two lines.
    """
    over = threading.Event()
    first, started = count(), time.monotonic()

    def watch() -> None:
        last = 0
        while not over.wait(seconds):
            done = count() - first
            if done != last:
                last = done
                report(_line(what, done, total, time.monotonic() - started))

    thread = threading.Thread(target=watch, name="progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def is_progress(line: str) -> bool:
    """Whether a line is one of those that ``progress`` reports."""
    return re.search(r": \[[#.]+\] ", line) is not None


def _line(what: str, done: int, total: int | None, seconds: float) -> str:
    if total is None:
        return f"{what}: [{'.' * _WIDTH}] {done} rows, {done / seconds:.1f} rows/s"
    filled = round(_WIDTH * min(done / total, 1)) if total else _WIDTH
    bar = "#" * filled + "." * (_WIDTH - filled)
    rate = done / seconds
    return f"{what}: [{bar}] {done} of {total} rows, {rate:.1f} rows/s, {max(total - done, 0) / rate:.0f} s left"

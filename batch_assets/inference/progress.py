"""Rows done, rate and time left, while workers are busy."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_SECONDS = 5.0


@contextmanager
def progress(
    what: str, total: int, count: Callable[[], int], report: Callable[[str], None], seconds: float = _SECONDS
) -> Iterator[None]:
    """Report how far the block has come, every few seconds, when something has changed.

    Args:
        what: start of each line.
        total: rows that there are to do.
        count: rows that are done now; called from another thread.
        report: takes a line.
        seconds: time between two lines.
    """
    done = threading.Event()
    first, started = count(), time.monotonic()

    def watch() -> None:
        last = first
        while not done.wait(seconds):
            now = count()
            if now != last:
                last = now
                rate = (now - first) / (time.monotonic() - started)
                report(f"{what}: {now} of {total} rows, {rate:.1f} rows/s, {max(total - now, 0) / rate:.0f} s left")

    thread = threading.Thread(target=watch, name="progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()

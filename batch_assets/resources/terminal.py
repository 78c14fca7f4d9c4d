"""Terminal output of a run: one line per message of an asset, without Dagster's own messages."""

import logging
import shutil
import sys
from typing import Any

import dagster as dg

from batch_assets.scoring.progress import is_progress

_CLEAR_LINE = "\r\x1b[2K"


class _LineFormatter(logging.Formatter):
    """Each reason of a failure is printed once."""

    def format(self, record: logging.LogRecord) -> str:
        meta: dict[str, Any] = getattr(record, "dagster_meta", {})
        step = meta.get("step_key") or ""
        text = meta.get("orig_message") or record.getMessage()
        event = meta.get("dagster_event")
        error = getattr(getattr(event, "event_specific_data", None), "error", None)
        # The failure of a run repeats the errors of its steps.
        if error is not None and getattr(event, "event_type", None) != dg.DagsterEventType.RUN_FAILURE:
            while error.cause is not None:
                error = error.cause
            message = error.message.strip()
            if error.cls_name == dg.Failure.__name__:
                # Without the reasons of failed batches, in parentheses, which were printed when they failed.
                message = message.partition(" (")[0].rpartition(": ")[2]
            text = f"{text} {message}"
        return f"{self.formatTime(record, '%H:%M:%S')}  {step:<20}  {text}"


class _TerminalHandler(logging.StreamHandler[Any]):
    """Writes lines; in a terminal, a progress bar replaces the previous one."""

    def __init__(self) -> None:
        super().__init__(sys.stdout)
        self._bar_is_shown = False

    def emit(self, record: logging.LogRecord) -> None:
        if not self.stream.isatty():
            super().emit(record)
            return
        line = self.format(record)
        is_bar = is_progress(line)
        # A bar that wraps to a second line could not be overwritten.
        text = line[: shutil.get_terminal_size().columns - 1] if is_bar else f"{line}\n"
        self.stream.write(f"{_CLEAR_LINE if self._bar_is_shown else ''}{text}")
        self.flush()
        self._bar_is_shown = is_bar


@dg.logger({}, description="Prints one line per message of an asset, and the reason of each failure.")
def terminal_logger(init_context: dg.InitLoggerContext) -> logging.Logger:
    """Log messages of level INFO and above to standard output, one line each."""
    handler = _TerminalHandler()
    handler.setFormatter(_LineFormatter())
    logger = logging.Logger("batch_assets.terminal", level=logging.INFO)
    logger.addHandler(handler)
    return logger

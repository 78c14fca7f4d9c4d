"""How a run looks in a terminal: a line for each thing that an asset says, without Dagster's own chatter."""

import logging
import sys
from typing import Any

import dagster as dg


class _LineFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        meta: dict[str, Any] = getattr(record, "dagster_meta", {})
        step = meta.get("step_key") or ""
        text = meta.get("orig_message") or record.getMessage()
        event = meta.get("dagster_event")
        error = getattr(getattr(event, "event_specific_data", None), "error", None)
        if error is not None:
            while error.cause is not None:
                error = error.cause
            text = f"{text} {error.message.strip()}"
        return f"{self.formatTime(record, '%H:%M:%S')}  {step:<20}  {text}"


@dg.logger({}, description="One line for each message of an asset; failures with their reason.")
def terminal_logger(init_context: dg.InitLoggerContext) -> logging.Logger:
    """Log messages of level INFO and above to standard output, one line each."""
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(_LineFormatter())
    logger = logging.Logger("batch_assets.terminal", level=logging.INFO)
    logger.addHandler(handler)
    return logger

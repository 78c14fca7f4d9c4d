"""The error that a person can put right, and how commands end."""

import re
from enum import IntEnum

_LONGEST_REASON = 500


class ExitStatus(IntEnum):
    """How a command of batch-assets ends."""

    meaning: str

    def __new__(cls, number: int, meaning: str) -> "ExitStatus":
        """A status with what it means."""
        status = int.__new__(cls, number)
        status._value_ = number
        status.meaning = meaning
        return status

    DONE = 0, "Everything was done, or was up to date."
    FAILED = 1, "An asset failed, or you answered no to a question. Tables of the failed batches are as they were."
    REFUSED = 2, "Something has to be put right first. One line on standard error says what, where and what to do."


class BatchAssetsError(Exception):
    """Something is wrong that the user can mend; the message says what, where and what to do."""


def reason(error: Exception) -> str:
    """The line that says what went wrong; of an error from a worker, the last line of the worker's traceback."""
    lines = [line for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    raised = [line for line in lines if re.match(r"[A-Za-z_][\w.]*(Error|Exception)\b.*: ", line)]
    return (raised[-1] if raised else lines[0])[:_LONGEST_REASON]

"""The error class for problems that users can fix, and the exit statuses of commands."""

import errno
import re
from enum import IntEnum

_LONGEST_REASON = 500
# Of an OSError that says nothing about what was to be read: the disk, a limit or a permission.
_OF_THIS_MACHINE = {
    *(errno.EACCES, errno.EPERM, errno.EROFS),
    *(errno.EDQUOT, errno.EIO, errno.EMFILE, errno.ENFILE, errno.ENOSPC),
}


class ExitStatus(IntEnum):
    """Exit status of a batch-assets command."""

    meaning: str

    def __new__(cls, number: int, meaning: str) -> "ExitStatus":
        """Create a status with its meaning."""
        status = int.__new__(cls, number)
        status._value_ = number
        status.meaning = meaning
        return status

    DONE = 0, "Everything was done or was already up to date."
    FAILED = 1, "An asset failed, or you answered no to a question. The tables of failed batches are unchanged."
    REFUSED = 2, "A problem must be fixed first. One line on standard error says what failed, where, and what to do."


class BatchAssetsError(Exception):
    """A problem that the user can fix; the message says what failed, where, and what to do."""


def raise_if_of_this_machine(error: Exception) -> None:
    """Raise an error again if a disk, a limit or a permission caused it, before it is taken for bad input.

    Raises:
        OSError: the error.
    """
    if isinstance(error, OSError) and error.errno in _OF_THIS_MACHINE:
        raise error


def reason(error: Exception) -> str:
    """The line of an error that says what went wrong; for a worker's error, the last line of its traceback."""
    lines = [line for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    raised = [line for line in lines if re.match(r"[A-Za-z_][\w.]*(Error|Exception)\b.*: ", line)]
    return (raised[-1] if raised else lines[0])[:_LONGEST_REASON]

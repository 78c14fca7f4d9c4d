"""The error that a person can put right, and how commands end."""

from enum import IntEnum


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

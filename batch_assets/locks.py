"""File locks between processes of one machine, released when their holder dies."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from batch_assets.errors import BatchAssetsError


def is_held(path: Path) -> bool:
    """Whether a process holds the lock file ``path`` now; does not create the file."""
    if not path.exists():
        return False
    with path.open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


@contextmanager
def locked(path: Path, *, refusal: str | None = None) -> Iterator[None]:
    """Wait for the lock file ``path``, and hold it while the block runs.

    Args:
        path: the file; created if missing.
        refusal: if given, message of the error to raise instead of waiting.

    Raises:
        BatchAssetsError: another process holds the lock, and ``refusal`` was given.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if refusal is None else fcntl.LOCK_NB))
        except BlockingIOError as error:
            raise BatchAssetsError(refusal or "") from error
        yield

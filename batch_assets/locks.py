"""A lock between processes of one machine that is free again when its holder dies."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from batch_assets.errors import BatchAssetsError


def is_held(path: Path) -> bool:
    """Whether a process holds the lock file ``path`` now; makes nothing."""
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
    """Hold the lock file ``path`` while the block runs, after whoever holds it now.

    Args:
        path: the file; made if missing.
        refusal: message of the error that is raised instead of waiting.

    Raises:
        BatchAssetsError: somebody else holds the lock, and ``refusal`` was given.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if refusal is None else fcntl.LOCK_NB))
        except BlockingIOError as error:
            raise BatchAssetsError(refusal or "") from error
        yield

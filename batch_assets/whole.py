"""State that appears whole or not at all: it is made aside, then renamed."""

import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

# As long as Dagster waits for a database that is being written.
BUSY_SECONDS = 30
# SQLite would play what these hold into whatever database lies beside them.
_SQLITE_LEFTOVERS = ("-journal", "-wal", "-shm")


@contextmanager
def folder_aside(parent: Path, name: str) -> Iterator[Path]:
    """Give an empty folder on the disk of ``parent`` in which to make something, and remove it in the end.

    What killed processes left there goes too, so the caller must hold a lock.

    Args:
        parent: the folder that what is made will be moved to.
        name: what is made.
    """
    prefix = f".{name}-"
    for abandoned in parent.glob(f"{prefix}*/"):
        shutil.rmtree(abandoned)
    with tempfile.TemporaryDirectory(prefix=prefix, dir=parent) as aside:
        yield Path(aside)


def filled_tables(database: Path) -> set[str]:
    """Tables of an SQLite database that hold rows; of a file without anything, none.

    Raises:
        sqlite3.DatabaseError: it is not one, or is damaged.
    """
    with closing(sqlite3.connect(database, timeout=BUSY_SECONDS)) as connection:
        tables = [name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        return {name for name in tables if connection.execute(f'SELECT 1 FROM "{name}" LIMIT 1').fetchone()}


def move_database(made: Path, path: Path) -> None:
    """Move an SQLite database to its place, instead of a half-made one that may be there.

    Args:
        made: the database, closed.
        path: its place; no process may have it open.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    for old in (path, *(path.with_name(path.name + suffix) for suffix in _SQLITE_LEFTOVERS)):
        old.unlink(missing_ok=True)
    made.rename(path)

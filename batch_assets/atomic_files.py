"""Files that appear complete or not at all: created in a temporary folder, then renamed."""

import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

# How long Dagster waits for a locked database.
BUSY_SECONDS = 30
# SQLite would replay these files into any database next to them.
_SQLITE_LEFTOVERS = ("-journal", "-wal", "-shm")


@contextmanager
def staging_folder(parent: Path, name: str) -> Iterator[Path]:
    """Yield an empty temporary folder on the disk of ``parent``, and remove it at the end.

    Also removes what killed processes left there, so the caller must hold a lock.

    Args:
        parent: folder that the result will be moved to.
        name: name of the result.
    """
    prefix = f".{name}-"
    for abandoned in parent.glob(f"{prefix}*/"):
        shutil.rmtree(abandoned)
    with tempfile.TemporaryDirectory(prefix=prefix, dir=parent) as aside:
        yield Path(aside)


def filled_tables(database: Path) -> set[str]:
    """Names of the tables in an SQLite database that have rows; an empty file has none.

    Raises:
        sqlite3.DatabaseError: the file is damaged or not a database.
    """
    with closing(sqlite3.connect(database, timeout=BUSY_SECONDS)) as connection:
        tables = [name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        return {name for name in tables if connection.execute(f'SELECT 1 FROM "{name}" LIMIT 1').fetchone()}


def move_database(made: Path, path: Path) -> None:
    """Move an SQLite database into place, replacing a half-created one.

    Args:
        made: the new database, closed.
        path: its destination; no process may have it open.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    for old in (path, *(path.with_name(path.name + suffix) for suffix in _SQLITE_LEFTOVERS)):
        old.unlink(missing_ok=True)
    made.rename(path)

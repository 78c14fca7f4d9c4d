"""Dagster's storage under the home folder: made by one command at a time, whole or not at all."""

import os
import re
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import dagster as dg
import yaml
from dagster._core.storage.sqlite import LAST_KNOWN_STAMPED_SQLITE_ALEMBIC_REVISION
from dagster._core.storage.sqlite_storage import DagsterSqliteStorage
from sqlalchemy.exc import IntegrityError, ProgrammingError, SQLAlchemyError

from batch_assets.errors import BatchAssetsError
from batch_assets.locks import locked
from batch_assets.models.tracking import DRIVER
from batch_assets.settings import Settings, redacted
from batch_assets.whole import BUSY_SECONDS, filled_tables, folder_aside, move_database

_DAGSTER_YAML = {
    "telemetry": {"enabled": False},
    "nux": {"enabled": False},
    # Two Spark sessions would fight for one machine, two promotions for one alias.
    "concurrency": {"pools": {"granularity": "op", "default_limit": 1}, "runs": {"max_concurrent_runs": 4}},
    "run_retries": {"enabled": True, "max_retries": 1},
    # A run that was killed keeps others waiting until its slots are looked after.
    "run_monitoring": {"enabled": True, "poll_interval_seconds": 20, "free_slots_after_run_end_seconds": 30},
}
# What Dagster keeps in DAGSTER_HOME where dagster.yaml names no other storage.
_DATABASES = ("history/runs.db", "history/runs/index.db", "schedules/schedules.db")
# Eight that made the tables of one PostgreSQL database at once needed one retry at most.
_RETRIES, _RETRY_SECONDS = 10, 0.2
_STORAGES = {"storage", "run_storage", "event_log_storage", "schedule_storage"}


def prepare_dagster_home(settings: Settings) -> None:
    """Make DAGSTER_HOME under the home folder; a dagster.yaml that is there is left as it is."""
    with _prepared(settings):
        pass


def open_instance(settings: Settings) -> dg.DagsterInstance:
    """Open Dagster's storage, and make it if there is none.

    Raises:
        BatchAssetsError: it can't be opened.
    """
    with _prepared(settings) as folder:
        is_elsewhere = _is_elsewhere(folder)
        if not is_elsewhere:
            _make_missing(folder)
        return _open(folder, is_elsewhere)


def existing_instance(settings: Settings) -> dg.DagsterInstance | None:
    """Open Dagster's storage as it is; None where there is none yet, and then nothing is made.

    Raises:
        BatchAssetsError: it can't be opened.
    """
    folder = settings.dagster_home
    if not (folder / "dagster.yaml").exists():
        return None
    # No lock, which would be a new file: databases appear whole.
    is_elsewhere = _is_elsewhere(folder)
    if not is_elsewhere and not all(_is_made(folder, name) for name in _DATABASES):
        return None
    return _open(folder, is_elsewhere)


@contextmanager
def _prepared(settings: Settings) -> Iterator[Path]:
    """DAGSTER_HOME with its dagster.yaml; within it, no other command of this machine makes anything there."""
    folder = settings.dagster_home
    path = folder / "dagster.yaml"
    with locked(folder / ".lock"):
        if not path.exists():
            with folder_aside(folder, path.name) as aside:
                (aside / path.name).write_text(yaml.safe_dump(_DAGSTER_YAML, sort_keys=False))
                (aside / path.name).rename(path)
        os.environ["DAGSTER_HOME"] = str(folder)
        yield folder


def _make_missing(folder: Path) -> None:
    """Make the databases that are not there.

    Dagster would make them in their places, step by step, and never do the steps that a kill left undone.
    """
    missing = [name for name in _DATABASES if not _is_made(folder, name)]
    if missing:
        with _explained(folder, is_elsewhere=False), folder_aside(folder, "storage") as aside:
            DagsterSqliteStorage.from_local(str(aside)).dispose()
            for name in missing:
                move_database(aside / name, folder / name)


def _is_made(folder: Path, name: str) -> bool:
    """Whether a database is there and finished; Dagster notes the revision of the schema last.

    Raises:
        BatchAssetsError: it is damaged.
    """
    path = folder / name
    if not path.exists():
        return False
    try:
        filled = filled_tables(path)
        if "alembic_version" in filled:
            _repair_revision(folder, path)
        # Dagster can open what an older version of it has filled without noting a revision.
        return bool(filled)
    except sqlite3.DatabaseError as error:
        raise BatchAssetsError(f"{path} can't be read ({error}): {_restore(folder)}") from error


def _repair_revision(folder: Path, path: Path) -> None:
    """Remove the wrong one of two revisions, which two commands could note that made the database at once.

    Earlier versions of this package let them: one noted what it had made, and the other took that for the work of an
    old Dagster.

    Raises:
        BatchAssetsError: there are several for another reason.
    """
    wrong = LAST_KNOWN_STAMPED_SQLITE_ALEMBIC_REVISION
    with closing(sqlite3.connect(path, timeout=BUSY_SECONDS)) as database, database:
        revisions = {revision for (revision,) in database.execute("SELECT version_num FROM alembic_version")}
        if len(revisions - {wrong}) > 1:
            raise BatchAssetsError(
                f"{path} has several schema revisions ({', '.join(sorted(revisions))}), of which one can be true: "
                f"{_restore(folder)}"
            )
        if len(revisions) > 1:
            database.execute("DELETE FROM alembic_version WHERE version_num = ?", [wrong])


def _restore(folder: Path) -> str:
    return (
        f"restore {folder} from a backup, or move it away: the next command makes a new one, which keeps tables and "
        "models and forgets the runs"
    )


def _open(folder: Path, is_elsewhere: bool) -> dg.DagsterInstance:
    with _explained(folder, is_elsewhere):
        for _ in range(_RETRIES):
            try:
                return dg.DagsterInstance.from_config(str(folder))
            except (ProgrammingError, IntegrityError) as error:
                # The lock holds for one machine: a command on another may be making the tables of a shared database.
                if "already exists" not in str(error):
                    raise
                time.sleep(_RETRY_SECONDS)
        return dg.DagsterInstance.from_config(str(folder))


def _is_elsewhere(folder: Path) -> bool:
    """Whether dagster.yaml names another storage than the databases in its folder."""
    with _explained(folder, is_elsewhere=False):
        configured = yaml.safe_load((folder / "dagster.yaml").read_text()) or {}
        if not isinstance(configured, dict):
            raise TypeError("it is not a mapping of settings")
    return not _STORAGES.isdisjoint(configured)


@contextmanager
def _explained(folder: Path, is_elsewhere: bool) -> Iterator[None]:
    """Turn whatever goes wrong into a line; what the libraries of other storages raise has nothing in common."""
    try:
        yield
    except Exception as error:
        # Of a setting that is wrong, Dagster prints the whole schema first.
        unset = re.search(r'environment variable "(\w+)" which is not set', str(error))
        reason = f"{unset[1]} is not set" if unset else (str(error).strip().splitlines() or [type(error).__name__])[0]
        if isinstance(error, ImportError) or "import module dagster_postgres" in str(error):
            reason += f"; {DRIVER}"
        advice = f"fix {folder / 'dagster.yaml'}"
        if is_elsewhere:
            advice += ", or start the server that it names"
        elif isinstance(error, SQLAlchemyError | OSError):
            advice = f"make sure that the disk has room and that the folder can be written, or {_restore(folder)}"
        raise BatchAssetsError(
            f"Dagster's storage in {folder} can't be opened ({redacted(reason)}): {advice}"
        ) from error

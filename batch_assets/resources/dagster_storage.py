"""Dagster's storage under the home folder, created by one command at a time, completely or not at all."""

import os
import re
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import dagster as dg
import yaml
from sqlalchemy.exc import IntegrityError, ProgrammingError, SQLAlchemyError

from batch_assets.atomic_files import BUSY_SECONDS, filled_tables, move_database, staging_folder
from batch_assets.errors import BatchAssetsError
from batch_assets.locks import locked
from batch_assets.models.tracking import DRIVER_ADVICE
from batch_assets.resources.dagster_internals import LAST_KNOWN_STAMPED_SQLITE_ALEMBIC_REVISION, DagsterSqliteStorage
from batch_assets.settings import Settings, redacted

_DAGSTER_YAML = {
    "telemetry": {"enabled": False},
    "nux": {"enabled": False},
    # Two Spark sessions would compete for one machine, two promotions for one alias.
    "concurrency": {"pools": {"granularity": "op", "default_limit": 1}, "runs": {"max_concurrent_runs": 4}},
    "run_retries": {"enabled": True, "max_retries": 1},
    # A killed run keeps others waiting until its slots are freed.
    "run_monitoring": {"enabled": True, "poll_interval_seconds": 20, "free_slots_after_run_end_seconds": 30},
}
# Dagster's databases in DAGSTER_HOME, unless dagster.yaml configures another storage.
_DATABASES = ("history/runs.db", "history/runs/index.db", "schedules/schedules.db")
# Eight commands that created the tables of one PostgreSQL database at once needed one retry at most.
_RETRIES, _RETRY_SECONDS = 10, 0.2
_STORAGES = {"storage", "run_storage", "event_log_storage", "schedule_storage"}


def prepare_dagster_home(settings: Settings) -> None:
    """Create DAGSTER_HOME under the home folder; an existing dagster.yaml is kept."""
    with _locked_home(settings):
        pass


def open_instance(settings: Settings) -> dg.DagsterInstance:
    """Open Dagster's storage; create it if it does not exist.

    Raises:
        BatchAssetsError: the storage can't be opened.
    """
    with _locked_home(settings) as folder:
        has_other_storage = _has_other_storage(folder)
        if not has_other_storage:
            _create_missing(folder)
        return _open(folder, has_other_storage)


def existing_instance(settings: Settings) -> dg.DagsterInstance | None:
    """Open Dagster's storage if it exists; otherwise return None and create nothing.

    Raises:
        BatchAssetsError: the storage can't be opened.
    """
    folder = settings.dagster_home
    if not (folder / "dagster.yaml").exists():
        return None
    # Takes no lock, which would create a file: databases appear complete.
    has_other_storage = _has_other_storage(folder)
    if not has_other_storage and not all(_is_complete(folder, name) for name in _DATABASES):
        return None
    return _open(folder, has_other_storage)


@contextmanager
def _locked_home(settings: Settings) -> Iterator[Path]:
    """Yield DAGSTER_HOME with its dagster.yaml, while no other command on this machine can create files in it."""
    folder = settings.dagster_home
    path = folder / "dagster.yaml"
    with locked(folder / ".lock"):
        if not path.exists():
            with staging_folder(folder, path.name) as aside:
                (aside / path.name).write_text(yaml.safe_dump(_DAGSTER_YAML, sort_keys=False))
                (aside / path.name).rename(path)
        os.environ["DAGSTER_HOME"] = str(folder)
        yield folder


def _create_missing(folder: Path) -> None:
    """Create the missing databases.

    Dagster would create them in place, step by step, and would never finish the steps that a kill interrupted.
    """
    missing = [name for name in _DATABASES if not _is_complete(folder, name)]
    if missing:
        with _errors_in_one_line(folder, has_other_storage=False), staging_folder(folder, "storage") as aside:
            DagsterSqliteStorage.from_local(str(aside)).dispose()
            for name in missing:
                move_database(aside / name, folder / name)


def _is_complete(folder: Path, name: str) -> bool:
    """Whether a database exists and is complete; Dagster records the schema revision last.

    Raises:
        BatchAssetsError: the database is damaged.
    """
    path = folder / name
    if not path.exists():
        return False
    try:
        filled = filled_tables(path)
        if "alembic_version" in filled:
            _repair_revision(folder, path)
        # Dagster can open a database that an older version filled without recording a revision.
        return bool(filled)
    except sqlite3.DatabaseError as error:
        raise BatchAssetsError(f"{path} can't be read ({error}): {_restore(folder)}") from error


def _repair_revision(folder: Path, path: Path) -> None:
    """Remove the wrong one of two schema revisions.

    With earlier versions of this package, two commands could create the database at once. One recorded what it had
    created, and the other mistook that for the work of an old Dagster.

    Raises:
        BatchAssetsError: there are several revisions for another reason.
    """
    wrong = LAST_KNOWN_STAMPED_SQLITE_ALEMBIC_REVISION
    with closing(sqlite3.connect(path, timeout=BUSY_SECONDS)) as database, database:
        revisions = {revision for (revision,) in database.execute("SELECT version_num FROM alembic_version")}
        if len(revisions - {wrong}) > 1:
            raise BatchAssetsError(
                f"{path} has several schema revisions ({', '.join(sorted(revisions))}), but only one can be right: "
                f"{_restore(folder)}"
            )
        if len(revisions) > 1:
            database.execute("DELETE FROM alembic_version WHERE version_num = ?", [wrong])


def _restore(folder: Path) -> str:
    return (
        f"restore {folder} from a backup, or move it away: the next command creates a new one; tables and models are "
        "kept, but the history of runs is lost"
    )


def _open(folder: Path, has_other_storage: bool) -> dg.DagsterInstance:
    with _errors_in_one_line(folder, has_other_storage):
        for _ in range(_RETRIES):
            try:
                return dg.DagsterInstance.from_config(str(folder))
            except (ProgrammingError, IntegrityError) as error:
                # The lock covers one machine: a command on another may be creating the tables of a shared database.
                if "already exists" not in str(error):
                    raise
                time.sleep(_RETRY_SECONDS)
        return dg.DagsterInstance.from_config(str(folder))


def _has_other_storage(folder: Path) -> bool:
    """Whether dagster.yaml configures storage other than the databases in its folder."""
    with _errors_in_one_line(folder, has_other_storage=False):
        configured = yaml.safe_load((folder / "dagster.yaml").read_text()) or {}
        if not isinstance(configured, dict):
            raise TypeError("it is not a mapping of settings")
    return not _STORAGES.isdisjoint(configured)


@contextmanager
def _errors_in_one_line(folder: Path, has_other_storage: bool) -> Iterator[None]:
    """Turn any error into one line; the libraries of other storages share no base class for errors."""
    try:
        yield
    except Exception as error:
        # For a wrong setting, Dagster prints the whole schema first.
        unset = re.search(r'environment variable "(\w+)" which is not set', str(error))
        reason = f"{unset[1]} is not set" if unset else (str(error).strip().splitlines() or [type(error).__name__])[0]
        if isinstance(error, ImportError) or "import module dagster_postgres" in str(error):
            reason += f"; {DRIVER_ADVICE}"
        advice = f"fix {folder / 'dagster.yaml'}"
        if has_other_storage:
            advice += ", or start the server that it configures"
        elif isinstance(error, SQLAlchemyError | OSError):
            advice = f"make sure that the disk has space and the folder is writable, or {_restore(folder)}"
        raise BatchAssetsError(
            f"Dagster's storage in {folder} can't be opened ({redacted(reason)}): {advice}"
        ) from error

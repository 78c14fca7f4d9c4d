"""The MLflow store: where it is, and the experiment."""

import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import httpx

from batch_assets.errors import BatchAssetsError
from batch_assets.locks import locked
from batch_assets.settings import Settings, redacted
from batch_assets.whole import filled_tables, folder_aside, move_database

# SQLAlchemy takes postgresql:// for another driver than the one that Dagster brings.
DRIVER = "run pip install 'batch_assets[postgres]', and begin the address with postgresql+psycopg2://"
_LOOK_SECONDS = 5
# What connects to each takes as a limit of time.
_DATABASES: dict[str, dict[str, int]] = {
    "sqlite": {},
    "postgresql": {"connect_timeout": _LOOK_SECONDS},
    "mysql": {"connect_timeout": _LOOK_SECONDS},
    "mssql": {},
}

# A database in which MLflow tracks runs has an experiment once it is made; one that is only a registry may have none.
_FILLED = ("experiments", "registered_models")
# What the making of the tables itself fills.
_FILLED_BY_MIGRATIONS = {"alembic_version", "workspaces"}


def connect(settings: Settings) -> Any:
    """Point MLflow at the store, and make the store and the experiment if they are missing.

    Returns:
        An ``mlflow.MlflowClient``.

    Raises:
        BatchAssetsError: the store can't be used.
    """
    _point_at(settings)
    import mlflow

    # MLflow creates databases and experiments without checking whether another process is creating them.
    with _explained(settings), locked(settings.home / "mlflow" / ".lock"):
        for uri in _uris(settings):
            _make_database(uri)
        client = mlflow.MlflowClient()
        if client.get_experiment_by_name(settings.experiment) is None:
            location = settings.artifact_root.as_uri() if settings.has_embedded_store else None
            client.create_experiment(settings.experiment, artifact_location=location)
        if settings.registry_uri != settings.tracking_uri:
            client.search_registered_models(max_results=1)
    return client


def exists(settings: Settings) -> bool:
    """Whether the store exists. Creates nothing, and gives up on an unreachable store within seconds.

    Raises:
        BatchAssetsError: the store can't be reached.
    """
    return all(_is_there(uri) for uri in _uris(settings))


def look(settings: Settings) -> Any | None:
    """Point MLflow at the store as it is: nothing is made, and a store that is out of reach is given up soon.

    Returns:
        An ``mlflow.MlflowClient``; None where nobody has made the store yet.

    Raises:
        BatchAssetsError: the store can't be used.
    """
    if not exists(settings):
        return None
    # MLflow's own are 7 retries of 2 minutes each.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", str(_LOOK_SECONDS))
    _point_at(settings)
    import mlflow

    client = mlflow.MlflowClient()
    with _explained(settings):
        client.get_experiment_by_name(settings.experiment)
        client.search_registered_models(max_results=1)
    return client


@contextmanager
def _explained(settings: Settings) -> Iterator[None]:
    """Turn what MLflow raises where a store can't be used into a line."""
    from mlflow.exceptions import MlflowException

    stores = " and ".join(map(redacted, _uris(settings)))
    try:
        yield
    except MlflowException as error:
        raise BatchAssetsError(f"the MLflow store {stores} can't be used: {redacted(error.message)}") from error
    except ImportError as error:
        raise BatchAssetsError(f"the MLflow store {stores} can't be used: {error}; {DRIVER}") from error


def _uris(settings: Settings) -> list[str]:
    return list(dict.fromkeys((settings.tracking_uri, settings.registry_uri)))


def _is_there(uri: str) -> bool:
    """Whether a store has been made; MLflow itself would make it, and ask for minutes where it is out of reach.

    Raises:
        BatchAssetsError: it can't be reached.
    """
    scheme = urlsplit(uri).scheme
    if scheme in ("http", "https"):
        try:
            status = httpx.get(f"{uri.rstrip('/')}/health", timeout=_LOOK_SECONDS).status_code
        except httpx.HTTPError as error:
            raise _out_of_reach(uri, str(error) or type(error).__name__) from None
        except httpx.InvalidURL:
            raise _out_of_reach(uri, "it is no address") from None
        if status >= httpx.codes.INTERNAL_SERVER_ERROR:
            raise _out_of_reach(uri, f"HTTP status {status}")
        return True
    if scheme in ("", "file"):
        return Path(unquote(urlsplit(uri).path)).exists()
    return _is_database_there(uri) if scheme.partition("+")[0] in _DATABASES else True


def _is_database_there(uri: str) -> bool:
    """Whether MLflow has made a database: a first experiment is the last thing that it makes.

    MLflow itself tries to connect ten times, and makes what is missing.
    """
    import sqlalchemy
    from sqlalchemy.exc import SQLAlchemyError

    try:
        url, file = sqlalchemy.make_url(uri), _sqlite_file(uri)
        if file is not None and not file.is_file():
            return False
        engine = sqlalchemy.create_engine(url, connect_args=_DATABASES[url.get_backend_name()])
        try:
            with engine.connect() as connection:
                made = [name for name in _FILLED if sqlalchemy.inspect(connection).has_table(name)]
                one = sqlalchemy.select(sqlalchemy.literal(1)).limit(1)
                return any(connection.execute(one.select_from(sqlalchemy.table(name))).first() for name in made)
        finally:
            engine.dispose()
    except ImportError as error:
        raise _out_of_reach(uri, str(error), DRIVER) from None
    except SQLAlchemyError as error:
        # Not the whole error, which may show the address.
        raise _out_of_reach(uri, str(getattr(error, "orig", None) or type(error).__name__)) from None


def _sqlite_file(uri: str) -> Path | None:
    """The file of an SQLite database; None where the address is one of something else."""
    found = re.fullmatch(r"sqlite(?:\+\w+)?:///((?!file:|:memory:)[^?]+)(?:\?.*)?", uri)
    return None if found is None else Path(found[1])


def _make_database(uri: str) -> None:
    """Make an SQLite database that is not there, or was left half-made by a command that was killed.

    MLflow would make it in its place, in dozens of steps, and could not go on after a kill. Only to be called by the
    holder of the lock.
    """
    file = _sqlite_file(uri)
    if file is None or _is_database_there(uri):
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    # If the database holds rows of another program, MLflow adds its tables beside them.
    if file.is_file() and not filled_tables(file) <= _FILLED_BY_MIGRATIONS:
        return
    import mlflow

    with folder_aside(file.parent, file.name) as aside:
        made = aside / file.name
        mlflow.MlflowClient(tracking_uri=f"sqlite:///{made}").search_experiments(max_results=1)
        move_database(made, file)


def _out_of_reach(uri: str, reason: str, advice: str | None = None) -> BatchAssetsError:
    file = _sqlite_file(uri)
    if advice is None and file is not None:
        advice = f"restore {file} from a backup, or move it away to get a new store, which has no runs and no models"
    advice = advice or "start its server, or fix MLFLOW_TRACKING_URI or MLFLOW_REGISTRY_URI"
    return BatchAssetsError(f"the MLflow store {redacted(uri)} can't be reached ({' '.join(reason.split())}): {advice}")


def _point_at(settings: Settings) -> None:
    """Set MLflow up for the store, before it is imported for the first time."""
    # Nobody should wait for a survey of a library that the user never called.
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    # In a folder with a uv.lock, MLflow would keep that lock file with each model, as if the model needed all of it.
    os.environ.setdefault("MLFLOW_UV_AUTO_DETECT", "false")
    os.environ.setdefault("MLFLOW_LOG_UV_FILES", "false")
    os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
    # Our own lines say what goes on; a bar for every small file would bury them.
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    for chatty in ("alembic", "mlflow.store.db.utils", "mlflow.transformers"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    import mlflow

    mlflow.set_tracking_uri(settings.tracking_uri)
    mlflow.set_registry_uri(settings.registry_uri)


def reachable(artifact_uri: str) -> str:
    """An address in the artifact store that a machine without MLflow's settings understands."""
    if urlsplit(artifact_uri).scheme != "mlflow-artifacts":
        return artifact_uri
    import mlflow
    from mlflow.store.artifact.mlflow_artifacts_repo import MlflowArtifactsRepository

    return str(MlflowArtifactsRepository.resolve_uri(artifact_uri, redacted(mlflow.get_tracking_uri())))


def experiment_id(client: Any, settings: Settings) -> str:
    """Id of the configured experiment."""
    return str(client.get_experiment_by_name(settings.experiment).experiment_id)

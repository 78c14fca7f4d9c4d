"""Connect to the MLflow store, and create it and the experiment if they are missing."""

import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import unquote, urlsplit

import httpx

from batch_assets.atomic_files import filled_tables, move_database, staging_folder
from batch_assets.errors import BatchAssetsError
from batch_assets.locks import locked
from batch_assets.mlflow_client import MlflowClient
from batch_assets.settings import Settings, redacted

# For postgresql://, SQLAlchemy would use another driver than the one that Dagster installs.
DRIVER_ADVICE = "run pip install 'batch_assets[postgres]', and start the address with postgresql+psycopg2://"
_TIMEOUT_SECONDS = 5
# Connection arguments that set a timeout, by database.
_TIMEOUT_ARGUMENTS: dict[str, dict[str, int]] = {
    "sqlite": {},
    "postgresql": {"connect_timeout": _TIMEOUT_SECONDS},
    "mysql": {"connect_timeout": _TIMEOUT_SECONDS},
    "mssql": {},
}

# A complete tracking database has an experiment. A complete registry may have only models.
_NEVER_EMPTY = ("experiments", "registered_models")
# Tables that MLflow fills when it creates the database.
_FILLED_ON_CREATION = {"alembic_version", "workspaces"}


def connect(settings: Settings) -> MlflowClient:
    """Point MLflow at the store, and create the store and the experiment if they are missing.

    Returns:
        An ``mlflow.MlflowClient``.

    Raises:
        BatchAssetsError: the store can't be used.
    """
    _configure_mlflow(settings)
    import mlflow

    # MLflow creates databases and experiments without checking whether another process is creating them.
    with _short_errors(settings), locked(settings.home / "mlflow" / ".lock"):
        for uri in _uris(settings):
            _make_database(uri)
        client: MlflowClient = mlflow.MlflowClient()
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
    return all(_store_exists(uri) for uri in _uris(settings))


def existing_client(settings: Settings) -> MlflowClient | None:
    """Point MLflow at the store if it exists. Creates nothing, and gives up on an unreachable store within seconds.

    Returns:
        An ``mlflow.MlflowClient``; None if the store does not exist yet.

    Raises:
        BatchAssetsError: the store can't be used.
    """
    if not exists(settings):
        return None
    # MLflow's defaults are 7 retries of 2 minutes each.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", str(_TIMEOUT_SECONDS))
    _configure_mlflow(settings)
    import mlflow

    client: MlflowClient = mlflow.MlflowClient()
    with _short_errors(settings):
        client.get_experiment_by_name(settings.experiment)
        client.search_registered_models(max_results=1)
    return client


@contextmanager
def _short_errors(settings: Settings) -> Iterator[None]:
    """Turn MLflow's errors about the store into errors of one line."""
    from mlflow.exceptions import MlflowException

    stores = " and ".join(map(redacted, _uris(settings)))
    try:
        yield
    except MlflowException as error:
        raise BatchAssetsError(f"the MLflow store {stores} can't be used: {redacted(error.message)}") from error
    except ImportError as error:
        raise BatchAssetsError(f"the MLflow store {stores} can't be used: {error}; {DRIVER_ADVICE}") from error


def _uris(settings: Settings) -> list[str]:
    return list(dict.fromkeys((settings.tracking_uri, settings.registry_uri)))


def _store_exists(uri: str) -> bool:
    """Whether a store exists. MLflow itself would create it, and retry an unreachable store for minutes.

    Raises:
        BatchAssetsError: the store can't be reached.
    """
    scheme = urlsplit(uri).scheme
    if scheme in ("http", "https"):
        try:
            status = httpx.get(f"{uri.rstrip('/')}/health", timeout=_TIMEOUT_SECONDS).status_code
        except httpx.HTTPError as error:
            raise _unreachable(uri, str(error) or type(error).__name__) from None
        except httpx.InvalidURL:
            raise _unreachable(uri, "it is not an address") from None
        if status >= httpx.codes.INTERNAL_SERVER_ERROR:
            raise _unreachable(uri, f"HTTP status {status}")
        return True
    if scheme in ("", "file"):
        return Path(unquote(urlsplit(uri).path)).exists()
    return _database_exists(uri) if scheme.partition("+")[0] in _TIMEOUT_ARGUMENTS else True


def _database_exists(uri: str) -> bool:
    """Whether MLflow has created a database completely: it creates the first experiment last.

    MLflow itself would try to connect ten times, and create what is missing.
    """
    import sqlalchemy
    from sqlalchemy.exc import SQLAlchemyError

    try:
        url, file = sqlalchemy.make_url(uri), _sqlite_file(uri)
        if file is not None and not file.is_file():
            return False
        engine = sqlalchemy.create_engine(url, connect_args=_TIMEOUT_ARGUMENTS[url.get_backend_name()])
        try:
            with engine.connect() as connection:
                tables = [name for name in _NEVER_EMPTY if sqlalchemy.inspect(connection).has_table(name)]
                row = sqlalchemy.select(sqlalchemy.literal(1)).limit(1)
                return any(connection.execute(row.select_from(sqlalchemy.table(name))).first() for name in tables)
        finally:
            engine.dispose()
    except ImportError as error:
        raise _unreachable(uri, str(error), DRIVER_ADVICE) from None
    except SQLAlchemyError as error:
        # Not the whole error, which may contain the address and its password.
        raise _unreachable(uri, str(getattr(error, "orig", None) or type(error).__name__)) from None


def _sqlite_file(uri: str) -> Path | None:
    """The file of an SQLite database; None for any other address."""
    found = re.fullmatch(r"sqlite(?:\+\w+)?:///((?!file:|:memory:)[^?]+)(?:\?.*)?", uri)
    return None if found is None else Path(found[1])


def _make_database(uri: str) -> None:
    """Create an SQLite database that is missing, or that a killed command left incomplete.

    MLflow would create it in place, in dozens of steps, and could not continue after a kill. The caller must hold the
    lock.
    """
    file = _sqlite_file(uri)
    if file is None or _database_exists(uri):
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    # If the database has another program's rows, MLflow adds its tables next to them.
    if file.is_file() and not filled_tables(file) <= _FILLED_ON_CREATION:
        return
    import mlflow

    with staging_folder(file.parent, file.name) as staging:
        created = staging / file.name
        mlflow.MlflowClient(tracking_uri=f"sqlite:///{created}").search_experiments(max_results=1)
        move_database(created, file)


def _unreachable(uri: str, reason: str, advice: str | None = None) -> BatchAssetsError:
    file = _sqlite_file(uri)
    if advice is None and file is not None:
        advice = f"restore {file} from a backup, or move it away to start a new store without runs and models"
    advice = advice or "start its server, or fix MLFLOW_TRACKING_URI or MLFLOW_REGISTRY_URI"
    return BatchAssetsError(f"the MLflow store {redacted(uri)} can't be reached ({' '.join(reason.split())}): {advice}")


def _configure_mlflow(settings: Settings) -> None:
    """Configure MLflow for the store. Call this before MLflow is first imported."""
    # MLflow would send telemetry, and commands would wait for it.
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    # In a folder with a uv.lock, MLflow would log that lock file with each model, as if the model needed all of it.
    os.environ.setdefault("MLFLOW_UV_AUTO_DETECT", "false")
    os.environ.setdefault("MLFLOW_LOG_UV_FILES", "false")
    os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
    # Progress bars for every small file would hide our own progress messages.
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    for noisy in ("alembic", "mlflow.store.db.utils", "mlflow.transformers"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    import mlflow

    mlflow.set_tracking_uri(settings.tracking_uri)
    mlflow.set_registry_uri(settings.registry_uri)


def resolve_artifact_uri(artifact_uri: str) -> str:
    """The artifact address in a form that works on machines without MLflow's settings."""
    if urlsplit(artifact_uri).scheme != "mlflow-artifacts":
        return artifact_uri
    import mlflow
    from mlflow.store.artifact.mlflow_artifacts_repo import MlflowArtifactsRepository

    return str(MlflowArtifactsRepository.resolve_uri(artifact_uri, redacted(mlflow.get_tracking_uri())))


def experiment_id(client: MlflowClient, settings: Settings) -> str:
    """Id of the configured experiment."""
    experiment = client.get_experiment_by_name(settings.experiment)
    if experiment is None:
        raise BatchAssetsError(f"the MLflow store has no experiment {settings.experiment}: it was deleted; restore it")
    return experiment.experiment_id

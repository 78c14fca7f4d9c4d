"""The MLflow store: where it is, and the experiment."""

import logging
import os
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import httpx

from batch_assets.errors import BatchAssetsError
from batch_assets.locks import locked
from batch_assets.settings import Settings, redacted

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


def connect(settings: Settings) -> Any:
    """Point MLflow at the store and make the experiment if there is none.

    Returns:
        An ``mlflow.MlflowClient``.

    Raises:
        BatchAssetsError: the store can't be reached.
    """
    _point_at(settings)
    import mlflow
    from mlflow.exceptions import MlflowException

    stores = " and ".join(map(redacted, _uris(settings)))
    try:
        # The first one to come makes the database; a second one at the same time would trip over it.
        with locked(settings.home / "mlflow" / ".lock"):
            client = mlflow.MlflowClient()
            if client.get_experiment_by_name(settings.experiment) is None:
                location = settings.artifact_root.as_uri() if settings.has_embedded_store else None
                client.create_experiment(settings.experiment, artifact_location=location)
        if settings.registry_uri != settings.tracking_uri:
            client.search_registered_models(max_results=1)
    except MlflowException as error:
        raise BatchAssetsError(f"the MLflow store {stores} can't be used: {redacted(error.message)}") from error
    except ImportError as error:
        raise BatchAssetsError(f"the MLflow store {stores} can't be used: {error}; {DRIVER}") from error
    return client


def look(settings: Settings) -> Any | None:
    """Point MLflow at the store as it is: nothing is made, and a store that is out of reach is given up soon.

    Returns:
        An ``mlflow.MlflowClient``; None where nobody has made the store yet.

    Raises:
        BatchAssetsError: the store can't be reached.
    """
    for uri in _uris(settings):
        if not _is_there(uri):
            return None
    # MLflow's own are 7 retries of 2 minutes each.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", str(_LOOK_SECONDS))
    _point_at(settings)
    import mlflow

    return mlflow.MlflowClient()


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
    """Whether a database has MLflow's tables; MLflow tries to connect ten times, and makes them."""
    import sqlalchemy
    from sqlalchemy.exc import SQLAlchemyError

    try:
        url = sqlalchemy.make_url(uri)
        if url.get_backend_name() == "sqlite" and not Path(url.database or "").is_file():
            return False
        engine = sqlalchemy.create_engine(url, connect_args=_DATABASES[url.get_backend_name()])
        try:
            return sqlalchemy.inspect(engine).has_table("experiments")
        finally:
            engine.dispose()
    except ImportError as error:
        raise _out_of_reach(uri, f"{error}; {DRIVER}") from None
    except SQLAlchemyError as error:
        # Not the whole error, which may show the address.
        raise _out_of_reach(uri, str(getattr(error, "orig", None) or type(error).__name__)) from None


def _out_of_reach(uri: str, reason: str) -> BatchAssetsError:
    return BatchAssetsError(f"the MLflow store {redacted(uri)} can't be reached: {' '.join(reason.split())}")


def _point_at(settings: Settings) -> None:
    """Set MLflow up for the store, before it is imported for the first time."""
    # Nobody should wait for a survey of a library that the user never called.
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
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

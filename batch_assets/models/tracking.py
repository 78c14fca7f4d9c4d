"""The MLflow store: where it is, and the experiment."""

import logging
import os
from typing import Any

from batch_assets.errors import BatchAssetsError
from batch_assets.locks import locked
from batch_assets.settings import Settings, redacted


def connect(settings: Settings) -> Any:
    """Point MLflow at the store and make the experiment if there is none.

    Returns:
        An ``mlflow.MlflowClient``.

    Raises:
        BatchAssetsError: the store can't be reached.
    """
    # Nobody should wait for a survey of a library that the user never called.
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
    # Our own lines say what goes on; a bar for every small file would bury them.
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    for chatty in ("alembic", "mlflow.store.db.utils", "mlflow.transformers"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    import mlflow
    from mlflow.exceptions import MlflowException

    mlflow.set_tracking_uri(settings.tracking_uri)
    mlflow.set_registry_uri(settings.mlflow_registry_uri or settings.tracking_uri)
    try:
        # The first one to come makes the database; a second one at the same time would trip over it.
        with locked(settings.home / "mlflow" / ".lock"):
            client = mlflow.MlflowClient()
            if client.get_experiment_by_name(settings.experiment) is None:
                location = settings.artifact_root.as_uri() if settings.has_embedded_store else None
                client.create_experiment(settings.experiment, artifact_location=location)
    except MlflowException as error:
        raise BatchAssetsError(
            f"the MLflow store {redacted(settings.tracking_uri)} can't be used: {error.message}"
        ) from error
    return client


def experiment_id(client: Any, settings: Settings) -> str:
    """Id of the configured experiment."""
    return str(client.get_experiment_by_name(settings.experiment).experiment_id)

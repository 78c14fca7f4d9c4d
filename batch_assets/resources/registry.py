"""The model registry of a run: one MLflow client, and links to the MLflow UI."""

from functools import cached_property
from typing import TYPE_CHECKING

import dagster as dg

from batch_assets.mlflow_client import MlflowClient
from batch_assets.models.model_runs import ModelRun
from batch_assets.models.tracking import connect, experiment_id
from batch_assets.settings import Settings

if TYPE_CHECKING:
    from batch_assets.models.registry import RegisteredModel


class ModelRegistry:
    """Connects to MLflow on first use."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._others: dict[str, ModelRegistry] = {}

    def of(self, settings: Settings) -> "ModelRegistry":
        """The registry with the experiment of a pipeline."""
        if settings.experiment == self._settings.experiment:
            return self
        return self._others.setdefault(settings.experiment, ModelRegistry(settings))

    @cached_property
    def client(self) -> MlflowClient:
        """The MLflow client."""
        return connect(self._settings)

    def model(self, settings: Settings) -> "RegisteredModel":
        """The registered model of a pipeline."""
        from batch_assets.models.registry import RegisteredModel

        return RegisteredModel.of(self.client, settings)

    def run_page(self, run_id: str) -> str:
        """URL of a run's page."""
        experiment = experiment_id(self.client, self._settings)
        return f"{self._settings.mlflow_pages}/#/experiments/{experiment}/runs/{run_id}"

    def model_page(self, run: ModelRun) -> str:
        """URL of a logged model's page."""
        experiment = experiment_id(self.client, self._settings)
        return f"{self._settings.mlflow_pages}/#/experiments/{experiment}/models/{run.model_id}"

    def version_page(self, name: str, number: int) -> str | None:
        """URL of a registered version's page; None if the registry has no known UI."""
        ui = self._settings.registry_pages
        return None if ui is None else f"{ui}/#/models/{name}/versions/{number}"

    def version_link(self, name: str, number: int) -> dict[str, dg.MetadataValue]:
        """Metadata with a link to a registered version's page."""
        page = self.version_page(name, number)
        return {} if page is None else {"version_page": dg.MetadataValue.url(page)}

"""The model registry of a run: one MLflow client, and addresses of pages in the MLflow UI."""

from functools import cached_property
from typing import Any

import dagster as dg

from batch_assets.models.runs import ModelRun
from batch_assets.models.tracking import connect, experiment_id
from batch_assets.settings import Settings


class ModelRegistry:
    """Connects to MLflow on first use."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    @cached_property
    def client(self) -> Any:
        """The MLflow client."""
        return connect(self._settings)

    def run_page(self, run_id: str) -> str:
        """Page of a run."""
        experiment = experiment_id(self.client, self._settings)
        return f"{self._settings.mlflow_pages}/#/experiments/{experiment}/runs/{run_id}"

    def model_page(self, run: ModelRun) -> str:
        """Page of a logged model."""
        experiment = experiment_id(self.client, self._settings)
        return f"{self._settings.mlflow_pages}/#/experiments/{experiment}/models/{run.model_id}"

    def version_page(self, name: str, number: int) -> str | None:
        """Page of a registered version; None where the registry has no page that is known here."""
        ui = self._settings.registry_pages
        return None if ui is None else f"{ui}/#/models/{name}/versions/{number}"

    def version_link(self, name: str, number: int) -> dict[str, dg.MetadataValue]:
        """Metadata that leads to the page of a registered version."""
        page = self.version_page(name, number)
        return {} if page is None else {"version_page": dg.MetadataValue.url(page)}

"""Types for the parts of MLflow's client that this package calls, because mypy skips MLflow.

https://mlflow.org/docs/latest/api_reference/python_api/mlflow.client.html
"""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol


class Named(Protocol):
    """An MLflow object that has a name."""

    name: str


class Experiment(Named, Protocol):
    """An experiment."""

    experiment_id: str


class RunInfo(Protocol):
    """Id and artifact location of a run."""

    run_id: str
    artifact_uri: str


class RunData(Protocol):
    """Metrics and tags of a run."""

    metrics: Mapping[str, float]
    tags: Mapping[str, str]


class Run(Protocol):
    """A run."""

    info: RunInfo
    data: RunData


class Artifact(Protocol):
    """A file of a run."""

    path: str


class RegisteredModel(Named, Protocol):
    """A registered model; ``aliases`` maps an alias to a version number, as text."""

    aliases: Mapping[str, str]
    tags: Mapping[str, str]


class ModelVersion(Named, Protocol):
    """A version of a registered model."""

    version: str
    run_id: str
    tags: Mapping[str, str]


class MlflowClient(Protocol):
    """The methods of ``mlflow.MlflowClient`` that this package calls."""

    def create_experiment(self, name: str, artifact_location: str | None = None) -> str: ...
    def get_experiment_by_name(self, name: str) -> Experiment | None: ...

    def get_run(self, run_id: str) -> Run: ...
    def search_runs(
        self, experiment_ids: list[str], filter_string: str = "", *, order_by: list[str] | None = None
    ) -> Sequence[Run]: ...
    def set_tag(self, run_id: str, key: str, value: str) -> None: ...
    def log_batch(self, run_id: str, metrics: Sequence[Any] = ()) -> None: ...
    def log_metric(self, run_id: str, key: str, value: float) -> None: ...
    def log_text(self, run_id: str, text: str, artifact_file: str) -> None: ...
    def log_artifact(self, run_id: str, local_path: str, artifact_path: str | None = None) -> None: ...
    def log_figure(self, run_id: str, figure: Any, artifact_file: str) -> None: ...
    def log_table(self, run_id: str, data: Any, artifact_file: str) -> None: ...
    def log_inputs(self, run_id: str, *, datasets: Sequence[Any]) -> None: ...
    def list_artifacts(self, run_id: str, path: str | None = None) -> Sequence[Artifact]: ...

    def search_registered_models(
        self, filter_string: str | None = None, max_results: int = 100
    ) -> Sequence[RegisteredModel]: ...
    def get_registered_model(self, name: str) -> RegisteredModel: ...
    def search_model_versions(self, filter_string: str | None = None) -> Sequence[ModelVersion]: ...
    def get_model_version(self, name: str, version: str) -> ModelVersion: ...
    def get_model_version_download_uri(self, name: str, version: str) -> str: ...
    def set_model_version_tag(self, name: str, version: str, key: str, value: str) -> None: ...
    def set_registered_model_tag(self, name: str, key: str, value: str) -> None: ...
    def delete_registered_model_tag(self, name: str, key: str) -> None: ...
    def set_registered_model_alias(self, name: str, alias: str, version: str) -> None: ...
    def delete_registered_model_alias(self, name: str, alias: str) -> None: ...

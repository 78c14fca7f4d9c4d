"""Find the run to use: the newest or the best by a logged metric, among all runs or those with a tag."""

from dataclasses import dataclass

from batch_assets.errors import BatchAssetsError
from batch_assets.mlflow_client import MlflowClient, Run
from batch_assets.models.tracking import experiment_id
from batch_assets.settings import Settings, named

# Tags of a run whose model is completely logged.
MODEL_URI_TAG = "batch_assets.model_uri"
DIGEST_TAG = "batch_assets.digest"
IDENTITY_TAG = "batch_assets.identity"
# When logged_model last requested this model, in milliseconds. Requesting it again makes an old run the newest.
WANTED_TAG = "batch_assets.wanted_at"
TASK_TAG = "batch_assets.task"


@dataclass(frozen=True)
class ModelRun:
    """A finished run with its logged model; ``tags`` and ``metrics`` are the run's."""

    run_id: str
    model_uri: str
    digest: str
    tags: dict[str, str]
    metrics: dict[str, float]

    @property
    def model_id(self) -> str:
        """MLflow's id of the logged model."""
        return self.model_uri.removeprefix("models:/")


def search_runs(client: MlflowClient, settings: Settings, filter_string: str, order_by: list[str]) -> list[ModelRun]:
    """Finished runs of the experiment that have a logged model for the configured task.

    Deleted runs are skipped.

    Args:
        client: MLflow client.
        settings: experiment and task.
        filter_string: a further condition in MLflow's search syntax, or empty.
        order_by: sort order. Ties are sorted by when the model was last requested, then by start; newest first.
    """
    found = client.search_runs(
        [experiment_id(client, settings)],
        f"attributes.status = 'FINISHED' and tags.`{MODEL_URI_TAG}` LIKE 'models:/%' "
        f"and tags.`{TASK_TAG}` = '{settings.task}'" + (f" and {filter_string}" if filter_string else ""),
        order_by=[*order_by, f"tags.`{WANTED_TAG}` DESC", "attributes.start_time DESC"],
    )
    return [_model_run(run) for run in found]


def run_of(client: MlflowClient, run_id: str) -> ModelRun:
    """The run by its id.

    Raises:
        BatchAssetsError: this package did not log a model to the run.
    """
    run = client.get_run(run_id)
    if MODEL_URI_TAG not in run.data.tags:
        raise BatchAssetsError(f"the run {run_id} has no model from logged_model: use a version whose run has one")
    return _model_run(run)


def _model_run(run: Run) -> ModelRun:
    tags = dict(run.data.tags)
    return ModelRun(run.info.run_id, tags[MODEL_URI_TAG], tags[DIGEST_TAG], tags, dict(run.data.metrics))


def newest_run(client: MlflowClient, settings: Settings) -> ModelRun:
    """The newest finished run with a logged model.

    Raises:
        BatchAssetsError: no run has a logged model.
    """
    return _first(search_runs(client, settings, "", []), settings, "", "materialize logged_model")


def find_run(client: MlflowClient, settings: Settings) -> ModelRun:
    """The run that the settings select: the newest or the best by a metric, among all runs or those with a tag.

    Raises:
        BatchAssetsError: no run qualifies.
    """
    conditions, order, wanted, remedy = [], [], "", "materialize logged_model"
    if settings.select_tag is not None:
        key, _, value = settings.select_tag.partition("=")
        conditions.append(f"tags.`{key}` = '{value}'")
        wanted, remedy = f" and the tag {settings.select_tag}", f"tag a run, or remove {named(settings, 'select_tag')}"
    if settings.select_by != "newest":
        metric = f"metrics.`{settings.select_by}`"
        # Any comparison skips runs without the metric.
        conditions.append(f"{metric} > -1e308")
        order.append(f"{metric} DESC")
        wanted += f" and the metric {settings.select_by}"
        remedy = f"materialize model_evaluation, or set {named(settings, 'select_by')} to newest"
    return _first(search_runs(client, settings, " and ".join(conditions), order), settings, wanted, remedy)


def _first(runs: list[ModelRun], settings: Settings, wanted: str, remedy: str) -> ModelRun:
    if not runs:
        raise BatchAssetsError(
            f"the experiment {settings.experiment} has no finished run with a model{wanted}: {remedy}"
        )
    return runs[0]

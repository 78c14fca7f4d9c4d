"""Find the run whose model is wanted: the newest, or the best by a logged metric; among all, or those with a tag."""

from dataclasses import dataclass
from typing import Any

from batch_assets.errors import BatchAssetsError
from batch_assets.models.tracking import experiment_id
from batch_assets.settings import Settings

# Tags of a run whose model is completely logged.
MODEL_URI_TAG = "batch_assets.model_uri"
DIGEST_TAG = "batch_assets.digest"
IDENTITY_TAG = "batch_assets.identity"
# When the model was last what the settings asked for, in milliseconds: a model that is asked for again is the
# newest again, although its run is old.
WANTED_TAG = "batch_assets.wanted_at"
TASK_TAG = "batch_assets.task"


@dataclass(frozen=True)
class ModelRun:
    """A finished run with its logged model; ``tags`` and ``metrics`` are those of the run."""

    run_id: str
    model_uri: str
    digest: str
    tags: dict[str, str]
    metrics: dict[str, float]

    @property
    def model_id(self) -> str:
        """MLflow's id of the logged model."""
        return self.model_uri.removeprefix("models:/")


def search_runs(client: Any, settings: Settings, filter_string: str, order_by: list[str]) -> list[ModelRun]:
    """Finished runs of the experiment that have a logged model for the configured task, in the order asked for.

    Deleted runs are left out. Among equals, the one that was last asked for comes first, then the newest.
    """
    found = client.search_runs(
        [experiment_id(client, settings)],
        f"attributes.status = 'FINISHED' and tags.`{MODEL_URI_TAG}` LIKE 'models:/%' "
        f"and tags.`{TASK_TAG}` = '{settings.task}'" + (f" and {filter_string}" if filter_string else ""),
        order_by=[*order_by, f"tags.`{WANTED_TAG}` DESC", "attributes.start_time DESC"],
    )
    return [_model_run(run) for run in found]


def run_of(client: Any, run_id: str) -> ModelRun:
    """The run by its id.

    Raises:
        BatchAssetsError: no model of this package was logged to it.
    """
    run = client.get_run(run_id)
    if MODEL_URI_TAG not in run.data.tags:
        raise BatchAssetsError(f"the run {run_id} has no model that logged_model has logged")
    return _model_run(run)


def _model_run(run: Any) -> ModelRun:
    tags = dict(run.data.tags)
    return ModelRun(run.info.run_id, tags[MODEL_URI_TAG], tags[DIGEST_TAG], tags, dict(run.data.metrics))


def newest_run(client: Any, settings: Settings) -> ModelRun:
    """The newest finished run with a logged model.

    Raises:
        BatchAssetsError: there is none.
    """
    return _first(search_runs(client, settings, "", []), settings, "", "materialize logged_model")


def find_run(client: Any, settings: Settings) -> ModelRun:
    """The run that settings select: the newest, or the best by a metric, of all or of those with a tag.

    Raises:
        BatchAssetsError: no run qualifies.
    """
    conditions, order, wanted, remedy = [], [], "", "materialize logged_model"
    if settings.select_tag is not None:
        key, _, value = settings.select_tag.partition("=")
        conditions.append(f"tags.`{key}` = '{value}'")
        wanted, remedy = f" and the tag {settings.select_tag}", "tag one, or unset BATCH_ASSETS_SELECT_TAG"
    if settings.select_by != "newest":
        metric = f"metrics.`{settings.select_by}`"
        # A comparison leaves out runs that never logged the metric.
        conditions.append(f"{metric} > -1e308")
        order.append(f"{metric} DESC")
        wanted += f" and the metric {settings.select_by}"
        remedy = "materialize model_evaluation, or set BATCH_ASSETS_SELECT_BY=newest"
    return _first(search_runs(client, settings, " and ".join(conditions), order), settings, wanted, remedy)


def _first(runs: list[ModelRun], settings: Settings, wanted: str, remedy: str) -> ModelRun:
    if not runs:
        raise BatchAssetsError(
            f"the experiment {settings.experiment} has no finished run with a model{wanted}: {remedy}"
        )
    return runs[0]

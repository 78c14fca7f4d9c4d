"""Find the run whose model is wanted: the newest, or the best by a logged metric."""

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
    """Finished runs of the experiment that have a logged model, in the order asked for."""
    found = client.search_runs(
        [experiment_id(client, settings)],
        f"attributes.status = 'FINISHED' and tags.`{MODEL_URI_TAG}` LIKE 'models:/%'"
        + (f" and {filter_string}" if filter_string else ""),
        order_by=[*order_by, f"tags.`{WANTED_TAG}` DESC", "attributes.start_time DESC"],
    )
    return [
        ModelRun(
            run.info.run_id,
            run.data.tags[MODEL_URI_TAG],
            run.data.tags[DIGEST_TAG],
            dict(run.data.tags),
            dict(run.data.metrics),
        )
        for run in found
    ]


def newest_run(client: Any, settings: Settings) -> ModelRun:
    """The newest finished run with a logged model.

    Raises:
        BatchAssetsError: there is none.
    """
    runs = search_runs(client, settings, "", [])
    if not runs:
        raise BatchAssetsError(
            f"the experiment {settings.experiment} has no finished run with a model: materialize logged_model"
        )
    return runs[0]


def find_run(client: Any, settings: Settings) -> ModelRun:
    """The run that settings select: the newest, or the best by a metric; among equals, the newest.

    Raises:
        BatchAssetsError: no run qualifies.
    """
    if settings.select_by == "newest":
        return newest_run(client, settings)
    metric = f"metrics.`{settings.select_by}`"
    # A comparison leaves out runs that never logged the metric.
    runs = search_runs(client, settings, f"{metric} > -1e308", [f"{metric} DESC"])
    if not runs:
        raise BatchAssetsError(
            f"the experiment {settings.experiment} has no finished run with the metric {settings.select_by}: "
            "materialize model_evaluation, or set BATCH_ASSETS_SELECT_BY=newest"
        )
    return runs[0]

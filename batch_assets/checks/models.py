"""What a person should know of a model before trusting it."""

import dagster as dg

from batch_assets.resources.registry import ModelRegistry
from batch_assets.settings import Settings


@dg.asset_check(
    asset="model_evaluation",
    description="The newest model's main score (ROUGE-1) is above that of the document's first sentences.",
)
def beats_lead_baseline(
    settings: dg.ResourceParam[Settings], registry: dg.ResourceParam[ModelRegistry]
) -> dg.AssetCheckResult:
    """Warn where the baseline is better than the model."""
    from batch_assets.models.runs import newest_run
    from batch_assets.models.task import task_of

    task = task_of(settings)
    metrics = newest_run(registry.client, settings).metrics
    scores = {name: metrics[name] for name in metrics if name.endswith(task.main_score)}
    best = max((value for name, value in scores.items() if name != task.main_score), default=0.0)
    return dg.AssetCheckResult(
        passed=scores[task.main_score] > best, severity=dg.AssetCheckSeverity.WARN, metadata={**scores}
    )

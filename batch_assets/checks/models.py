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


@dg.asset_check(
    asset="champion_model",
    description="No registered version waits as challenger that was refused; the reason and the figures of both sides.",
)
def promotion(settings: dg.ResourceParam[Settings], registry: dg.ResourceParam[ModelRegistry]) -> dg.AssetCheckResult:
    """Warn of a version that was not promoted."""
    from batch_assets.models.promotion import recorded
    from batch_assets.models.registry import CHALLENGER, CHAMPION, with_alias

    name = settings.registered_model
    challenger = with_alias(registry.client, name, CHALLENGER)
    version = challenger or with_alias(registry.client, name, CHAMPION)
    return dg.AssetCheckResult(
        passed=challenger is None,
        severity=dg.AssetCheckSeverity.WARN,
        metadata={} if version is None else {"version": version.number, **recorded(version)},
    )

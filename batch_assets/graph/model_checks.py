"""Asset checks that help people decide whether to trust a model."""

import dagster as dg

from batch_assets.resources.registry import ModelRegistry
from batch_assets.settings import Settings


@dg.asset_check(
    asset="model_evaluation",
    description="The newest model's main score (ROUGE-1) beats the lead baseline, each document's first sentences.",
)
def beats_lead_baseline(
    settings: dg.ResourceParam[Settings], registry: dg.ResourceParam[ModelRegistry]
) -> dg.AssetCheckResult:
    """Warn if a baseline scores as well as the model, or better."""
    from batch_assets.models.configured_task import task_of
    from batch_assets.models.model_runs import newest_run

    task = task_of(settings)
    metrics = newest_run(registry.client, settings).metrics
    scores = {name: metrics[name] for name in metrics if name.endswith(task.main_score)}
    best = max((value for name, value in scores.items() if name != task.main_score), default=0.0)
    return dg.AssetCheckResult(
        passed=scores[task.main_score] > best, severity=dg.AssetCheckSeverity.WARN, metadata={**scores}
    )


@dg.asset_check(
    asset="champion_model",
    description="No refused challenger is waiting. The metadata has the reason for the last decision and both scores.",
)
def promotion(settings: dg.ResourceParam[Settings], registry: dg.ResourceParam[ModelRegistry]) -> dg.AssetCheckResult:
    """Warn if a refused version is still the challenger."""
    from batch_assets.models.promotion import recorded_decision
    from batch_assets.models.registry import CHALLENGER, CHAMPION, with_alias

    name = settings.registered_model
    challenger = with_alias(registry.client, name, CHALLENGER)
    version = challenger or with_alias(registry.client, name, CHAMPION)
    return dg.AssetCheckResult(
        passed=challenger is None,
        severity=dg.AssetCheckSeverity.WARN,
        metadata={} if version is None else {"version": version.number, **recorded_decision(version)},
    )


MODEL_CHECKS = (beats_lead_baseline, promotion)

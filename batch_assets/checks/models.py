"""What a person should know of a model before trusting it."""

import dagster as dg

from batch_assets.resources.registry import ModelRegistry
from batch_assets.settings import Settings


@dg.asset_check(
    asset="model_evaluation", description="The newest model's ROUGE-1 is above that of the document's first sentences."
)
def beats_lead_baseline(
    settings: dg.ResourceParam[Settings], registry: dg.ResourceParam[ModelRegistry]
) -> dg.AssetCheckResult:
    """Warn where the lead baseline is better than the model."""
    from batch_assets.models.runs import newest_run

    metrics = newest_run(registry.client, settings).metrics
    rouge1, lead = metrics["rouge1"], metrics["lead_rouge1"]
    return dg.AssetCheckResult(
        passed=rouge1 > lead,
        severity=dg.AssetCheckSeverity.WARN,
        metadata={"rouge1": rouge1, "lead_rouge1": lead},
    )

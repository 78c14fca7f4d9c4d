"""Asset checks that help people decide whether to trust a model."""

import dagster as dg

from batch_assets.graph.batch_checks import Check
from batch_assets.graph.pipeline_names import AssetKeys
from batch_assets.lake.lake import Lake
from batch_assets.resources.registry import ModelRegistry
from batch_assets.settings import SUMMARIZATION, Settings
from batch_assets.tasks.configured_task import task_of


def model_checks(settings: Settings) -> list[Check]:
    """The checks of a pipeline's model; none if another pipeline owns it."""
    if settings.shared_model is not None:
        return []
    keys = AssetKeys(settings.pipeline)

    def beats_baselines(lake: Lake, registry: ModelRegistry) -> dg.AssetCheckResult:
        """Warn if a baseline scores as well as the model, or better."""
        from batch_assets.models.model_runs import newest_run
        from batch_assets.models.overview import baseline_names

        task = task_of(settings)
        metrics = newest_run(registry.of(settings).client, settings).metrics
        baselines = {name: metrics[name] for name in baseline_names(task, metrics)}
        score = metrics[task.main_score]
        return dg.AssetCheckResult(
            passed=all(score > baseline for baseline in baselines.values()),
            severity=dg.AssetCheckSeverity.WARN,
            metadata={task.main_score: score, **baselines},
        )

    def no_refused_challenger(lake: Lake, registry: ModelRegistry) -> dg.AssetCheckResult:
        """Warn if a refused version is still the challenger."""
        from batch_assets.models.promotion import recorded_decision
        from batch_assets.models.registry import CHALLENGER, CHAMPION

        model = registry.of(settings).model(settings)
        challenger = model.with_alias(CHALLENGER)
        version = challenger or model.with_alias(CHAMPION)
        return dg.AssetCheckResult(
            passed=challenger is None,
            severity=dg.AssetCheckSeverity.WARN,
            metadata={} if version is None else {"version": version.number, **recorded_decision(version)},
        )

    is_lead = settings.is_default or settings.task == SUMMARIZATION
    baseline_checks = [
        Check(
            keys.evaluation,
            "beats_lead_baseline" if is_lead else "beats_baseline",
            "The newest model's main score is higher than those of the baselines, which need no model.",
            beats_baselines,
        )
    ]
    has_baseline = settings.is_default or bool(task_of(settings).baselines(["text"], ["text"]))
    return [
        *(baseline_checks if has_baseline else []),
        Check(
            keys.champion,
            "promotion",
            "No refused challenger is waiting. The metadata has the reason for the last decision and both scores.",
            no_refused_challenger,
        ),
    ]

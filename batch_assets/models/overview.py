"""Overviews of the registered versions, for the command line and the quality report."""

from collections.abc import Mapping, Sequence

from batch_assets.errors import BatchAssetsError
from batch_assets.lake.lake import Lake
from batch_assets.models.evaluation import evaluated_scores
from batch_assets.models.promotion import recorded_decision
from batch_assets.models.registry import CHALLENGER, CHAMPION, PREVIOUS, RegisteredModel
from batch_assets.quality.batch_measures import quality_rows
from batch_assets.quality.report import totals
from batch_assets.settings import Settings
from batch_assets.tasks.configured_task import task_of
from batch_assets.tasks.output_tables import measured_task, tables_of
from batch_assets.tasks.task import Task


def overview(model: RegisteredModel, settings: Settings, lake: Lake, tags: Sequence[str]) -> list[dict[str, str]]:
    """One row of text per registered version, newest first.

    Args:
        model: the registered model.
        settings: its pipeline.
        lake: lake whose quality table says what each version has written.
        tags: ``key=value`` each; only versions that have all of them are listed.

    Raises:
        BatchAssetsError: a tag is not ``key=value``.
    """
    wanted = dict(_key_and_value(tag) for tag in tags)
    aliases = model.aliases()
    written = _written_by_version(lake, settings)
    score = task_of(settings).main_score
    rows = []
    for version in model.versions():
        if any(version.tags.get(key) != value for key, value in wanted.items()):
            continue
        metrics = model.client.get_run(version.run_id).data.metrics if version.run_id else {}
        scores = [f"{key} {metrics[key]:.3f}" for key in (score, f"{score}_low", f"{score}_high") if key in metrics]
        decision_tags = recorded_decision(version)
        decision = [decision_tags[key] for key in ("decision", "reason") if key in decision_tags]
        rows.append(
            {
                "version": str(version.number),
                "aliases": ", ".join(aliases.get(version.number, [])),
                "checkpoint": version.tags.get("checkpoint", ""),
                "scores": ", ".join(scores),
                "decision": ": ".join(decision),
                "written": written.get(str(version.number), ""),
            }
        )
    return rows


def _key_and_value(tag: str) -> tuple[str, str]:
    key, equals, value = tag.partition("=")
    if not key or not equals:
        raise BatchAssetsError(f"{tag!r} is not a tag: write key=value")
    return key, value


def _written_by_version(lake: Lake, settings: Settings) -> dict[str, str]:
    """What each version has written, by version number."""
    tables, task = tables_of(settings), measured_task(settings)
    quality = lake.find(tables.quality)
    rows = (row for batch in quality.batches() for row in quality_rows(quality, batch))
    wanted = (tables.scored.name, settings.registered_model)
    ours = (row for row in rows if (row["table_name"], row["model_name"]) == wanted)
    return {
        total["model_version"]: f"{total['summaries']} {task.words[1]} in {total['batches']} batches"
        for total in totals(ours, task)
    }


def main_scores(
    model: RegisteredModel, settings: Settings
) -> tuple[dict[str, tuple[float, float, float]], float | None]:
    """The main score of every version on held-out documents, and the baseline's.

    Returns:
        Mean and 95 % interval (low, high) by version number with aliases, oldest first; and the baseline's mean, or
        None without a baseline.
    """
    task = task_of(settings)
    score = task.main_score
    names = (score, f"{score}_low", f"{score}_high")
    scores: dict[str, tuple[float, float, float]] = {}
    baseline = None
    aliases = model.aliases()
    for version in reversed(model.versions()):
        metrics = model.client.get_run(version.run_id).data.metrics if version.run_id else {}
        if set(names) <= metrics.keys():
            label = " ".join([str(version.number), *aliases.get(version.number, [])])
            scores[label] = (metrics[names[0]], metrics[names[1]], metrics[names[2]])
            baseline = next((metrics[name] for name in baseline_names(task, metrics)), baseline)
    return scores, baseline


def baseline_names(task: Task, metrics: Mapping[str, float]) -> list[str]:
    """The names of the baselines' main scores among the metrics of a run, the first baseline first."""
    prefixes = task.baselines(["text"], ["text"])
    return [name for prefix in prefixes if (name := f"{prefix}{task.main_score}") in metrics]


def compare_champion(
    model: RegisteredModel, settings: Settings
) -> tuple[tuple[str, str] | None, list[tuple[float, float]]]:
    """Main scores of the champion and the challenger, or else the previous champion, on the same documents.

    Returns:
        The labels of the two versions, or None without a second version; and a pair of scores per document.
    """
    champion = model.with_alias(CHAMPION)
    for alias in (CHALLENGER, PREVIOUS):
        other = model.with_alias(alias)
        if champion is None or other is None or not champion.run_id or not other.run_id:
            continue
        task = task_of(settings)
        left, right = (evaluated_scores(model.client, version.run_id, task) for version in (champion, other))
        pairs = [(left[document], right[document]) for document in left if document in right]
        return (f"champion {champion.number}", f"{alias} {other.number}"), pairs
    return None, []

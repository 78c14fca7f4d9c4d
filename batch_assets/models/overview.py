"""Registered versions as people want to see them."""

from collections.abc import Sequence
from typing import Any

from batch_assets.errors import BatchAssetsError
from batch_assets.lake.lake import Lake
from batch_assets.lake.tables import BATCH_INFERENCE, SUMMARY_QUALITY
from batch_assets.models.evaluation import evaluated_scores
from batch_assets.models.promotion import recorded
from batch_assets.models.registry import CHALLENGER, CHAMPION, PREVIOUS, Version, versions, with_alias
from batch_assets.models.task import task_of
from batch_assets.quality.report import totals
from batch_assets.settings import Settings


def overview(client: Any, settings: Settings, lake: Lake, tags: Sequence[str]) -> list[dict[str, str]]:
    """One row a version, the newest first: what a person asks of it, as text.

    Args:
        client: MLflow client.
        settings: name the registered model.
        lake: whose ``summary_quality`` knows what was written.
        tags: ``key=value`` each; a version needs them all.

    Raises:
        BatchAssetsError: a tag is no ``key=value``.
    """
    name = settings.registered_model
    wanted = dict(_parsed(tag) for tag in tags)
    aliases = aliases_of(client, settings)
    written = _written(lake, name)
    score = task_of(settings).main_score
    rows = []
    for version in _registered(client, settings):
        if any(version.tags.get(key) != value for key, value in wanted.items()):
            continue
        metrics = client.get_run(version.run_id).data.metrics if version.run_id else {}
        scores = [f"{key} {metrics[key]:.3f}" for key in (score, f"{score}_low", f"{score}_high") if key in metrics]
        said = recorded(version)
        decision = [said[key] for key in ("decision", "reason") if key in said]
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


def aliases_of(client: Any, settings: Settings) -> dict[int, list[str]]:
    """Aliases of the registered versions, by number."""
    if not _registered(client, settings):
        return {}
    aliases: dict[int, list[str]] = {}
    for alias, number in sorted(client.get_registered_model(settings.registered_model).aliases.items()):
        aliases.setdefault(int(number), []).append(alias)
    return aliases


def _registered(client: Any, settings: Settings) -> list[Version]:
    """Versions, the newest first; none where nothing is registered yet."""
    name = settings.registered_model
    return versions(client, name) if client.search_registered_models(f"name = '{name}'") else []


def _parsed(tag: str) -> tuple[str, str]:
    key, equals, value = tag.partition("=")
    if not key or not equals:
        raise BatchAssetsError(f"{tag!r} is no tag: write key=value")
    return key, value


def _written(lake: Lake, name: str) -> dict[str, str]:
    """What each version has written, by its number."""
    if not lake.exists(SUMMARY_QUALITY):
        return {}
    quality = lake.open(SUMMARY_QUALITY)
    rows = (row for batch in quality.batches() for part in quality.read(batch) for row in part.to_pylist())
    ours = (row for row in rows if (row["table_name"], row["model_name"]) == (BATCH_INFERENCE.name, name))
    return {
        total["model_version"]: f"{total['summaries']} summaries in {total['batches']} batches"
        for total in totals(ours)
    }


def main_scores(client: Any, settings: Settings) -> tuple[dict[str, tuple[float, float, float]], float | None]:
    """The main score of every version on held-out documents, and that of the baseline.

    Returns:
        By version with its aliases, the oldest first: mean, low and high of the 95 % interval; and the baseline's mean,
        None where there is none.
    """
    score = task_of(settings).main_score
    names = (score, f"{score}_low", f"{score}_high")
    scores: dict[str, tuple[float, float, float]] = {}
    baseline = None
    for version in reversed(_registered(client, settings)):
        metrics = client.get_run(version.run_id).data.metrics if version.run_id else {}
        if set(names) <= metrics.keys():
            label = " ".join([str(version.number), *aliases_of(client, settings).get(version.number, [])])
            scores[label] = (metrics[names[0]], metrics[names[1]], metrics[names[2]])
            baseline = metrics.get(f"lead_{score}", baseline)
    return scores, baseline


def champion_against(client: Any, settings: Settings) -> tuple[tuple[str, str] | None, list[tuple[float, float]]]:
    """Main scores of the champion and of the challenger, or else of the champion before it, on the same documents.

    Returns:
        What the two are called, None where there are no two; and their scores, document by document.
    """
    name = settings.registered_model
    if not _registered(client, settings):
        return None, []
    champion = with_alias(client, name, CHAMPION)
    for alias in (CHALLENGER, PREVIOUS):
        other = with_alias(client, name, alias)
        if champion is None or other is None or not champion.run_id or not other.run_id:
            continue
        task = task_of(settings)
        left, right = (evaluated_scores(client, version.run_id, task) for version in (champion, other))
        pairs = [(left[document], right[document]) for document in left if document in right]
        return (f"champion {champion.number}", f"{alias} {other.number}"), pairs
    return None, []

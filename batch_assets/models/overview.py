"""Registered versions as people want to see them."""

from collections.abc import Sequence
from typing import Any

from batch_assets.errors import BatchAssetsError
from batch_assets.lake.lake import Lake
from batch_assets.lake.tables import BATCH_INFERENCE, SUMMARY_QUALITY
from batch_assets.models.promotion import recorded
from batch_assets.models.registry import versions
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
    registered = client.search_registered_models(f"name = '{name}'")
    aliases: dict[str, list[str]] = {}
    for alias, number in (client.get_registered_model(name).aliases if registered else {}).items():
        aliases.setdefault(str(number), []).append(alias)
    written = _written(lake, name)
    score = task_of(settings).main_score
    rows = []
    for version in versions(client, name) if registered else []:
        if any(version.tags.get(key) != value for key, value in wanted.items()):
            continue
        metrics = client.get_run(version.run_id).data.metrics if version.run_id else {}
        scores = [f"{key} {metrics[key]:.3f}" for key in (score, f"{score}_low", f"{score}_high") if key in metrics]
        said = recorded(version)
        decision = [said[key] for key in ("decision", "reason") if key in said]
        rows.append(
            {
                "version": str(version.number),
                "aliases": ", ".join(sorted(aliases.get(str(version.number), []))),
                "checkpoint": version.tags.get("checkpoint", ""),
                "scores": ", ".join(scores),
                "decision": ": ".join(decision),
                "written": written.get(str(version.number), ""),
            }
        )
    return rows


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

"""Whether a version may become the champion."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from batch_assets.errors import BatchAssetsError
from batch_assets.inference.contract import Engine
from batch_assets.models.evaluation import Scored, scored_on
from batch_assets.models.registry import (
    CHAMPION,
    PREVIOUS,
    Version,
    get_version,
    predict,
    prepare_engine,
    promote,
    run_model,
    with_alias,
)
from batch_assets.models.runs import run_of
from batch_assets.models.samples import keep_samples
from batch_assets.models.task import Task, task_of
from batch_assets.quality.bootstrap import interval
from batch_assets.settings import Settings
from batch_assets.sources.records import Document

# Name of the sample that a champion is tried with.
SAMPLE = "single_node_inference"
_SAMPLE_DOCUMENTS = 2
_TAG = "promotion."


@dataclass(frozen=True)
class Decision:
    """Whether a candidate is promoted, why, and the figures of both sides."""

    is_promoted: bool
    reason: str
    figures: dict[str, float]

    def tags(self) -> dict[str, str]:
        """The decision as tags of the version."""
        decision = {"decision": "promoted" if self.is_promoted else "refused", "reason": self.reason}
        return {f"{_TAG}{key}": value for key, value in decision.items()} | {
            f"{_TAG}{key}": f"{value:.4f}" for key, value in self.figures.items()
        }


def decide(settings: Settings, task: Task, candidate: Sequence[Scored], champion: Sequence[Scored] | None) -> Decision:
    """Compare a candidate with the champion on the same documents.

    A candidate that fails on too many documents is refused, and so is one that may be worse than the champion by more
    than the margin: the paired bootstrap's 95 % interval of the difference must not begin below minus the margin.

    Args:
        settings: error rate, margin, whether the baseline has to be beaten.
        task: names the score.
        candidate: what it came to, document by document.
        champion: what the champion came to on the same documents; None where there is no champion.
    """
    score, error_rate = fmean(item.score for item in candidate), fmean(item.failed for item in candidate)
    baseline = fmean(item.baseline for item in candidate)
    figures = {task.main_score: score, "baseline": baseline, "error_rate": error_rate, "documents": len(candidate)}
    if error_rate > settings.error_rate:
        return Decision(
            False,
            f"it failed on {error_rate:.0%} of {len(candidate)} documents; BATCH_ASSETS_ERROR_RATE is "
            f"{settings.error_rate:.0%}",
            figures,
        )
    if settings.beat_baseline and score <= baseline:
        return Decision(
            False,
            f"its {task.main_score} of {score:.3f} is not above the {baseline:.3f} of the first sentences, which "
            "BATCH_ASSETS_BEAT_BASELINE asks for",
            figures,
        )
    if champion is None:
        return Decision(True, "there was no champion", figures)
    differences = [ours.score - theirs.score for ours, theirs in zip(candidate, champion, strict=True)]
    low, high = interval(differences)
    theirs = fmean(item.score for item in champion)
    figures |= {f"champion_{task.main_score}": theirs, "difference_low": low, "difference_high": high}
    compared = (
        f"{task.main_score} {score:.3f} against the champion's {theirs:.3f} on the same {len(candidate)} documents; "
        f"the difference lies between {low:+.3f} and {high:+.3f}"
    )
    if low < -settings.promotion_margin:
        return Decision(
            False, f"{compared}: it may be worse by more than the margin of {settings.promotion_margin:g}", figures
        )
    return Decision(True, compared, figures)


@dataclass(frozen=True)
class Proposal:
    """What became of a candidate: the champion now, the one before, and the decision; None where nothing was to do."""

    champion: Version
    before: Version | None
    decision: Decision | None


def propose(
    client: Any,
    settings: Settings,
    candidate: Version,
    documents: Sequence[Document],
    report: Callable[[str], None],
) -> Proposal:
    """Make a version the champion if it has earned it on held-out documents.

    Args:
        client: MLflow client.
        settings: the rule.
        candidate: a registered version.
        documents: held-out documents; a side that has not seen them yet is scored on them.
        report: takes lines on what happens.

    Raises:
        BatchAssetsError: it has not, and there is no champion; or the version can't be loaded.
    """
    before = with_alias(client, candidate.name, CHAMPION)
    if before is not None and before.number == candidate.number:
        report(f"version {candidate.number} of {candidate.name} is the champion already")
        return Proposal(candidate, before, None)
    task = task_of(settings)

    def scored(version: Version) -> list[Scored]:
        def load_engine() -> Engine:
            from batch_assets.inference.transformers_engine import TransformersEngine

            return TransformersEngine(run_model(run_of(client, version.run_id), settings), os.cpu_count() or 1)

        return scored_on(client, version.run_id, task, documents, load_engine, report)

    decision = decide(settings, task, scored(candidate), None if before is None else scored(before))
    _record(client, candidate, decision.tags(), before)
    if decision.is_promoted:
        _make_champion(client, settings, candidate, documents, report)
        report(f"version {candidate.number} of {candidate.name} is the champion: {decision.reason}")
        return Proposal(candidate, before, decision)
    refusal = f"version {candidate.number} of {candidate.name} was not promoted: {decision.reason}"
    if before is None:
        raise BatchAssetsError(f"{refusal}; there is no champion yet")
    report(refusal)
    return Proposal(before, before, decision)


def promote_by_hand(
    client: Any, settings: Settings, number: int, documents: Sequence[Document], report: Callable[[str], None]
) -> Version | None:
    """Make a version the champion because a person says so; it has to load and to summarize.

    Returns:
        The version that was the champion before, None if it was this one or there was none.

    Raises:
        BatchAssetsError: there is no such version, or it can't be loaded.
    """
    version = get_version(client, settings, number)
    old = _make_champion(client, settings, version, documents, report)
    _record(client, version, {f"{_TAG}decision": "promoted", f"{_TAG}reason": "by hand"}, old)
    return old


def rollback(client: Any, settings: Settings) -> Version:
    """Swap the champion and the version that was it before.

    Returns:
        The champion now.

    Raises:
        BatchAssetsError: there is none to go back to.
    """
    previous = with_alias(client, settings.registered_model, PREVIOUS)
    if previous is None:
        raise BatchAssetsError(
            f"no version of {settings.registered_model} has the alias {PREVIOUS}: promote one instead"
        )
    promote(client, previous)
    _record(client, previous, {f"{_TAG}decision": "promoted", f"{_TAG}reason": "rollback"}, None)
    return previous


def _make_champion(
    client: Any,
    settings: Settings,
    version: Version,
    documents: Sequence[Document],
    report: Callable[[str], None],
) -> Version | None:
    """Promote a version after it has loaded and summarized, as any user of the registry would let it.

    Returns:
        The version that was the champion, None if it was this one or there was none.
    """
    some = documents[:_SAMPLE_DOCUMENTS]
    summaries = predict(version, [item.document or "" for item in some])
    if settings.samples:
        rows = [
            {"id": item.id, "document": item.document, "generated_summary": summary}
            for item, summary in zip(some, summaries, strict=True)
        ][: settings.samples]
        keep_samples(client, version.run_id, SAMPLE, rows)
    prepare_engine(client, version, settings, documents, report)
    return promote(client, version)


def recorded(version: Version) -> dict[str, str]:
    """The decision about a version and its figures, as they were recorded."""
    return {key.removeprefix(_TAG): value for key, value in version.tags.items() if key.startswith(_TAG)}


def _record(client: Any, version: Version, tags: dict[str, str], against: Version | None) -> None:
    if against is not None:
        tags = {**tags, f"{_TAG}against": str(against.number)}
    for key, value in tags.items():
        client.set_model_version_tag(version.name, str(version.number), key, value)

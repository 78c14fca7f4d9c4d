"""Promote versions: the decision on a candidate, promotion by hand, and rollback."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import fmean

from batch_assets.engines.catalog import IsolatedEngine
from batch_assets.engines.contract import Engine
from batch_assets.errors import BatchAssetsError
from batch_assets.locks import is_held, locked
from batch_assets.models.evaluation import DocumentResult, results_on
from batch_assets.models.model_runs import run_of
from batch_assets.models.registry import (
    CHAMPION,
    PREVIOUS,
    RegisteredModel,
    Version,
    predict,
    prepare_engine,
    run_model,
)
from batch_assets.models.samples import keep_samples
from batch_assets.quality.bootstrap import interval
from batch_assets.settings import Settings, named
from batch_assets.sources.records import Document
from batch_assets.tasks.configured_task import task_of
from batch_assets.tasks.task import Task

# Name of the sample with a new champion's first answers.
SAMPLE = "single_node_inference"
_SAMPLE_SIZE = 2
_TAG_PREFIX = "promotion."


@contextmanager
def promotion_lock(settings: Settings, report: Callable[[str], None]) -> Iterator[None]:
    """Wait until no other process registers or promotes versions of a pipeline's model in this home.

    Args:
        settings: the home and the name of the model.
        report: called with a message if another promotion is running.
    """
    path = settings.home / f".promotion-{settings.registered_model}.lock"
    if is_held(path):
        report(f"waiting for another promotion of {settings.registered_model}")
    with locked(path):
        yield


@dataclass(frozen=True)
class Decision:
    """Whether a candidate is promoted, the reason, and the metrics of both versions."""

    is_promoted: bool
    reason: str
    figures: dict[str, float]

    def tags(self) -> dict[str, str]:
        """The decision as tags for the version."""
        decision = {"decision": "promoted" if self.is_promoted else "refused", "reason": self.reason}
        return {f"{_TAG_PREFIX}{key}": value for key, value in decision.items()} | {
            f"{_TAG_PREFIX}{key}": f"{value:.4f}" for key, value in self.figures.items()
        }


def decide(
    settings: Settings, task: Task, candidate: Sequence[DocumentResult], champion: Sequence[DocumentResult] | None
) -> Decision:
    """Compare a candidate with the champion on the same documents.

    A candidate is refused if it fails on too many documents, or if it may be worse than the champion by more than the
    margin: the 95 % interval of the difference, from a paired bootstrap, must not start below minus the margin.

    Args:
        settings: error rate, margin, and whether the candidate must beat the baseline.
        task: for the name of the score.
        candidate: the candidate's results, one per document.
        champion: the champion's results on the same documents; None without a champion.
    """
    score, error_rate = fmean(item.score for item in candidate), fmean(item.failed for item in candidate)
    baselines = [item.baseline for item in candidate if item.baseline is not None]
    figures = {task.main_score: score, "error_rate": error_rate, "documents": len(candidate)}
    if baselines:
        figures["baseline"] = fmean(baselines)
    if error_rate > settings.error_rate:
        return Decision(
            False,
            f"it failed on {error_rate:.0%} of {len(candidate)} documents; {named(settings, 'error_rate')} is "
            f"{settings.error_rate:.0%}",
            figures,
        )
    if settings.beat_baseline and baselines and score <= figures["baseline"]:
        return Decision(
            False,
            f"its {task.main_score} of {score:.3f} is not above the {figures['baseline']:.3f} of the baseline, as "
            f"{named(settings, 'beat_baseline')} requires",
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
        f"the difference is between {low:+.3f} and {high:+.3f}"
    )
    if low < -settings.promotion_margin:
        return Decision(
            False, f"{compared}: it may be worse by more than the margin of {settings.promotion_margin:g}", figures
        )
    return Decision(True, compared, figures)


@dataclass(frozen=True)
class Proposal:
    """The champion after and before a proposal, and the decision; None if the candidate was the champion already."""

    champion: Version
    before: Version | None
    decision: Decision | None


def propose(
    model: RegisteredModel,
    settings: Settings,
    candidate: Version,
    documents: Sequence[Document],
    report: Callable[[str], None],
) -> Proposal:
    """Promote a version if its results on held-out documents allow it.

    Args:
        model: the registered model.
        settings: the promotion rule.
        candidate: one of its versions.
        documents: held-out documents; each version is scored on them if it was not scored before.
        report: called with each progress message.

    Raises:
        BatchAssetsError: the version was refused and there is no champion, or it can't be loaded.
    """
    model.finish_promotion()
    before = model.with_alias(CHAMPION)
    if before is not None and before.number == candidate.number:
        report(f"version {candidate.number} of {candidate.name} is already the champion")
        return Proposal(candidate, before, None)
    task = task_of(settings)

    def scored(version: Version) -> list[DocumentResult]:
        def load_engine() -> Engine:
            return IsolatedEngine(run_model(run_of(model.client, version.run_id), settings))

        return results_on(model.client, version.run_id, task, documents, load_engine, report)

    decision = decide(settings, task, scored(candidate), None if before is None else scored(before))
    _record(model, candidate, decision.tags(), before)
    if decision.is_promoted:
        _check_and_promote(model, settings, candidate, documents, report)
        report(f"version {candidate.number} of {candidate.name} is the champion: {decision.reason}")
        return Proposal(candidate, before, decision)
    refusal = f"version {candidate.number} of {candidate.name} was not promoted: {decision.reason}"
    if before is None:
        raise BatchAssetsError(f"{refusal}; there is no champion yet")
    report(refusal)
    return Proposal(before, before, decision)


def promote_by_hand(
    model: RegisteredModel,
    settings: Settings,
    number: int,
    documents: Sequence[Document],
    report: Callable[[str], None],
) -> Version | None:
    """Promote a version regardless of its scores. It must load and predict.

    Args:
        model: the registered model.
        settings: engine settings.
        number: version number.
        documents: held-out documents; the first ones are scored.
        report: called with each progress message.

    Returns:
        The old champion, or None if it was this version or there was none.

    Raises:
        BatchAssetsError: the version does not exist or can't be loaded.
    """
    return _check_and_promote(model, settings, model.version(number), documents, report, reason="by hand")


def rollback(model: RegisteredModel) -> Version:
    """Swap the champion and the previous champion; if an earlier call was killed after that, finish what it did.

    Returns:
        The new champion.

    Raises:
        BatchAssetsError: no version is the previous champion, or it is the champion.
    """
    if model.finish_promotion():
        return model.champion()
    previous, champion = model.with_alias(PREVIOUS), model.with_alias(CHAMPION)
    if previous is None:
        raise BatchAssetsError(f"no version of {model.name} has the alias {PREVIOUS}: promote a version instead")
    if champion is not None and champion.number == previous.number:
        # Earlier releases left this behind when a promotion was killed.
        raise BatchAssetsError(
            f"version {previous.number} of {model.name} is the champion and the previous champion: promote a version "
            "instead"
        )
    _record(model, previous, Decision(True, "rollback", {}).tags(), None)
    model.promote(previous, is_rollback=True)
    return previous


def _check_and_promote(
    model: RegisteredModel,
    settings: Settings,
    version: Version,
    documents: Sequence[Document],
    report: Callable[[str], None],
    reason: str | None = None,
) -> Version | None:
    """Check that a version loads and predicts, as for any user of the registry, and promote it.

    Args:
        model: the registered model.
        settings: engine settings.
        version: the version.
        documents: held-out documents; the first ones are scored.
        report: called with each progress message.
        reason: recorded with the version before it is promoted, if given.

    Returns:
        The old champion, or None if it was this version or there was none.
    """
    some = documents[:_SAMPLE_SIZE]
    texts, task = predict(version, [item.document or "" for item in some]), task_of(settings)
    if settings.samples:
        rows = [
            {"id": item.id, "document": item.document, task.output_column: text}
            for item, text in zip(some, texts, strict=True)
        ][: settings.samples]
        keep_samples(model.client, version.run_id, SAMPLE, rows)
    prepare_engine(model.client, version, settings, documents, report)
    if reason is not None:
        _record(model, version, Decision(True, reason, {}).tags(), model.with_alias(CHAMPION))
    return model.promote(version)


def recorded_decision(version: Version) -> dict[str, str]:
    """The recorded decision about a version, with its metrics."""
    return {key.removeprefix(_TAG_PREFIX): value for key, value in version.tags.items() if key.startswith(_TAG_PREFIX)}


def _record(model: RegisteredModel, version: Version, tags: dict[str, str], against: Version | None) -> None:
    model.tag(version, tags if against is None else {**tags, f"{_TAG_PREFIX}against": str(against.number)})

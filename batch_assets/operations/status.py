"""The current state: batches, the champion, the last runs. Reading it changes nothing."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

import dagster as dg

from batch_assets.errors import BatchAssetsError
from batch_assets.graph.batch_execution import failed_assets
from batch_assets.graph.observation import stale_batches_now
from batch_assets.graph.partitions import batches_of, busy_batches, known_batches
from batch_assets.graph.pipeline_names import AssetKeys, champion_key
from batch_assets.graph.quality_checks import quality_checks
from batch_assets.graph.table_checks import table_checks
from batch_assets.lake.counts import Counts, counts_by_batch
from batch_assets.lake.lake import BatchSnapshot, Lake
from batch_assets.resources.dagster_storage import existing_instance
from batch_assets.settings import COMMIT, Settings
from batch_assets.sources.documents import find_documents, lost_rows
from batch_assets.staleness import is_unanswered, is_unmeasured, waiting_rows
from batch_assets.tasks.output_tables import tables_of

SCORED = "scored"
# States of a batch and of its assets.
FAILED, WAITING, DONE = "failed", "waiting", "done"
_RUNS_SHOWN = 5
# Finished runs to search for the last run of each batch.
_RUNS_SEARCHED = 1000
_PROMOTIONS_SEARCHED = 200
_FINISHED = [dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED]
_RUNNING = [dg.DagsterRunStatus.STARTING, dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.CANCELING]


@dataclass(frozen=True)
class Batch:
    """A batch; ``summaries``, ``errors`` and ``no_text`` are None if the table's log does not record them.

    ``errors`` counts documents that failed, ``no_text`` documents without text. ``retried`` is the number of failed
    rows, in all tables of answers, that are requested again after a while.

    ``assets`` has the state of each asset for this batch: done; failed (in the last run of the batch); waiting (to be
    materialized, for example because another asset failed).

    ``state`` is the first that applies: running; queued; failed (its last run failed and left work undone); landed
    (never scored); stale (as in ``stale_batches``); scored; empty (it has no documents).
    """

    batch: str
    state: str
    documents: int
    rejected: int
    summaries: int | None
    errors: int | None
    no_text: int | None
    model_version: int | None
    scored_at: str | None
    retried: int
    assets: dict[str, str]


@dataclass(frozen=True)
class Champion:
    """The champion; ``since`` is when Dagster first recorded it, None if it has not. ``pipeline`` promotes it."""

    model: str
    pipeline: str
    version: int
    score_name: str
    score: float | None
    since: str | None


@dataclass(frozen=True)
class Run:
    """A Dagster run."""

    run_id: str
    job: str
    status: str
    began: str
    ended: str | None
    batches: list[str]


@dataclass(frozen=True)
class Status:
    """The state of a pipeline; ``champion_problem`` says why the champion is unknown.

    ``source_problem`` says why rows of a table that is read in place are in no batch.
    ``failing`` has the checks that found bad batches when they last ran, with the problem of each batch.
    """

    batches: list[Batch]
    champion: Champion | None
    champion_problem: str | None
    runs: list[Run]
    failing: dict[str, dict[str, str]]
    source_problem: str | None

    @property
    def counts(self) -> dict[str, int]:
        """Batches in each state."""
        return dict(sorted(Counter(batch.state for batch in self.batches).items()))

    @property
    def has_failed(self) -> bool:
        """Whether an asset of a batch has failed and was not repaired."""
        return any(batch.state == FAILED for batch in self.batches)


def status_of(settings: Settings) -> Status:
    """Read the state from the tables, the registry and Dagster's runs.

    Raises:
        BatchAssetsError: a table or Dagster's storage can't be read.
    """
    with existing_instance(settings) or dg.DagsterInstance.ephemeral() as instance:
        champion, problem = None, None
        try:
            champion = champion_of(instance, settings)
        except BatchAssetsError as error:
            problem = str(error)
        return Status(
            batches_in(instance, settings, champion.version if champion else None),
            champion,
            problem,
            last_runs(instance, settings.pipeline),
            failing_checks(instance, settings),
            _source_problem(settings),
        )


def batches_in(instance: dg.DagsterInstance, settings: Settings, champion: int | None) -> list[Batch]:
    """All batches in a table or in Dagster, sorted by name."""
    pipeline, tables = settings.pipeline, tables_of(settings)
    running, busy = busy_batches(instance, pipeline, _RUNNING), busy_batches(instance, pipeline)
    failures = _failures(instance, pipeline)
    lake = Lake.of(settings, fail_fast=True)
    documents = find_documents(lake, settings, tables)
    rejected, output = lake.find(tables.rejected), lake.find(tables.scored)
    answered = None if tables.answered is None else lake.find(tables.answered)
    quality = lake.find(tables.quality)
    stale = stale_batches_now(instance, settings, documents, output, answered, champion)

    names = AssetKeys(pipeline)
    runs = {batch: record.dagster_run.run_id for batch, record in failures.items()}
    failed = failed_assets(instance, [names.documents, names.scored, names.answered, names.quality], runs)

    def assets(batch: str) -> dict[str, str]:
        undone = {names.scored: output.last_commit(batch) is None or batch in stale}
        if answered is not None:
            undone[names.answered] = bool(documents.files(batch)) and is_unanswered(documents, answered, batch)
        undone[names.quality] = bool(documents.files(batch)) and is_unmeasured(output, answered, quality, batch)
        bad = failed.get(batch, set())
        undone = {names.documents: names.documents in bad, **undone}
        left = [key for key, is_undone in undone.items() if is_undone]
        if batch in failures and not bad & {*left}:
            # The run ended before it could record which asset failed: what it had to do first.
            bad = set(left[:1])
        return {key.to_user_string(): DONE if key not in left else FAILED if key in bad else WAITING for key in undone}

    def state(batch: str, scored: float | None) -> str:
        if batch in busy:
            return "running" if batch in running else "queued"
        if FAILED in assets(batch).values():
            return FAILED
        if batch in stale:
            return "landed" if scored is None else "stale"
        return SCORED if documents.files(batch) else "empty"

    found = []
    keys = {*documents.batches(), *rejected.batches(), *output.batches(), *known_batches(instance, pipeline)}
    written = scoring_summary(output, keys)
    for batch in sorted(keys):
        commit = output.last_commit(batch)
        scored = None if commit is None else commit.seconds
        found.append(
            Batch(
                batch=batch,
                state=state(batch, scored),
                documents=documents.rows(batch),
                rejected=rejected.rows(batch),
                retried=sum(
                    waiting_rows(table, batch, settings.error_attempts) for table in (output, answered) if table
                ),
                assets=assets(batch),
                **written[batch],
            )
        )
    return found


def _source_problem(settings: Settings) -> str | None:
    if settings.batch_by != COMMIT:
        return None
    lake, tables = Lake.of(settings, fail_fast=True), tables_of(settings)
    return lost_rows(settings, find_documents(lake, settings, tables), lake.find(tables.scored))


def scoring_summary(output: BatchSnapshot, batches: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Counts, model version and time of the last scoring of each batch."""
    counts = counts_by_batch(output)
    found = {}
    for batch in batches:
        commit = output.last_commit(batch)
        found[batch] = {
            **(asdict(known) if (known := counts.get(batch)) else dict.fromkeys(asdict(Counts()))),
            "model_version": None if commit is None else commit.metadata.get("model_version"),
            "scored_at": None if commit is None else _time(commit.seconds),
        }
    return found


def champion_of(instance: dg.DagsterInstance, settings: Settings) -> Champion | None:
    """The champion, or None if there is none.

    Raises:
        BatchAssetsError: the registry can't be read.
    """
    from batch_assets.models.registry import CHAMPION, RegisteredModel
    from batch_assets.models.tracking import existing_client
    from batch_assets.tasks.configured_task import task_of

    client = existing_client(settings)
    if client is None:
        return None
    from mlflow.exceptions import MlflowException

    score_name = task_of(settings).main_score
    try:
        version = RegisteredModel.of(client, settings).with_alias(CHAMPION)
        if version is None:
            return None
        metrics: Mapping[str, float] = client.get_run(version.run_id).data.metrics if version.run_id else {}
    except MlflowException as error:
        raise BatchAssetsError(f"the model registry can't be read: {error.message}") from error
    since = _since(instance, champion_key(settings), version.number)
    score = metrics.get(score_name)
    return Champion(version.name, settings.model_owner, version.number, score_name, score, since)


def _since(instance: dg.DagsterInstance, champion: dg.AssetKey, number: int) -> str | None:
    since = None
    events = instance.fetch_materializations(champion, limit=_PROMOTIONS_SEARCHED)
    for record in events.records:
        event = record.asset_materialization
        if event is None or (event.tags or {}).get("dagster/data_version") != str(number):
            break
        since = record.timestamp
    return _time(since)


def last_runs(instance: dg.DagsterInstance, pipeline: str) -> list[Run]:
    """The last runs of all pipelines, the newest first, with those of their batches that belong to this one."""
    known = known_batches(instance, pipeline)
    return [
        Run(
            run_id=record.dagster_run.run_id,
            job=record.dagster_run.job_name,
            status=record.dagster_run.status.value,
            began=str(_time(_start_time(record))),
            ended=_time(record.end_time),
            batches=batches_of(record.dagster_run, pipeline, known),
        )
        for record in instance.get_run_records(limit=_RUNS_SHOWN)
    ]


def failing_checks(instance: dg.DagsterInstance, settings: Settings) -> dict[str, dict[str, str]]:
    """The checks of a pipeline's tables that failed when they last ran, with their bad batches."""
    keys = {dg.AssetCheckKey(check.asset, check.name) for check in [*table_checks(settings), *quality_checks(settings)]}
    found = {}
    for key, record in instance.event_log_storage.get_latest_asset_check_execution_by_key(list(keys)).items():
        event = record.event.dagster_event if record.event else None
        if event is None or event.event_type != dg.DagsterEventType.ASSET_CHECK_EVALUATION:
            continue
        evaluation = event.asset_check_evaluation_data
        batches = evaluation.metadata.get("batches")
        if not evaluation.passed:
            found[key.name] = dict(batches.value) if batches and isinstance(batches.value, dict) else {}
    return dict(sorted(found.items()))


def _failures(instance: dg.DagsterInstance, pipeline: str) -> dict[str, Any]:
    """Batches of a pipeline whose last run failed, with the record of that run."""
    known = known_batches(instance, pipeline)
    last: dict[str, Any] = {}
    for record in instance.get_run_records(dg.RunsFilter(statuses=_FINISHED), limit=_RUNS_SEARCHED):
        for batch in batches_of(record.dagster_run, pipeline, known):
            last.setdefault(batch, record)
    failure = dg.DagsterRunStatus.FAILURE
    return {batch: record for batch, record in last.items() if record.dagster_run.status == failure}


def _start_time(record: Any) -> float:
    return float(record.start_time or record.create_timestamp.timestamp())


def _time(seconds: float | None) -> str | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC).isoformat(" ", "seconds")

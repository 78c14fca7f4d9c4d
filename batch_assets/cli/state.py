"""Commands for the deployment as a whole: status, doctor, forget, ui, upkeep."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from batch_assets.cli.common import (
    json_option,
    json_outcome_option,
    load,
    load_all,
    pipeline_option,
    print_json,
    print_table,
    progress_to_stderr,
)
from batch_assets.errors import BatchAssetsError, ExitStatus
from batch_assets.tasks.output_tables import tables_of

if TYPE_CHECKING:
    from batch_assets.operations.status import Batch, Status

_BATCHES_SHOWN = 20


@click.command()
@click.argument("pipeline", required=False)
@json_option
def status(pipeline: str | None, as_json: bool) -> None:
    """Show the batches and the champion of PIPELINE, by default of all pipelines, and the last runs.

    Changes nothing. A batch is running, queued, failed (its last run failed), landed (not scored yet), stale (needs
    scoring again), scored or empty. If there are more than 20 batches, scored ones are only counted; --json lists all.
    Exit status: 0 nothing has failed, 1 a batch has failed, or a pipeline is invalid or can't be shown, 2 the state
    can't be read.

    \b
    batch-assets status --json | jq '.batches[] | select(.state == "failed")'
    """
    from batch_assets.operations.status import status_of

    deployment = load_all()
    wanted = deployment.pipelines if pipeline is None else [deployment.pipeline(pipeline)]
    problems = [problem.message for problem in deployment.problems]
    states = {}
    for settings in wanted:
        try:
            states[settings.pipeline] = status_of(settings)
        except BatchAssetsError as error:
            if len(wanted) == 1:
                raise
            problems.append(f"{settings.pipeline} can't be shown: {error}")
    if as_json:
        shown = {name: {"counts": found.counts, **asdict(found)} for name, found in states.items()}
        only = shown[wanted[0].pipeline] if len(wanted) == 1 else {"pipelines": shown}
        print_json({**only, "invalid_pipelines": problems})
    else:
        _print_states(states, problems, len(wanted))
    if problems or any(found.has_failed for found in states.values()):
        sys.exit(ExitStatus.FAILED)


def _print_states(states: "Mapping[str, Status]", problems: Sequence[str], pipelines: int) -> None:
    for problem in problems:
        click.echo(f"invalid pipeline: {problem}")
    for name, found in states.items():
        if pipelines > 1:
            click.echo(f"pipeline {name}")
        _print_batches(found.batches, found.counts)
        if found.source_problem is not None:
            click.echo(found.source_problem)
        _print_champion(found, name)
        for check, bad in found.failing.items():
            click.echo(f"check {check} fails" + (f" for {_few(list(bad))}" if bad else ""))
    runs = next(iter(states.values())).runs if states else []
    if runs:
        click.echo("last runs")
        # Each state has the batches of its own pipeline's runs only.
        batches = {run.run_id: run.batches for state in states.values() for run in state.runs if run.batches}
        print_table(
            ["run", "job", "status", "began", "ended", "batches"],
            [
                (run.run_id, run.job, run.status, run.began, run.ended, _few(batches.get(run.run_id, [])))
                for run in runs
            ],
        )
    else:
        click.echo("no runs yet")


def _print_batches(batches: "Sequence[Batch]", counts: dict[str, int]) -> None:
    from batch_assets.operations.status import FAILED, SCORED

    if not batches:
        click.echo("no batches yet: run 'batch-assets run', or land files")
        return
    click.echo(f"{len(batches)} batches: " + ", ".join(f"{count} {state}" for state, count in counts.items()))
    notable = batches if len(batches) <= _BATCHES_SHOWN else [batch for batch in batches if batch.state != SCORED]
    shown = notable[:_BATCHES_SHOWN]
    if shown:
        titles = ["batch", "state", "documents", "rejected", "answers", "errors", "no text", "version", "scored"]
        print_table(titles, [tuple(asdict(batch).values())[: len(titles)] for batch in shown])
    for batch in shown:
        if batch.state == FAILED:
            click.echo(f"batch {batch.batch}: " + ", ".join(f"{name} {state}" for name, state in batch.assets.items()))
        if batch.retried:
            click.echo(f"batch {batch.batch}: {batch.retried} failed rows are requested again")
    if len(shown) < len(batches):
        click.echo(f"{len(batches) - len(shown)} more batches are not shown; --json lists all")


def _print_champion(found: "Status", pipeline: str) -> None:
    champion = found.champion
    if found.champion_problem is not None:
        click.echo(f"champion: unknown, {found.champion_problem}")
    elif champion is None:
        click.echo("no champion yet")
    else:
        score = "no score" if champion.score is None else f"{champion.score_name} {champion.score:.3f}"
        since = f"since {champion.since}" if champion.since else "promoted at an unknown time"
        whose = "" if champion.pipeline == pipeline else f" of the pipeline {champion.pipeline}"
        click.echo(f"champion: version {champion.version} of {champion.model}{whose}, {score}, {since}")


def _few(batches: Sequence[str]) -> str:
    if len(batches) <= 2:
        return ", ".join(batches)
    return f"{batches[0]} to {batches[-1]} ({len(batches)})"


@click.command()
@json_option
def doctor(as_json: bool) -> None:
    """Check Java, memory, disk, hub, endpoints, tracking server and state, and explain how to fix problems.

    Changes nothing. Requests each endpoint's list of models, using its API key. Exit status: 0 no problems, 1 at least
    one problem, 2 a setting is invalid.

    \b
    batch-assets doctor
    """
    from batch_assets.operations.doctor import PROBLEM, examine

    with progress_to_stderr(as_json):
        findings = examine(load_all())
    if as_json:
        print_json({"findings": [asdict(finding) for finding in findings]})
    else:
        print_table(["", "check", "result", "what to do"], [tuple(asdict(finding).values()) for finding in findings])
    if any(finding.level == PROBLEM for finding in findings):
        sys.exit(ExitStatus.FAILED)


@click.command()
@click.argument("document_id", metavar="ID")
@click.option("--yes", is_flag=True, help="Start without asking for confirmation.")
@pipeline_option
@json_outcome_option
def forget(document_id: str, yes: bool, pipeline: str | None, as_json: bool) -> None:
    """Remove the document with this ID, and everything generated from it, from tables, completions and reports.

    The document can't be landed again, in any batch. Batches that contained it become stale, and the next run measures
    them again. Prints the places that this command can't reach. Exit status: 0 done, 1 you answered no, 2 another
    writer changed a batch: run the command again.

    \b
    batch-assets forget review-4711
    """
    import uuid

    from batch_assets.lake.lake import Lake
    from batch_assets.models.tracking import connect
    from batch_assets.operations import forget as forgetting

    settings = load(pipeline)
    lake = Lake.of(settings)
    with progress_to_stderr(as_json):
        found = forgetting.find(lake, settings, document_id)
        rows = [(table, ", ".join(batches)) for table, batches in found.batches.items()]
        rows += [("report", report) for report in found.reports]
        if rows:
            print_table(["found in", "batches"], rows)
        else:
            click.echo(f"no table contains {document_id!r}; it will be rejected if it lands later")
        if not yes:
            click.confirm("Remove it permanently?", abort=True)
        found = forgetting.forget(lake, settings, connect(settings), document_id, f"forget {uuid.uuid4().hex}")
    left = forgetting.out_of_reach(lake, settings, found)
    if as_json:
        print_json({"removed": {**found.batches, "reports": found.reports}, "out of reach": left})
        return
    click.echo("Removed. These places are out of reach and may still contain it:")
    for place in left:
        click.echo(f"- {place}")


@click.command()
def ui() -> None:
    """Serve the Dagster UI and the MLflow UI on this machine until you press Ctrl-C.

    Sensors and schedules run as well, so new data is scored automatically. Killed runs are marked as failed first.
    Exit status: 0 stopped, 2 a port is in use.

    \b
    batch-assets ui
    """
    from batch_assets.operations.local_runs import close_orphaned_runs
    from batch_assets.operations.ui import serve
    from batch_assets.resources.dagster_storage import open_instance

    settings = load_all().default
    with open_instance(settings) as instance:
        for run_id in close_orphaned_runs(instance):
            click.echo(f"run {run_id} was killed; Dagster retries it if it has retries left")
    serve(settings, click.echo)


@click.command()
@json_outcome_option
def upkeep(as_json: bool) -> None:
    """Compact small files, write checkpoints, and remove files that are no longer needed.

    Safe to run at any time: a batch that is being replaced is skipped until the next upkeep. Exit status: 0 done,
    2 a table can't be written.

    \b
    batch-assets upkeep
    """
    from batch_assets.lake.lake import Lake
    from batch_assets.lake.upkeep import maintain
    from batch_assets.scoring.completions import remove_abandoned

    deployment = load_all()
    settings = deployment.default
    lake = Lake.of(settings)
    tables = [table for one in deployment.pipelines for table in tables_of(one).all if lake.exists(table)]
    outcome = []
    with progress_to_stderr(as_json):
        if not tables:
            click.echo(f"there are no tables in {settings.lake_uri} yet")
        for table in tables:
            done = maintain(lake.find(table).delta, settings.vacuum_hours, click.echo)
            outcome.append({"table": table.name, **asdict(done)})
            click.echo(
                f"{table.name}: compacted {done.compacted} files into {done.became}, removed {done.vacuumed} unneeded "
                "files, wrote a checkpoint"
            )
        swept = remove_abandoned(lake, settings.vacuum_hours)
        click.echo(f"removed {swept} files of abandoned completions")
    if as_json:
        print_json({"tables": outcome, "completions": swept})

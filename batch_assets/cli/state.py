"""Commands about the state as a whole: status, doctor, forget, ui, upkeep."""

import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from batch_assets.cli.common import json_option, json_outcome_option, load, print_json, print_table, progress_aside
from batch_assets.errors import ExitStatus

if TYPE_CHECKING:
    from batch_assets.automation.status import Batch, Status

_BATCHES_SHOWN = 20


@click.command()
@json_option
def status(as_json: bool) -> None:
    """Show the batches, the champion and the last runs; changes nothing.

    A batch is running or queued, failed (its last run did), landed (not scored yet), stale (to be scored again),
    scored, or empty. Of more than 20 batches, those that are scored are only counted; --json has all. Exit status:
    0 shown, 2 the state can't be read.

    \b
    batch-assets status --json | jq '.batches[] | select(.state == "failed")'
    """
    from batch_assets.automation.status import status_of

    found = status_of(load())
    if as_json:
        print_json({"counts": found.counts, **asdict(found)})
        return
    _print_batches(found.batches, found.counts)
    _print_champion(found)
    if found.runs:
        click.echo("last runs")
        print_table(
            ["run", "job", "status", "began", "ended", "batches"],
            [(run.run_id, run.job, run.status, run.began, run.ended, _few(run.batches)) for run in found.runs],
        )
    else:
        click.echo("no runs yet")


def _print_batches(batches: "Sequence[Batch]", counts: dict[str, int]) -> None:
    from batch_assets.automation.status import SCORED

    if not batches:
        click.echo("no batches yet: start 'batch-assets run', or land files")
        return
    click.echo(f"{len(batches)} batches: " + ", ".join(f"{count} {state}" for state, count in counts.items()))
    notable = batches if len(batches) <= _BATCHES_SHOWN else [batch for batch in batches if batch.state != SCORED]
    shown = notable[:_BATCHES_SHOWN]
    if shown:
        titles = ["batch", "state", "documents", "rejected", "summaries", "errors", "no text", "version", "scored"]
        print_table(titles, [tuple(asdict(batch).values()) for batch in shown])
    if len(shown) < len(batches):
        click.echo(f"{len(batches) - len(shown)} batches are left out; --json has all")


def _print_champion(found: "Status") -> None:
    champion = found.champion
    if found.champion_problem is not None:
        click.echo(f"champion: nobody can tell, {found.champion_problem}")
    elif champion is None:
        click.echo("no champion yet")
    else:
        score = "no score" if champion.score is None else f"{champion.score_name} {champion.score:.3f}"
        since = f"since {champion.since}" if champion.since else "since when, Dagster has not heard"
        click.echo(f"champion: version {champion.version} of {champion.model}, {score}, {since}")


def _few(batches: Sequence[str]) -> str:
    if len(batches) <= 2:
        return ", ".join(batches)
    return f"{batches[0]} to {batches[-1]} ({len(batches)})"


@click.command()
@json_option
def doctor(as_json: bool) -> None:
    """Check Java, memory, disk, hub, endpoints, tracking server and state, and say what to do.

    It changes nothing. Each endpoint is asked for its list of models, with its key. Exit status: 0 nothing is a
    problem, 1 something is, 2 a setting can't be used.

    \b
    batch-assets doctor
    """
    from batch_assets.doctor import PROBLEM, examine

    with progress_aside(as_json):
        findings = examine(load())
    if as_json:
        print_json({"findings": [asdict(finding) for finding in findings]})
    else:
        print_table(["", "what", "found", "what to do"], [tuple(asdict(finding).values()) for finding in findings])
    if any(finding.level == PROBLEM for finding in findings):
        sys.exit(ExitStatus.FAILED)


@click.command()
@click.argument("document_id", metavar="ID")
@click.option("--yes", is_flag=True, help="Don't ask before it starts.")
@json_outcome_option
def forget(document_id: str, yes: bool, as_json: bool) -> None:
    """Remove the document ID, and what was made from it, from all tables, completions and reports.

    It is kept from being landed again, in whichever batch. Says what it can't reach. Batches that held it are stale
    then: the next run measures them again. Exit status: 0 done, 1 the answer was no, 2 somebody else was at a batch:
    call again.

    \b
    batch-assets forget review-4711
    """
    import uuid

    from batch_assets.automation import forgetting
    from batch_assets.lake.configured import configured_lake
    from batch_assets.models.tracking import connect

    settings = load()
    lake = configured_lake(settings)
    with progress_aside(as_json):
        found = forgetting.find(lake, settings, document_id)
        rows = [(table, ", ".join(batches)) for table, batches in found.batches.items()]
        rows += [("report", report) for report in found.reports]
        if rows:
            print_table(["found in", "batches"], rows)
        else:
            click.echo(f"no table holds {document_id!r}; it will be kept from being landed")
        if not yes:
            click.confirm("Remove it for good?", abort=True)
        found = forgetting.forget(lake, settings, connect(settings), document_id, f"forget {uuid.uuid4().hex}")
    left = forgetting.out_of_reach(lake, settings, found)
    if as_json:
        print_json({"removed": {**found.batches, "reports": found.reports}, "out of reach": left})
        return
    click.echo("Removed. Out of reach, and perhaps still holding it:")
    for place in left:
        click.echo(f"- {place}")


@click.command()
def ui() -> None:
    """Open the Dagster UI and the MLflow UI on this machine, and stop both with Ctrl-C.

    Sensors and schedules work meanwhile: new data is scored by itself. Runs that were killed are closed first. Exit
    status: 0 stopped, 2 a port is taken.

    \b
    batch-assets ui
    """
    from batch_assets.automation.launch import close_orphaned_runs
    from batch_assets.automation.storage import open_instance
    from batch_assets.ui import serve

    settings = load()
    with open_instance(settings) as instance:
        for run_id in close_orphaned_runs(instance):
            click.echo(f"run {run_id} was killed; it is tried again where retries are left")
    serve(settings, click.echo)


@click.command()
@json_outcome_option
def upkeep(as_json: bool) -> None:
    """Put small files together, write checkpoints, and remove files that nothing needs any more.

    It may run beside everything else: a batch that is being replaced meanwhile is left for the next time. Exit status:
    0 done, 2 a table can't be written here.

    \b
    batch-assets upkeep
    """
    from batch_assets.inference.completions import sweep
    from batch_assets.lake.configured import configured_lake
    from batch_assets.lake.tables import TABLES
    from batch_assets.lake.upkeep import keep_up

    settings = load()
    lake = configured_lake(settings)
    tables = [table for table in TABLES if lake.exists(table)]
    outcome = []
    with progress_aside(as_json):
        if not tables:
            click.echo(f"there are no tables in {settings.lake_uri} yet")
        for table in tables:
            done = keep_up(lake.open(table).delta, settings.vacuum_hours, click.echo)
            outcome.append({"table": table.name, **asdict(done)})
            click.echo(
                f"{table.name}: {done.compacted} files became {done.became}, {done.vacuumed} unneeded files removed, "
                "checkpoint written"
            )
        swept = sweep(lake, settings.vacuum_hours)
        click.echo(f"{swept} files of abandoned completions removed")
    if as_json:
        print_json({"tables": outcome, "completions": swept})

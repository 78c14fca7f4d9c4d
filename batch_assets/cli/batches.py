"""Commands that run the graph over batches: run, land, rescore."""

import sys
import time
from pathlib import Path
from typing import Any

import click

from batch_assets.cli.common import end_if, load
from batch_assets.settings import PREFIX, Settings, redacted

_CELL = 160


@click.command()
def run() -> None:
    """Materialize the whole graph for the configured data set and model.

    What is up to date is left as it is, so a second call does little. Exit status: 0 done, 1 an asset
    failed, 2 something has to be put right first.
    """
    from batch_assets.locks import locked

    started = time.monotonic()
    settings = load()
    refusal = (
        f"another 'batch-assets run' is working in {settings.home}: wait for it, or set {PREFIX}HOME to another folder"
    )
    with locked(settings.home / ".run.lock", refusal=refusal):
        _run(settings, started)


def _run(settings: Settings, started: float) -> None:
    from batch_assets.preflight import check_run

    dataset = check_run(settings)
    import dagster as dg

    from batch_assets.automation.launch import (
        close_dead_runs,
        held_pools,
        materialize,
        prepare_dagster_home,
    )
    from batch_assets.automation.runs import register_batches
    from batch_assets.definitions import build_defs
    from batch_assets.lake.configured import configured_lake
    from batch_assets.models.checkpoint import load_checkpoint
    from batch_assets.models.pipeline import generation_parameters
    from batch_assets.sources.landing import left_over_batches

    batches = dataset.batches()
    click.echo(f"{len(batches)} batches of {dataset.name}, model {settings.model}, state in {settings.home}")
    click.echo("preparing the checkpoint (the first time takes half a minute)")
    generation_parameters(load_checkpoint(settings), settings)
    prepare_dagster_home(settings)
    with dg.DagsterInstance.get() as instance:
        for run_id in close_dead_runs(instance):
            click.echo(f"run {run_id} was killed; this one goes on where it stopped")
        for pool, run_id in held_pools(instance):
            click.echo(f"run {run_id} holds the pool {pool}; this one waits for it (is it dead? cancel it in the UI)")
        register_batches(instance, batches)
        lake = configured_lake(settings)
        for batch in left_over_batches(dataset, lake):
            click.echo(f"batch {batch} is not made from {dataset.name} any more with these settings; it stays as it is")
        failures = materialize(build_defs(settings=settings), instance, "materialize_all", batches)
    end_if(failures)
    _summarize(settings, batches)
    click.echo(f"Done in {time.monotonic() - started:.0f} seconds.")


def _summarize(settings: Settings, batches: list[str]) -> None:
    """Print a few summaries, the figures, and where everything is."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from batch_assets.assets._tables import sample_rows
    from batch_assets.lake.configured import configured_lake
    from batch_assets.lake.tables import AI_QUERY_INFERENCE, BATCH_INFERENCE, SUMMARY_QUALITY, TABLES
    from batch_assets.quality.report import totals

    console = Console(width=None if sys.stdout.isatty() else 160)
    lake = configured_lake(settings)
    answered = sample_rows(lake.open(AI_QUERY_INFERENCE), batches[0], ["id", "generated_summary"], settings.samples)
    answers = {row["id"]: row["generated_summary"] for row in answered}
    rows = [
        row
        for part in lake.open(BATCH_INFERENCE).read(batches[0], ["id", "document", "summary", "generated_summary"])
        for row in part.to_pylist()
        if row["id"] in answers
    ]
    if rows:
        table = Table(box=box.SIMPLE, show_lines=True)
        for title in ("document", "expert summary", "champion", "ai_query"):
            table.add_column(title, ratio=1)
        for row in rows:
            cells = (row["document"], row["summary"], row["generated_summary"], answers[row["id"]])
            # Text, not markup: a document may hold square brackets.
            table.add_row(*(Text(_cut(cell)) for cell in cells))
        console.print(table)
    quality = lake.open(SUMMARY_QUALITY)
    figures = totals(row for batch in batches for part in quality.read(batch) for row in part.to_pylist())
    console.print(_figures(figures))
    for name in TABLES:
        if lake.exists(name):
            click.echo(f"table    {lake.table_uri(name)}")
    click.echo(f"MLflow   {redacted(settings.tracking_uri)}")
    click.echo(f"report   {settings.home / 'reports' / 'quality_report.md'}")
    click.echo(f"UIs      make ui, then http://127.0.0.1:{settings.ui_port} and {settings.mlflow_ui}")


def _cut(text: str | None) -> str:
    plain = " ".join((text or "").split())
    return plain if len(plain) <= _CELL else plain[:_CELL] + " …"


def _figures(figures: list[dict[str, Any]]) -> Any:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE)
    for title in (
        "table",
        "model",
        "version",
        "summaries",
        "errors",
        "ROUGE-1",
        "ROUGE-2",
        "ROUGE-L",
        "lead-3 ROUGE-1",
    ):
        table.add_column(title)
    for row in figures:
        scores = [row[name] for name in ("rouge1", "rouge2", "rougeL", "lead_rouge1")]
        table.add_row(
            row["table_name"],
            row["model_name"],
            row["model_version"],
            str(row["summaries"]),
            str(row["errors"]),
            *("" if score is None else f"{score:.3f}" for score in scores),
        )
    return table


@click.command()
@click.argument("files", nargs=-1, required=True, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--batch", help="Name of the batch; by default that of the file.")
def land(files: tuple[Path, ...], batch: str | None) -> None:
    """Bring FILES into m4_1_prod_data as one batch, without waiting for a sensor.

    JSON Lines, CSV or Parquet, also gzip. Records that can't be used are set aside with their reasons.
    """
    import dagster as dg

    from batch_assets.automation.launch import materialize, prepare_dagster_home
    from batch_assets.automation.runs import register_batches
    from batch_assets.definitions import build_defs
    from batch_assets.sources.configured import landing_folder

    settings = load()
    folder = landing_folder(settings)
    name = folder.take_copies(files, batch)
    batches = folder.keys_of(name)
    prepare_dagster_home(settings)
    with dg.DagsterInstance.get() as instance:
        register_batches(instance, batches)
        failures = materialize(build_defs(settings=settings), instance, "land_batches", batches)
    end_if(failures)
    folder.forget(name)
    click.echo(f"landed: {', '.join(batches)}")


@click.command()
@click.option("--batches", help="Batches, with commas between them.")
@click.option("--all", "everything", is_flag=True, help="All batches.")
@click.option("--since", type=click.DateTime(), help="Batches that were scored before that time (UTC) are left alone.")
@click.option("--yes", is_flag=True, help="Don't ask before it starts.")
def rescore(batches: str | None, everything: bool, since: Any, yes: bool) -> None:
    """Score batches again with the champion that there is now; what it would write the same is not scored."""
    import dagster as dg

    from batch_assets.automation.launch import materialize, prepare_dagster_home
    from batch_assets.automation.rescoring import expectation, wanted_batches
    from batch_assets.definitions import build_defs
    from batch_assets.lake.configured import configured_lake

    if sum([batches is not None, everything, since is not None]) != 1:
        raise click.UsageError("name the batches by one of --batches, --all and --since")
    settings = load().model_copy(update={"rescore": "all"})
    prepare_dagster_home(settings)
    with dg.DagsterInstance.get() as instance:
        lake = configured_lake(settings)
        wanted = wanted_batches(lake, batches.split(",") if batches else None, since)
        click.echo(expectation(instance, lake, wanted))
        if not wanted:
            return
        if not yes:
            click.confirm("Start?", abort=True)
        failures = materialize(build_defs(settings=settings), instance, "score_batches", wanted)
    end_if(failures)

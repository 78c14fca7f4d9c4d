"""The command batch-assets."""

import hashlib
import os
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import click

from batch_assets.errors import BatchAssetsError, ExitStatus
from batch_assets.settings import PREFIX, Settings, load_settings, redacted

_CELL = 160


class _Group(click.Group):
    """Turns an error that the user can mend into one line and exit status 2."""

    def invoke(self, context: click.Context) -> Any:
        try:
            return super().invoke(context)
        except (BatchAssetsError, OSError) as error:
            # An OSError says which file or address it is about: a full disk, a folder that may not be written.
            click.echo(f"batch-assets: {' '.join(str(error).split())}", err=True)
            sys.exit(ExitStatus.REFUSED)


@click.group(cls=_Group)
def main() -> None:
    """Turn text in Delta tables into governed summaries.

    Settings are environment variables that start with BATCH_ASSETS_; docs/reference/settings.md lists them.
    """
    # Dagster warns of its own beta parameters each time that definitions are loaded.
    warnings.filterwarnings("ignore", module="dagster")


def _load() -> Settings:
    from batch_assets.hub import keep_off_the_hub

    settings = load_settings()
    # The code location and the workers must see the same home, wherever they are started.
    os.environ[f"{PREFIX}HOME"] = str(settings.home)
    keep_off_the_hub(settings)
    return settings


@main.command()
def run() -> None:
    """Materialize the whole graph for the configured data set and model.

    What is up to date is left as it is, so a second call does little. Exit status: 0 done, 1 an asset
    failed, 2 something has to be put right first.
    """
    from batch_assets.locks import locked

    started = time.monotonic()
    settings = _load()
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
    _end_if(failures)
    _summarize(settings, batches)
    click.echo(f"Done in {time.monotonic() - started:.0f} seconds.")


def _end_if(failures: list[str]) -> None:
    """End with exit status 1 where an asset failed."""
    if failures:
        click.echo(f"failed: {', '.join(failures)}; their batches are as they were. The reasons are above.", err=True)
        sys.exit(ExitStatus.FAILED)


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


@main.command()
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

    settings = _load()
    folder = landing_folder(settings)
    name = folder.take_copies(files, batch)
    batches = folder.keys_of(name)
    prepare_dagster_home(settings)
    with dg.DagsterInstance.get() as instance:
        register_batches(instance, batches)
        failures = materialize(build_defs(settings=settings), instance, "land_batches", batches)
    _end_if(failures)
    folder.forget(name)
    click.echo(f"landed: {', '.join(batches)}")


@main.command()
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
    settings = _load().model_copy(update={"rescore": "all"})
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
    _end_if(failures)


@main.command()
@click.option("--tag", "tags", multiple=True, metavar="KEY=VALUE", help="Only versions with this tag; may be repeated.")
@click.option("--json", "as_json", is_flag=True, help="Print each version as one line of JSON.")
def models(tags: tuple[str, ...], as_json: bool) -> None:
    """List the registered versions: aliases, scores, the decision about each, and what they have written."""
    from batch_assets.lake.configured import configured_lake
    from batch_assets.models.overview import overview
    from batch_assets.models.tracking import connect

    settings = _load()
    rows = overview(connect(settings), settings, configured_lake(settings), tags)
    if not rows and not as_json:
        click.echo(f"{settings.registered_model} has no versions{' with these tags' if tags else ' yet'}")
        return
    columns = ["version", "aliases", "checkpoint", "scores", "decision", "written"]
    if as_json:
        import json

        for row in rows:
            click.echo(json.dumps(row))
        return
    _print_table(columns, [[row[column] for column in columns] for row in rows])


@main.command()
@click.argument("version", type=click.IntRange(min=1))
def promote(version: int) -> None:
    """Make a VERSION the champion by hand, whatever its scores. It has to load and to answer first."""
    from batch_assets.automation.promotion import promote_version

    settings = _load()
    click.echo(promote_version(settings, version, click.echo))


@main.command()
def rollback() -> None:
    """Make the version the champion again that was it before; the two swap."""
    from batch_assets.automation.promotion import roll_back

    settings = _load()
    click.echo(roll_back(settings))


@main.command(name="try")
@click.argument("text")
def try_(text: str) -> None:
    """Let the champion answer to TEXT, as batch_inference would; - reads it from standard input."""
    from batch_assets.inference.contract import generate
    from batch_assets.inference.engines import load_engine
    from batch_assets.models.registry import champion, scoring_model
    from batch_assets.models.tracking import connect

    settings = _load()
    client = connect(settings)
    document = sys.stdin.read() if text == "-" else text
    model = scoring_model(client, champion(client, settings), settings.model_copy(update={"engine": "transformers"}))
    (generation,) = generate(load_engine(model, os.cpu_count() or 1), [document])
    if generation.text is None:
        raise BatchAssetsError(generation.error_message or "no answer")
    click.echo(generation.text)
    click.echo(
        f"version {model.version} of {model.name}, {generation.input_tokens} + {generation.output_tokens} tokens, "
        f"{generation.finish_reason}" + (", the text was cut" if generation.input_truncated else ""),
        err=True,
    )


@main.command()
@click.argument("statement")
@click.option("--resume", is_flag=True, help="Go on with the same statement that was interrupted: ask what is missing.")
@click.option("--json", "as_json", is_flag=True, help="Print each row as one line of JSON.")
def query(statement: str, resume: bool, as_json: bool) -> None:
    """Run one SQL statement, in which ai_query and its family ask the configured endpoints.

    STATEMENT is a query, or CREATE [OR REPLACE] TABLE ... AS; - reads it from standard input. Tables of the lake go by
    one to three names. Progress goes to standard error. Exit status: 0 done, 2 the statement can't be run.

    \b
    batch-assets query "SELECT id, ai_summarize(document, 20) AS short FROM m4_1_prod_data LIMIT 3"
    """  # noqa: D301 - click wants the control character itself
    from batch_assets.ai_functions.sql import endpoints_of
    from batch_assets.ai_functions.statement import run_for_user
    from batch_assets.lake.configured import configured_lake
    from batch_assets.locks import locked
    from batch_assets.resources.endpoints import EndpointsResource
    from batch_assets.resources.spark import SparkResource

    settings = _load()
    if statement == "-":
        statement = sys.stdin.read()
    names = endpoints_of(statement, settings.endpoint)
    lake = configured_lake(settings)
    endpoints = EndpointsResource(file=None if settings.endpoints is None else str(settings.endpoints))
    spark = SparkResource(master=settings.spark_master)
    try:
        ready = {name: endpoints.get(name) for name in sorted(names)}
        from batch_assets.ai_functions.functions import register_ai_functions

        functions = register_ai_functions(spark.session, ready, settings.endpoint)
        # Two of the same would take each other's answers away.
        digest = hashlib.sha256(statement.encode()).hexdigest()[:16]
        with locked(
            settings.home / "locks" / f"query-{digest}.lock", refusal="the same statement is being run already"
        ):
            frame, rows, usage = run_for_user(
                spark.session, functions, statement, lake, lambda line: click.echo(line, err=True), resume=resume
            )
        count = frame.count() if rows is None else len(rows)
        if rows is not None:
            _print_rows(frame.columns, rows, as_json)
    finally:
        endpoints.stop()
        spark.stop()
    tokens = f", {usage.prompt_tokens} + {usage.completion_tokens} tokens" if usage.requests else ""
    click.echo(f"{count} rows, {usage.requests} requests{tokens}", err=True)


def _print_rows(columns: list[str], rows: list[Any], as_json: bool) -> None:
    import json

    if as_json:
        for row in rows:
            click.echo(json.dumps(row.asDict(recursive=True), ensure_ascii=False, default=str))
        return
    _print_table(columns, rows)


def _print_table(columns: list[str], rows: list[Any]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE, show_lines=True)
    for title in columns:
        table.add_column(Text(title))
    for row in rows:
        # Text, not markup: a value may hold square brackets.
        table.add_row(*(Text("" if cell is None else str(cell)) for cell in row))
    Console(width=None if sys.stdout.isatty() else 160).print(table)


@main.command()
def ui() -> None:
    """Open the Dagster UI and the MLflow UI on this machine, and stop both with Ctrl-C."""
    import dagster as dg

    from batch_assets.automation.launch import close_orphaned_runs, prepare_dagster_home
    from batch_assets.ui import serve

    settings = _load()
    prepare_dagster_home(settings)
    with dg.DagsterInstance.get() as instance:
        for run_id in close_orphaned_runs(instance):
            click.echo(f"run {run_id} was killed; it is tried again where retries are left")
    serve(settings, click.echo)


@main.command()
def upkeep() -> None:
    """Put small files together, write checkpoints, and remove data files that nothing needs any more.

    It may run beside everything else: a batch that is being replaced meanwhile is left for the next time.
    """
    from batch_assets.lake.configured import configured_lake
    from batch_assets.lake.tables import TABLES
    from batch_assets.lake.upkeep import keep_up

    settings = _load()
    lake = configured_lake(settings)
    tables = [table for table in TABLES if lake.exists(table)]
    if not tables:
        click.echo(f"there are no tables in {settings.lake_uri} yet")
    for table in tables:
        done = keep_up(lake.open(table).delta, settings.vacuum_hours, click.echo)
        click.echo(
            f"{table.name}: {done.compacted} files became {done.became}, {done.vacuumed} unneeded files removed, "
            "checkpoint written"
        )

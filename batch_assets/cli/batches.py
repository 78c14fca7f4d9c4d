"""Commands that run the graph over batches: run, land, rescore."""

import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from batch_assets.cli.common import (
    exit_if_failed,
    json_outcome_option,
    load,
    pipeline_option,
    print_json,
    print_table,
    progress_to_stderr,
)
from batch_assets.settings import DEFAULT_PIPELINE, PREFIX, Settings, redacted
from batch_assets.tasks.configured_task import task_of
from batch_assets.tasks.output_tables import measured_task, tables_of
from batch_assets.text_template import as_text

if TYPE_CHECKING:
    import dagster as dg

_CELL = 160
_REASONS_SHOWN = 3


def _definitions(settings: Settings) -> "dg.Definitions":
    from batch_assets.definitions import build_defs

    return build_defs(settings=settings)


@click.command()
@click.argument("pipeline", default=DEFAULT_PIPELINE)
@json_outcome_option
def run(pipeline: str, as_json: bool) -> None:
    """Materialize the whole graph of PIPELINE, by default of summaries.

    Batches that are up to date are skipped; if nothing has changed since the last run, nothing runs. Exit status:
    0 done, 1 an asset failed, 2 a problem must be fixed first.

    \b
    BATCH_ASSETS_DATASET='reviews/*.jsonl' batch-assets run
    """
    from batch_assets.locks import locked
    from batch_assets.operations.run import run_graph, run_lock

    started = time.monotonic()
    settings = load(pipeline)
    refusal = (
        f"another 'batch-assets run' is running in {settings.home}: wait for it to finish, or set {PREFIX}HOME to "
        "another folder"
    )
    with locked(run_lock(settings), refusal=refusal):
        with progress_to_stderr(as_json):
            batches, failures = run_graph(settings, _definitions, click.echo)
            if not failures and not as_json:
                _summarize(settings, batches)
        seconds = round(time.monotonic() - started)
        if as_json:
            figures = [] if failures else _figures(settings, batches)
            print_json({"batches": batches, "failed": failures, "seconds": seconds, "figures": figures})
    exit_if_failed(failures)
    if not as_json:
        click.echo(f"Done in {seconds} seconds.")


def _summarize(settings: Settings, batches: list[str]) -> None:
    """Print a few answers, the scores, and where everything is."""
    from batch_assets.lake.lake import Lake
    from batch_assets.quality.report import shown_figures

    lake, tables, task = Lake.of(settings), tables_of(settings), measured_task(settings)
    _print_answers(settings, batches[0])
    # More columns would not fit into a terminal.
    scores = {figure.title: figure.name for figure in shown_figures(task) if figure.needs_reference}
    print_table(
        ["table", "model", task.words[1], "errors", *scores],
        [
            [
                row["table_name"],
                f"{row['model_name']} {row['model_version'] or ''}".rstrip(),
                *(row[name] for name in ("summaries", "errors")),
                *("" if row[name] is None else f"{row[name]:.3f}" for name in scores.values()),
            ]
            for row in _figures(settings, batches)
        ],
    )
    for table in tables.all:
        if lake.exists(table):
            click.echo(f"table    {lake.table_uri(table)}")
    click.echo(f"MLflow   {redacted(settings.tracking_uri)}")
    click.echo(f"report   {settings.report_file}")
    click.echo(f"UIs      make ui, then http://127.0.0.1:{settings.ui_port} and {settings.mlflow_pages}")


def _print_answers(settings: Settings, batch: str) -> None:
    """Print a few documents of a batch with their answers."""
    from batch_assets.graph.table_metadata import sample_rows
    from batch_assets.lake.lake import Lake

    lake, tables = Lake.of(settings), tables_of(settings)
    output = tables.scored.output_column
    by_endpoint: dict[str, Any] = {}
    if tables.answered is not None:
        answered = sample_rows(lake.open(tables.answered), batch, ["id", output], settings.samples)
        by_endpoint = {row["id"]: row[output] for row in answered}
    columns = ["id", "document", tables.scored.reference_column, output]
    scored = lake.open(tables.scored)
    if by_endpoint:
        found = (row for part in scored.read(batch, columns) for row in part.to_pylist())
        rows = [row for row in found if row["id"] in by_endpoint]
    else:
        rows = list(sample_rows(scored, batch, columns, settings.samples))
    if not rows:
        return
    titles = ["document", f"expert {task_of(settings).words[0]}", "champion", "ai_query"]
    cells = [[*(_cut(row[name]) for name in columns[1:]), _cut(by_endpoint.get(row["id"]))] for row in rows]
    shown = len(titles) if tables.answered is not None else len(titles) - 1
    print_table(titles[:shown], [row[:shown] for row in cells])


def _figures(settings: Settings, batches: list[str]) -> list[dict[str, Any]]:
    """Scores and counts of the batches, one row for each table and model version."""
    from batch_assets.lake.lake import Lake
    from batch_assets.quality.batch_measures import quality_rows
    from batch_assets.quality.report import totals

    quality = Lake.of(settings).open(tables_of(settings).quality)
    return totals((row for batch in batches for row in quality_rows(quality, batch)), measured_task(settings))


def _cut(value: Any) -> str:
    plain = " ".join((as_text(value) or "").split())
    return plain if len(plain) <= _CELL else plain[:_CELL] + " …"


@click.command()
@click.argument("files", nargs=-1, required=True, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--batch", help="Name of the batch; default: the name of the file.")
@pipeline_option
@json_outcome_option
def land(files: tuple[Path, ...], batch: str | None, pipeline: str | None, as_json: bool) -> None:
    """Load FILES into the pipeline's table of documents as one batch, without waiting for a sensor.

    Files can be JSON Lines or CSV, plain or gzipped, or Parquet. Records that can't be used are rejected with a reason.
    An earlier batch with the same name is replaced. Exit status: 0 done, 1 landing failed, 2 a file can't be used.

    \b
    batch-assets land reviews.jsonl more.csv --batch monday
    """
    from batch_assets.operations.land import land_files

    settings = load(pipeline)
    with progress_to_stderr(as_json):
        landed, failures = land_files(settings, _definitions, files, batch)
    if as_json:
        print_json({"batches": [asdict(one) for one in landed], "failed": failures})
    exit_if_failed(failures)
    if not as_json:
        rows = [(one.batch, one.documents, one.rejected, _most_frequent(one.reasons)) for one in landed]
        print_table(["batch", "documents", "rejected", "reasons"], rows)


def _most_frequent(reasons: dict[str, int]) -> str:
    """The most frequent reasons, as text."""
    shown = [f"{count} x {reason}" for reason, count in list(reasons.items())[:_REASONS_SHOWN]]
    others = len(reasons) - len(shown)
    return "; ".join(shown) + (f"; and {others} other reasons" if others else "")


@click.command()
@click.option("--batches", help="Names of batches, separated by commas.")
@click.option("--all", "everything", is_flag=True, help="All batches.")
@click.option("--since", type=click.DateTime(), help="Only batches scored at or after this time (UTC).")
@click.option("--errors", is_flag=True, help="Only failed rows, with the version that scored their batch.")
@click.option("--yes", is_flag=True, help="Start without asking for confirmation.")
@pipeline_option
@json_outcome_option
def rescore(
    batches: str | None, everything: bool, since: Any, errors: bool, yes: bool, pipeline: str | None, as_json: bool
) -> None:
    """Score batches again with the current champion, skipping documents whose request has not changed.

    With --errors, all failed rows of the batches (by default of all batches) are requested again, and nothing else.
    Prints how many documents there are and how long they may take, then asks for confirmation. Exit status: 0 done,
    1 a run failed or you answered no, 2 a batch does not exist.

    \b
    batch-assets rescore --since 2026-01-31 --yes
    """
    from batch_assets.graph.partitions import register_batches
    from batch_assets.graph.pipeline_names import SCORE_BATCHES
    from batch_assets.lake.lake import Lake
    from batch_assets.operations.local_runs import materialize
    from batch_assets.operations.rescore import describe_cost, failed_rows, select_batches
    from batch_assets.operations.status import scoring_summary
    from batch_assets.resources.dagster_storage import open_instance

    chosen = sum([batches is not None, everything, since is not None])
    if chosen > 1 or not (chosen or errors):
        raise click.UsageError("use exactly one of --batches, --all and --since, or --errors")
    changes = {"retry_errors": True, "rescore": "none"} if errors else {"rescore": "all"}
    settings = load(pipeline).model_copy(update=changes)
    failures: list[str] = []
    with progress_to_stderr(as_json), open_instance(settings) as instance:
        lake, tables = Lake.of(settings), tables_of(settings)
        wanted = select_batches(lake, settings, None if batches is None else batches.split(","), since)
        if errors:
            wanted = list(failed_rows(lake, settings, wanted))
        click.echo(describe_cost(instance, lake, settings, wanted))
        if wanted:
            if not yes:
                click.confirm("Start?", abort=True)
            # Another writer may have added a batch that no sensor has seen yet.
            register_batches(instance, settings.pipeline, wanted)
            failures = materialize(_definitions(settings), instance, settings.pipeline, SCORE_BATCHES, wanted)
    if as_json:
        scored = scoring_summary(lake.open(tables.scored), wanted)
        print_json({"batches": [{"batch": batch, **scored[batch]} for batch in wanted], "failed": failures})
    exit_if_failed(failures)

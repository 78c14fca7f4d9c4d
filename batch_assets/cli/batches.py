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
    print_json,
    print_table,
    progress_to_stderr,
)
from batch_assets.settings import PREFIX, Settings, redacted

if TYPE_CHECKING:
    import dagster as dg

_CELL = 160
_REASONS_SHOWN = 3


def _definitions(settings: Settings) -> "dg.Definitions":
    from batch_assets.definitions import build_defs

    return build_defs(settings=settings)


@click.command()
@json_outcome_option
def run(as_json: bool) -> None:
    """Materialize the whole graph for the configured data set and model.

    Batches that are up to date are skipped; if nothing has changed since the last run, nothing runs. Exit status:
    0 done, 1 an asset failed, 2 a problem must be fixed first.

    \b
    BATCH_ASSETS_DATASET='reviews/*.jsonl' batch-assets run
    """
    from batch_assets.locks import locked
    from batch_assets.operations.run import run_graph

    started = time.monotonic()
    settings = load()
    refusal = (
        f"another 'batch-assets run' is running in {settings.home}: wait for it to finish, or set {PREFIX}HOME to "
        "another folder"
    )
    with locked(settings.home / ".run.lock", refusal=refusal):
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
    """Print a few summaries, the scores, and where everything is."""
    from batch_assets.graph.table_metadata import sample_rows
    from batch_assets.lake.contracts import AI_QUERY_INFERENCE, BATCH_INFERENCE, TABLES
    from batch_assets.lake.lake import Lake

    lake = Lake.of(settings)
    answered = sample_rows(lake.open(AI_QUERY_INFERENCE), batches[0], ["id", "generated_summary"], settings.samples)
    answers = {row["id"]: row["generated_summary"] for row in answered}
    rows = [
        row
        for part in lake.open(BATCH_INFERENCE).read(batches[0], ["id", "document", "summary", "generated_summary"])
        for row in part.to_pylist()
        if row["id"] in answers
    ]
    if rows:
        cells = [
            [_cut(text) for text in (row["document"], row["summary"], row["generated_summary"], answers[row["id"]])]
            for row in rows
        ]
        print_table(["document", "expert summary", "champion", "ai_query"], cells)
    scores = {"ROUGE-1": "rouge1", "ROUGE-2": "rouge2", "ROUGE-L": "rougeL", "lead-3 ROUGE-1": "lead_rouge1"}
    print_table(
        ["table", "model", "summaries", "errors", *scores],
        [
            [
                row["table_name"],
                f"{row['model_name']} {row['model_version']}".rstrip(),
                *(row[name] for name in ("summaries", "errors")),
                *("" if row[name] is None else f"{row[name]:.3f}" for name in scores.values()),
            ]
            for row in _figures(settings, batches)
        ],
    )
    for name in TABLES:
        if lake.exists(name):
            click.echo(f"table    {lake.table_uri(name)}")
    click.echo(f"MLflow   {redacted(settings.tracking_uri)}")
    click.echo(f"report   {settings.report_file}")
    click.echo(f"UIs      make ui, then http://127.0.0.1:{settings.ui_port} and {settings.mlflow_pages}")


def _figures(settings: Settings, batches: list[str]) -> list[dict[str, Any]]:
    """Scores and counts of the batches, one row for each table and model version."""
    from batch_assets.lake.contracts import SUMMARY_QUALITY
    from batch_assets.lake.lake import Lake
    from batch_assets.quality.report import totals

    quality = Lake.of(settings).open(SUMMARY_QUALITY)
    return totals(row for batch in batches for part in quality.read(batch) for row in part.to_pylist())


def _cut(text: str | None) -> str:
    plain = " ".join((text or "").split())
    return plain if len(plain) <= _CELL else plain[:_CELL] + " …"


@click.command()
@click.argument("files", nargs=-1, required=True, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--batch", help="Name of the batch; default: the name of the file.")
@json_outcome_option
def land(files: tuple[Path, ...], batch: str | None, as_json: bool) -> None:
    """Load FILES into m4_1_prod_data as one batch, without waiting for a sensor.

    Files can be JSON Lines or CSV, plain or gzipped, or Parquet. Records that can't be used are rejected with a reason.
    An earlier batch with the same name is replaced. Exit status: 0 done, 1 landing failed, 2 a file can't be used.

    \b
    batch-assets land reviews.jsonl more.csv --batch monday
    """
    from batch_assets.operations.land import land_files

    settings = load()
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
@click.option("--yes", is_flag=True, help="Start without asking for confirmation.")
@json_outcome_option
def rescore(batches: str | None, everything: bool, since: Any, yes: bool, as_json: bool) -> None:
    """Score batches again with the current champion, skipping documents whose request has not changed.

    Prints how many documents there are and how long they may take, then asks for confirmation. Exit status: 0 done,
    1 a run failed or you answered no, 2 a batch does not exist.

    \b
    batch-assets rescore --since 2026-01-31 --yes
    """
    from batch_assets.graph.partitions import register_batches
    from batch_assets.lake.contracts import BATCH_INFERENCE
    from batch_assets.lake.lake import Lake
    from batch_assets.operations.local_runs import materialize
    from batch_assets.operations.rescore import describe_cost, select_batches
    from batch_assets.operations.status import scoring_summary
    from batch_assets.resources.dagster_storage import open_instance

    if sum([batches is not None, everything, since is not None]) != 1:
        raise click.UsageError("use exactly one of --batches, --all and --since")
    settings = load().model_copy(update={"rescore": "all"})
    failures: list[str] = []
    with progress_to_stderr(as_json), open_instance(settings) as instance:
        lake = Lake.of(settings)
        wanted = select_batches(lake, None if batches is None else batches.split(","), since)
        click.echo(describe_cost(instance, lake, wanted))
        if wanted:
            if not yes:
                click.confirm("Start?", abort=True)
            # Another writer may have added a batch that no sensor has seen yet.
            register_batches(instance, wanted)
            failures = materialize(_definitions(settings), instance, "score_batches", wanted)
    if as_json:
        scored = scoring_summary(lake.open(BATCH_INFERENCE), wanted)
        print_json({"batches": [{"batch": batch, **scored[batch]} for batch in wanted], "failed": failures})
    exit_if_failed(failures)

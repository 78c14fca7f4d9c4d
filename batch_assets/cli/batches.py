"""Commands that run the graph over batches: run, land, rescore."""

import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from batch_assets.cli.common import end_if, json_outcome_option, load, print_json, print_table, progress_aside
from batch_assets.settings import PREFIX, Settings, redacted

if TYPE_CHECKING:
    from batch_assets.lake.lake import Lake

_CELL = 160
_REASONS_SHOWN = 3


@click.command()
@json_outcome_option
def run(as_json: bool) -> None:
    """Materialize the whole graph for the configured data set and model.

    What is up to date is left as it is; where nothing has changed since the last run, nothing runs. Exit status:
    0 done, 1 an asset failed, 2 something has to be put right first.

    \b
    BATCH_ASSETS_DATASET='reviews/*.jsonl' batch-assets run
    """
    from batch_assets.locks import locked

    started = time.monotonic()
    settings = load()
    refusal = (
        f"another 'batch-assets run' is working in {settings.home}: wait for it, or set {PREFIX}HOME to another folder"
    )
    with locked(settings.home / ".run.lock", refusal=refusal):
        with progress_aside(as_json):
            batches, failures = _run(settings)
            if not failures and not as_json:
                _summarize(settings, batches)
        seconds = round(time.monotonic() - started)
        if as_json:
            figures = [] if failures else _figures(settings, batches)
            print_json({"batches": batches, "failed": failures, "seconds": seconds, "figures": figures})
    end_if(failures)
    if not as_json:
        click.echo(f"Done in {seconds} seconds.")


def _run(settings: Settings) -> tuple[list[str], list[str]]:
    """The batches, and what failed."""
    from batch_assets.automation.storage import existing_instance
    from batch_assets.automation.unchanged import inputs_of, note, run_that_ended_alike
    from batch_assets.sources.configured import scored_dataset

    dataset = scored_dataset(settings)
    if (earlier := existing_instance(settings)) is not None:
        with earlier:
            run_id = run_that_ended_alike(earlier, settings, dataset)
        if run_id is not None:
            click.echo(f"nothing has changed since run {run_id}, so there is nothing to do")
            return dataset.batches(), []
    from batch_assets.preflight import check_run

    dataset = check_run(settings)
    from batch_assets.automation.launch import (
        close_dead_runs,
        close_orphaned_runs,
        held_pools,
        materialize,
    )
    from batch_assets.automation.runs import register_batches
    from batch_assets.automation.storage import open_instance
    from batch_assets.definitions import build_defs
    from batch_assets.lake.configured import configured_lake
    from batch_assets.lake.tables import BATCH_INFERENCE
    from batch_assets.models.checkpoint import load_checkpoint
    from batch_assets.models.pipeline import generation_parameters
    from batch_assets.resources.spark import SparkResource
    from batch_assets.sources.landing import left_over_batches

    batches = dataset.batches()
    click.echo(f"{len(batches)} batches of {dataset.name}, model {settings.model}, state in {settings.home}")
    click.echo("preparing the checkpoint (about 15 seconds the first time)")
    generation_parameters(load_checkpoint(settings), settings)
    inputs = inputs_of(settings, dataset)
    with open_instance(settings) as instance:
        for run_id in [*close_dead_runs(instance), *close_orphaned_runs(instance)]:
            click.echo(f"run {run_id} was killed; this one goes on where it stopped")
        for pool, run_id in held_pools(instance):
            click.echo(f"run {run_id} holds the pool {pool}; this one waits for it (is it dead? cancel it in the UI)")
        register_batches(instance, batches)
        lake = configured_lake(settings)
        for batch in left_over_batches(dataset, lake):
            click.echo(f"batch {batch} is not made from {dataset.name} any more with these settings; it stays as it is")
        if not lake.exists(BATCH_INFERENCE):
            # The model is logged and evaluated before Spark is needed, and most of that uses one core.
            SparkResource.of(settings).start_ahead()
        failures = materialize(build_defs(settings=settings), instance, "materialize_all", batches)
        if not failures:
            note(instance, settings, batches, inputs)
    return batches, failures


def _summarize(settings: Settings, batches: list[str]) -> None:
    """Print a few summaries, the figures, and where everything is."""
    from batch_assets.assets._tables import sample_rows
    from batch_assets.lake.configured import configured_lake
    from batch_assets.lake.tables import AI_QUERY_INFERENCE, BATCH_INFERENCE, TABLES

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
    """What the batches came to, one row for each table and model version."""
    from batch_assets.lake.configured import configured_lake
    from batch_assets.lake.tables import SUMMARY_QUALITY
    from batch_assets.quality.report import totals

    quality = configured_lake(settings).open(SUMMARY_QUALITY)
    return totals(row for batch in batches for part in quality.read(batch) for row in part.to_pylist())


def _cut(text: str | None) -> str:
    plain = " ".join((text or "").split())
    return plain if len(plain) <= _CELL else plain[:_CELL] + " …"


@click.command()
@click.argument("files", nargs=-1, required=True, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--batch", help="Name of the batch; by default that of the file.")
@json_outcome_option
def land(files: tuple[Path, ...], batch: str | None, as_json: bool) -> None:
    """Bring FILES into m4_1_prod_data as one batch, without waiting for a sensor.

    JSON Lines, CSV or Parquet, also gzip. Records that can't be used are set aside with their reasons. A batch that was
    landed before under that name is replaced. Exit status: 0 done, 1 landing failed, 2 a file can't be taken.

    \b
    batch-assets land reviews.jsonl more.csv --batch monday
    """
    from batch_assets.automation.launch import materialize
    from batch_assets.automation.runs import register_batches
    from batch_assets.automation.storage import open_instance
    from batch_assets.definitions import build_defs
    from batch_assets.lake.configured import configured_lake
    from batch_assets.sources.configured import landing_folder

    settings = load()
    folder = landing_folder(settings)
    name = folder.name_for(files, batch)
    # Two that land one batch at once take turns: each finds its own files as it took them.
    with progress_aside(as_json), folder.held(name):
        folder.take_copies(files, name, replaces=batch is not None)
        batches = folder.keys_of(name)
        with open_instance(settings) as instance:
            register_batches(instance, batches)
            failures = materialize(build_defs(settings=settings), instance, "land_batches", batches)
        landed = [] if failures else _landed(configured_lake(settings), batches)
        if not failures:
            folder.forget(name)
    if as_json:
        print_json({"batches": landed, "failed": failures})
    end_if(failures)
    if not as_json:
        rows = [(one["batch"], one["documents"], one["rejected"], _most(one["reasons"])) for one in landed]
        print_table(["batch", "documents", "rejected", "reasons"], rows)


def _landed(lake: "Lake", batches: list[str]) -> list[dict[str, Any]]:
    """What there is now of batches: documents, and records that were set aside, counted by reason."""
    from batch_assets.lake.tables import PROD_DATA, PROD_DATA_REJECTED

    documents, rejected = lake.open(PROD_DATA), lake.open(PROD_DATA_REJECTED)
    found = []
    for batch in batches:
        reasons = Counter(row["reason"] for part in rejected.read(batch, ["reason"]) for row in part.to_pylist())
        found.append(
            {
                "batch": batch,
                "documents": documents.rows(batch),
                "rejected": reasons.total(),
                "reasons": dict(reasons.most_common()),
            }
        )
    return found


def _most(reasons: dict[str, int]) -> str:
    """The reasons that came most often."""
    shown = [f"{count} x {reason}" for reason, count in list(reasons.items())[:_REASONS_SHOWN]]
    others = len(reasons) - len(shown)
    return "; ".join(shown) + (f"; and {others} other reasons" if others else "")


@click.command()
@click.option("--batches", help="Batches, with commas between them.")
@click.option("--all", "everything", is_flag=True, help="All batches.")
@click.option("--since", type=click.DateTime(), help="Batches that were scored before that time (UTC) are left alone.")
@click.option("--yes", is_flag=True, help="Don't ask before it starts.")
@json_outcome_option
def rescore(batches: str | None, everything: bool, since: Any, yes: bool, as_json: bool) -> None:
    """Score batches again with the champion that there is now; what it would write the same is not scored.

    Says before it starts how many documents there are, and how long they may take. Exit status: 0 done, 1 a run failed
    or the answer was no, 2 a batch is not there.

    \b
    batch-assets rescore --since 2026-01-31 --yes
    """
    from batch_assets.automation.launch import materialize
    from batch_assets.automation.rescoring import expectation, wanted_batches
    from batch_assets.automation.runs import register_batches
    from batch_assets.automation.status import scored_in
    from batch_assets.automation.storage import open_instance
    from batch_assets.definitions import build_defs
    from batch_assets.lake.configured import configured_lake
    from batch_assets.lake.tables import BATCH_INFERENCE

    if sum([batches is not None, everything, since is not None]) != 1:
        raise click.UsageError("name the batches by one of --batches, --all and --since")
    settings = load().model_copy(update={"rescore": "all"})
    failures: list[str] = []
    with progress_aside(as_json), open_instance(settings) as instance:
        lake = configured_lake(settings)
        wanted = wanted_batches(lake, None if batches is None else batches.split(","), since)
        click.echo(expectation(instance, lake, wanted))
        if wanted:
            if not yes:
                click.confirm("Start?", abort=True)
            # What another writer has just written, no sensor may have seen yet.
            register_batches(instance, wanted)
            failures = materialize(build_defs(settings=settings), instance, "score_batches", wanted)
    if as_json:
        scored = scored_in(lake.open(BATCH_INFERENCE), wanted)
        print_json({"batches": [{"batch": batch, **scored[batch]} for batch in wanted], "failed": failures})
    end_if(failures)

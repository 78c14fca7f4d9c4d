"""Commands about pipelines: new, reset, rebase, check."""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from batch_assets.cli.common import json_option, load_all, print_json
from batch_assets.errors import BatchAssetsError, ExitStatus, reason


@click.command()
@click.argument("name")
def new(name: str) -> None:
    """Write a commented file for a pipeline called NAME into the folder of pipelines.

    Editors with YAML support complete and check its fields. Exit status: 0 written, 2 the name is not valid or taken.

    \b
    batch-assets new tickets
    """
    from batch_assets.pipelines.schema import pipeline_schema
    from batch_assets.pipelines.starter import SCHEMA_FILE, starter
    from batch_assets.settings import check_pipeline_name

    deployment = load_all()
    folder = deployment.default.pipelines
    try:
        check_pipeline_name(name)
    except ValueError as error:
        raise BatchAssetsError(f"{name!r} can't be the name of a pipeline: {error}") from error
    if name in {settings.pipeline for settings in deployment.pipelines}:
        raise BatchAssetsError(f"there is a pipeline {name} already: choose another name")
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{name}.yaml"
    try:
        with file.open("x", encoding="utf-8") as target:
            target.write(starter(name, has_schema=True))
    except FileExistsError as error:
        raise BatchAssetsError(f"{file} exists already: fix or remove it, or choose another name") from error
    (folder / SCHEMA_FILE).write_text(json.dumps(pipeline_schema(), indent=1) + "\n", encoding="utf-8")
    click.echo(f"{file} written: fill it in, then run 'batch-assets check' and 'batch-assets run {name}'")


@click.command()
@click.argument("pipeline")
@click.option("--yes", is_flag=True, help="Start without asking for confirmation.")
def reset(pipeline: str, yes: bool) -> None:
    """Remove the tables of PIPELINE with all their rows, so that its next run starts afresh.

    Its source, its registered model, its MLflow runs and its reports stay. Needed after a change of its source, id
    column or output. Exit status: 0 done, 1 you answered no, 2 a run is active, or it is the pipeline that ships.

    \b
    batch-assets reset tickets
    """
    from batch_assets.operations import reset as resetting

    settings = load_all().pipeline(pipeline)
    rows = resetting.rows_by_table(settings)
    for table, count in rows.items():
        click.echo(f"{table}: {count} rows")
    if not yes:
        click.confirm("Remove them permanently?", abort=True)
    resetting.reset(settings, click.echo)


@click.command()
@click.argument("pipeline")
@click.option("--yes", is_flag=True, help="Start without asking for confirmation.")
def rebase(pipeline: str, yes: bool) -> None:
    """Start PIPELINE, which reads a table commit by commit, again from the table's current rows.

    Needed after the table lost or changed rows. The next run scores its current rows and removes the answers to
    earlier batches. Exit status: 0 done, 1 you answered no, 2 the pipeline does not batch by commit.

    \b
    batch-assets rebase tickets
    """
    from batch_assets.operations import rebase as rebasing

    settings = load_all().pipeline(pipeline)
    if not yes:
        click.confirm("The next run scores all current rows of the table. Start again from them?", abort=True)
    version = rebasing.rebase(settings)
    click.echo(f"version {version} of the table is the first batch: run 'batch-assets run {pipeline}'")


@click.command()
@click.argument("files", nargs=-1, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@json_option
def check(files: tuple[Path, ...], as_json: bool) -> None:
    """Check the files of all pipelines, or FILES in the folder of another Dagster project, such as defs.yaml.

    Templates such as {{ env.DATA }} in FILES are resolved as when Dagster loads them.

    Checks each file by itself, then whether two pipelines would write to the same place, and whether their sources and
    models are there. Exit status: 0 all are valid, 1 at least one is not.

    \b
    batch-assets check
    """
    from batch_assets.operations.preflight import check_pipeline
    from batch_assets.pipeline_definitions import PipelineParts
    from batch_assets.pipelines.deployment import deployment_of

    deployment = deployment_of(files, _resolved) if files else load_all()
    problems = [(problem.name, problem.message) for problem in deployment.problems]
    for settings in deployment.pipelines:
        try:
            PipelineParts.of(settings)
            check_pipeline(settings)
        except (BatchAssetsError, OSError) as error:
            problems.append((settings.pipeline, str(error)))
    bad = {name for name, _ in problems}
    valid = [settings.pipeline for settings in deployment.pipelines if settings.pipeline not in bad]
    if as_json:
        print_json({"valid": valid, "problems": [{"name": name, "problem": message} for name, message in problems]})
    else:
        for name in valid:
            click.echo(f"ok       {name}")
        for name, message in problems:
            click.echo(f"problem  {name}: {' '.join(message.split())}")
    if problems:
        sys.exit(ExitStatus.FAILED)


def _resolved(attributes: Mapping[str, Any]) -> Mapping[str, Any]:
    """The attributes of a component with the values of their templates.

    Raises:
        BatchAssetsError: a template can't be resolved.
    """
    import dagster as dg

    from batch_assets.component import resolve_templates

    try:
        return resolve_templates(attributes, dg.ResolutionContext.default())
    except Exception as error:  # whatever a template raises
        raise BatchAssetsError(f"a template can't be resolved: {reason(error)}") from error

"""Commands about registered versions: models, promote, rollback, try."""

import sys

import click

from batch_assets.cli.common import (
    json_outcome_option,
    load,
    load_all,
    pipeline_option,
    print_json,
    print_table,
    progress_to_stderr,
    shown,
)
from batch_assets.errors import BatchAssetsError
from batch_assets.settings import Settings
from batch_assets.text import has_text


@click.command()
@click.option("--tag", "tags", multiple=True, metavar="KEY=VALUE", help="List only versions with this tag; repeatable.")
@click.option("--pipeline", metavar="NAME", help="Only versions of this pipeline's model.")
@click.option("--json", "as_json", is_flag=True, help="Print each version as one line of JSON.")
def models(tags: tuple[str, ...], pipeline: str | None, as_json: bool) -> None:
    """List the registered versions: aliases, scores, promotion decision, and how much each has written.

    Changes nothing. A model that several pipelines use is listed once; name a pipeline to see what each version has
    written there. Exit status: 0 listed, 2 the registry can't be read.

    \b
    batch-assets models --tag checkpoint=small-t5
    """
    from batch_assets.lake.lake import Lake
    from batch_assets.models.overview import overview
    from batch_assets.models.registry import RegisteredModel
    from batch_assets.models.tracking import existing_client

    columns = ["version", "aliases", "checkpoint", "scores", "decision", "written"]
    deployment = load_all()
    # A shared model is listed once, as its owner's.
    owners = [settings for settings in deployment.pipelines if settings.shared_model is None]
    pipelines = owners if pipeline is None else [deployment.pipeline(pipeline)]
    for settings in pipelines:
        client = existing_client(settings)
        rows = (
            [] if client is None else overview(RegisteredModel.of(client, settings), settings, Lake.of(settings), tags)
        )
        if as_json:
            for row in rows:
                print_json({"model": settings.registered_model, **row})
        elif not rows:
            click.echo(f"{settings.registered_model} has no versions{' with these tags' if tags else ' yet'}")
        else:
            if len(pipelines) > 1:
                users = [one.pipeline for one in deployment.pipelines if one.shared_model == settings.pipeline]
                click.echo(settings.registered_model + (f", also used by {' and '.join(users)}" if users else ""))
            print_table(columns, [[row[column] for column in columns] for row in rows])


@click.command()
@click.argument("version", type=click.IntRange(min=1))
@pipeline_option
@json_outcome_option
def promote(version: int, pipeline: str | None, as_json: bool) -> None:
    """Make VERSION the champion by hand, regardless of its scores.

    The version must load and answer first. The current champion becomes the previous one. Exit status: 0 done,
    2 the version does not exist, or does not load and answer.

    \b
    batch-assets promote 3
    """
    from batch_assets.operations.promotion import promote_version

    settings = load(pipeline)
    with progress_to_stderr(as_json):
        click.echo(promote_version(settings, version, click.echo))
    _print_champion(settings, as_json)


@click.command()
@pipeline_option
@json_outcome_option
def rollback(pipeline: str | None, as_json: bool) -> None:
    """Restore the previous champion; the current champion becomes the previous one.

    Exit status: 0 done, 2 there is no previous champion.

    \b
    batch-assets rollback
    """
    from batch_assets.operations.promotion import roll_back

    settings = load(pipeline)
    with progress_to_stderr(as_json):
        click.echo(roll_back(settings, click.echo))
    _print_champion(settings, as_json)


def _print_champion(settings: Settings, as_json: bool) -> None:
    from batch_assets.models.registry import RegisteredModel
    from batch_assets.models.tracking import connect

    if as_json:
        version = RegisteredModel.of(connect(settings), settings).champion()
        print_json({"model": version.name, "champion": version.number})


@click.command(name="try")
@click.argument("text")
@pipeline_option
def try_(text: str, pipeline: str | None) -> None:
    """Run the champion on TEXT, as batch_inference would; use - to read TEXT from standard input.

    Changes nothing. Exit status: 0 answered, 2 there is no champion, no text or no answer.

    \b
    batch-assets try "Some text to be summarized."
    """
    from batch_assets.engines.catalog import IsolatedEngine
    from batch_assets.engines.contract import RowError, generate
    from batch_assets.models.registry import RegisteredModel, scoring_model
    from batch_assets.models.tracking import connect, exists

    settings = load(pipeline)
    document = sys.stdin.read() if text == "-" else text
    if not has_text(document):
        raise BatchAssetsError(RowError.NO_TEXT.value)
    if not exists(settings):
        raise BatchAssetsError(
            f"{settings.registered_model} has no champion yet: run 'batch-assets run {settings.model_owner}' first"
        )
    client = connect(settings)
    champion = RegisteredModel.of(client, settings).champion()
    model = scoring_model(client, champion, settings.model_copy(update={"engine": "transformers"}))
    (completion,) = generate(IsolatedEngine(model), [document])
    if completion.text is None:
        raise BatchAssetsError(completion.error_message or "no answer")
    click.echo(shown(completion.text))
    click.echo(
        f"version {model.version} of {model.name}, {completion.input_tokens} + {completion.output_tokens} tokens, "
        f"{completion.finish_reason}" + (", the text was truncated" if completion.input_truncated else ""),
        err=True,
    )

"""The batch-assets command line."""

import gc
import sys
import traceback
import warnings
from typing import Any

import click

from batch_assets.cli.batches import land, rescore, run
from batch_assets.cli.models import models, promote, rollback, try_
from batch_assets.cli.pipelines import check, new, rebase, reset
from batch_assets.cli.query import query
from batch_assets.cli.state import doctor, forget, status, ui, upkeep
from batch_assets.errors import BatchAssetsError, ExitStatus
from batch_assets.settings import PREFIX

# Almost everything that a command imports lives until it exits. Collecting garbage as often as Python does by default
# takes a sixth of a small command's run time.
gc.set_threshold(100_000, 20, 100)


_DEBUG = "batch_assets.debug"


class _Group(click.Group):
    """Prints an error that the user can fix as one line, and exits with status 2."""

    def invoke(self, context: click.Context) -> Any:
        try:
            return super().invoke(context)
        except (BrokenPipeError, FileNotFoundError):
            # The program that reads the output has closed it; or this package lost a file, which is a bug.
            raise
        except (BatchAssetsError, OSError) as error:
            if context.meta.get(_DEBUG):
                traceback.print_exception(error)
            # An OSError names its file or address, as for a full disk or a bucket that can't be reached.
            click.echo(f"batch-assets: {' '.join(str(error).split())}", err=True)
            sys.exit(ExitStatus.REFUSED)


def _debug_option() -> click.Option:
    def remember(context: click.Context, option: click.Parameter, value: bool) -> None:
        # Commands share the dictionary of the group.
        context.meta[_DEBUG] = value or context.meta.get(_DEBUG, False)

    return click.Option(
        ["--debug"],
        is_flag=True,
        expose_value=False,
        is_eager=True,
        callback=remember,
        envvar=f"{PREFIX}DEBUG",
        help="Print the traceback of an error.",
    )


@click.group(cls=_Group)
def main() -> None:
    """Turn text in Delta tables into governed output of models.

    Pipelines are files in the folder pipelines, and the environment variables that start with BATCH_ASSETS_; see
    docs/reference/settings.md.
    """
    # Dagster warns about its own beta parameters whenever definitions are loaded.
    warnings.filterwarnings("ignore", module="dagster")


for _command in (
    run,
    new,
    check,
    reset,
    rebase,
    land,
    rescore,
    models,
    promote,
    rollback,
    try_,
    query,
    status,
    doctor,
    forget,
    ui,
    upkeep,
):
    _command.params.append(_debug_option())
    main.add_command(_command)
main.params.append(_debug_option())

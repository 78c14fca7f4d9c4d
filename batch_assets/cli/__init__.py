"""The batch-assets command line."""

import gc
import sys
import warnings
from typing import Any

import click

from batch_assets.cli.batches import land, rescore, run
from batch_assets.cli.models import models, promote, rollback, try_
from batch_assets.cli.pipelines import check, new, rebase, reset
from batch_assets.cli.query import query
from batch_assets.cli.state import doctor, forget, status, ui, upkeep
from batch_assets.errors import BatchAssetsError, ExitStatus

# Almost everything that a command imports lives until it exits. Collecting garbage as often as Python does by default
# takes a sixth of a small command's run time.
gc.set_threshold(100_000, 20, 100)


class _Group(click.Group):
    """Prints an error that the user can fix as one line, and exits with status 2."""

    def invoke(self, context: click.Context) -> Any:
        try:
            return super().invoke(context)
        except BrokenPipeError:  # the program that reads the output has closed it
            raise
        except (BatchAssetsError, OSError) as error:
            # An OSError names its file or address, as for a full disk or a folder that is not writable.
            click.echo(f"batch-assets: {' '.join(str(error).split())}", err=True)
            sys.exit(ExitStatus.REFUSED)


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
    main.add_command(_command)

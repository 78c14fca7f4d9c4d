"""The command batch-assets."""

import gc
import sys
import warnings
from typing import Any

import click

from batch_assets.cli.batches import land, rescore, run
from batch_assets.cli.models import models, promote, rollback, try_
from batch_assets.cli.query import query
from batch_assets.cli.state import doctor, forget, status, ui, upkeep
from batch_assets.errors import BatchAssetsError, ExitStatus

# Nearly all that a command imports stays until its end. Looking for garbage there as often as Python does by default
# takes a sixth of the time of a small command.
gc.set_threshold(100_000, 20, 100)


class _Group(click.Group):
    """Turns an error that the user can mend into one line and exit status 2."""

    def invoke(self, context: click.Context) -> Any:
        try:
            return super().invoke(context)
        except BrokenPipeError:  # whoever read the output has had enough
            raise
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


for _command in (run, land, rescore, models, promote, rollback, try_, query, status, doctor, forget, ui, upkeep):
    main.add_command(_command)

"""What the commands have in common: settings, tables, how a command ends."""

import os
import sys
from typing import Any

import click

from batch_assets.settings import PREFIX, Settings, load_settings


def load() -> Settings:
    """The settings, in effect for this process and those that it starts."""
    from batch_assets.hub import keep_off_the_hub

    settings = load_settings()
    # The code location and the workers must see the same home, wherever they are started.
    os.environ[f"{PREFIX}HOME"] = str(settings.home)
    keep_off_the_hub(settings)
    return settings


def end_if(failures: list[str]) -> None:
    """End with exit status 1 where an asset failed."""
    if failures:
        click.echo(f"failed: {', '.join(failures)}; their batches are as they were. The reasons are above.", err=True)
        sys.exit(1)


def print_table(columns: list[str], rows: list[Any]) -> None:
    """Print rows under titles."""
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

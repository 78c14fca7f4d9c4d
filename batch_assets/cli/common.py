"""Helpers for all commands: settings, tables, JSON output, exit status."""

import base64
import json
import math
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from typing import Any

import click

from batch_assets.errors import BatchAssetsError, ExitStatus
from batch_assets.pipelines.deployment import Deployment, load_deployment
from batch_assets.settings import PREFIX, Settings

# Cells of plain tables are padded to at most this width; longer ones push the next cell to the right.
_PLAIN_WIDTH = 40
# Cells up to this length are never wrapped, even in a narrow terminal.
_SHORT = 10
# ECMA-48 control characters except tab and newline: they set colors, move the cursor, change the window title.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")

json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object and nothing else.")
json_outcome_option = click.option(
    "--json", "as_json", is_flag=True, help="Print the result as one JSON object; progress goes to standard error."
)


pipeline_option = click.option("--pipeline", metavar="NAME", help="The pipeline; needed if there are several.")


def load_all() -> Deployment:
    """Load all pipelines, and apply the settings to this process and the processes that it starts."""
    from batch_assets.models.hub_access import go_offline

    deployment = load_deployment()
    default = deployment.default
    # The code location and the workers must use the same folders, regardless of the folder that they start in.
    os.environ[f"{PREFIX}HOME"] = str(default.home)
    os.environ[f"{PREFIX}PIPELINES"] = str(default.pipelines)
    go_offline(deployment.pipelines)
    return deployment


def load(pipeline: str | None) -> Settings:
    """Load one pipeline, by default the only one.

    Raises:
        BatchAssetsError: the pipeline does not exist, or there are several and none is named.
    """
    deployment = load_all()
    if pipeline is not None:
        return deployment.pipeline(pipeline)
    names = [*(settings.pipeline for settings in deployment.pipelines), *(one.name for one in deployment.problems)]
    if len(names) > 1:
        raise BatchAssetsError(f"there are several pipelines: add --pipeline {' or '.join(names)}")
    return deployment.pipeline(names[0])


def exit_if_failed(failures: list[str]) -> None:
    """Exit with status 1 if an asset failed."""
    if failures:
        click.echo(f"failed: {', '.join(failures)}; their batches are unchanged. The reasons are above.", err=True)
        sys.exit(ExitStatus.FAILED)


@contextmanager
def progress_to_stderr(as_json: bool) -> Iterator[None]:
    """Send everything printed inside the block to standard error if standard output is for JSON."""
    with redirect_stdout(sys.stderr if as_json else sys.stdout):
        yield


def print_json(outcome: Any) -> None:
    """Print a result as one line of JSON: bytes as base64, other values that JSON does not support as text."""
    click.echo(json.dumps(_plain(outcome), ensure_ascii=False, allow_nan=False))


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, bytes | bytearray):
        return base64.b64encode(value).decode()
    if value is None or isinstance(value, str | int) or (isinstance(value, float) and math.isfinite(value)):
        return value
    return str(value)


def shown(text: str) -> str:
    """Replace control characters, so that a text can't control the terminal."""
    return _CONTROL.sub("\ufffd", text)


def print_table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Print rows under column titles: as a table in a terminal, otherwise as one plain line per row."""
    cells = [["" if cell is None else shown(str(cell)) for cell in row] for row in rows]
    if not sys.stdout.isatty():
        _print_plain([list(columns), *cells])
        return
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE, show_lines=True, padding=(0, 1, 0, 0), pad_edge=False)
    for place, title in enumerate(columns):
        # In a narrow terminal, long cells wrap first.
        longest = max(len(row[place]) for row in [columns, *cells])
        table.add_column(Text(title), overflow="fold", no_wrap=longest <= _SHORT)
    for row in cells:
        # Text, not markup: a value may contain square brackets.
        table.add_row(*map(Text, row))
    Console().print(table)


def _print_plain(rows: list[list[str]]) -> None:
    lines = [[" ".join(cell.split()) for cell in row] for row in rows]
    widths = [min(max(map(len, column)), _PLAIN_WIDTH) for column in zip(*lines, strict=True)]
    for line in lines:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())

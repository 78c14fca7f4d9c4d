"""The command query."""

import hashlib
import sys
from collections import Counter
from typing import Any

import click

from batch_assets.cli.common import load, print_json, print_table


@click.command()
@click.argument("statement")
@click.option("--resume", is_flag=True, help="Go on with the same statement that was interrupted: ask what is missing.")
@click.option("--json", "as_json", is_flag=True, help="Print each row as one line of JSON.")
def query(statement: str, resume: bool, as_json: bool) -> None:
    """Run one SQL statement, in which ai_query and its family ask the configured endpoints.

    STATEMENT is a query, or CREATE [OR REPLACE] TABLE ... AS; - reads it from standard input. Tables of the lake go by
    one to three names. Progress goes to standard error. Exit status: 0 done, 2 the statement can't be run.

    \b
    batch-assets query "SELECT id, ai_summarize(document, 20) AS short FROM m4_1_prod_data LIMIT 3"
    """
    from batch_assets.ai_functions.sql import endpoints_of
    from batch_assets.ai_functions.statement import run_for_user
    from batch_assets.lake.configured import configured_lake
    from batch_assets.locks import locked
    from batch_assets.resources.endpoints import EndpointsResource
    from batch_assets.resources.spark import SparkResource

    settings = load()
    if statement == "-":
        statement = sys.stdin.read()
    names = endpoints_of(statement, settings.endpoint)
    lake = configured_lake(settings)
    endpoints = EndpointsResource(file=None if settings.endpoints is None else str(settings.endpoints))
    spark = SparkResource.of(settings)
    try:
        ready = {name: endpoints.get(name) for name in sorted(names)}
        from batch_assets.ai_functions.functions import register_ai_functions

        functions = register_ai_functions(spark.session, ready, settings.endpoint)
        # Two of the same would take each other's answers away.
        digest = hashlib.sha256(statement.encode()).hexdigest()[:16]
        with locked(
            settings.home / "locks" / f"query-{digest}.lock", refusal="the same statement is being run already"
        ):
            frame, rows, usage = run_for_user(
                spark.session, functions, statement, lake, lambda line: click.echo(line, err=True), resume=resume
            )
        count = frame.count() if rows is None else len(rows)
        if rows is not None:
            _print_rows(frame.columns, rows, as_json)
    finally:
        endpoints.stop()
        spark.stop()
    tokens = f", {usage.prompt_tokens} + {usage.completion_tokens} tokens" if usage.requests else ""
    click.echo(f"{count} rows, {usage.requests} requests{tokens}", err=True)


def _print_rows(columns: list[str], rows: list[Any], as_json: bool) -> None:
    if as_json:
        from pyspark.sql import Row

        named = Row(*_names(columns))
        for row in rows:
            print_json(named(*row).asDict(recursive=True))
        return
    print_table(columns, rows)


def _names(columns: list[str]) -> list[str]:
    """Names of columns as keys of an object: of several that are the same, the later ones have a number."""
    seen: Counter[str] = Counter()
    names = []
    for column in columns:
        seen[column] += 1
        names.append(column if seen[column] == 1 else f"{column}_{seen[column]}")
    return names

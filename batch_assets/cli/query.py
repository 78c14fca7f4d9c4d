"""The query command."""

import hashlib
import sys
from collections import Counter
from dataclasses import replace
from typing import Any

import click

from batch_assets.cli.common import load_all, print_json, print_table
from batch_assets.settings import EMBEDDED_ENDPOINT


@click.command()
@click.argument("statement")
@click.option("--resume", is_flag=True, help="Continue the same statement after an interruption.")
@click.option("--json", "as_json", is_flag=True, help="Print each row as one line of JSON.")
def query(statement: str, resume: bool, as_json: bool) -> None:
    """Run one SQL statement, in which ai_query and related functions call the configured endpoints.

    STATEMENT is a query or CREATE [OR REPLACE] TABLE ... AS; use - to read it from standard input. A table of the lake
    can be named as table, schema.table or catalog.schema.table. Progress goes to standard error. Exit status: 0 done,
    2 the statement can't be run.

    \b
    batch-assets query "SELECT id, ai_summarize(document, 20) AS short FROM m4_1_prod_data LIMIT 3"
    """
    from batch_assets.ai_functions.execution import run_for_user
    from batch_assets.ai_functions.planner import endpoints_of
    from batch_assets.lake.lake import Lake
    from batch_assets.locks import locked
    from batch_assets.resources.endpoints import EndpointsResource
    from batch_assets.resources.spark import SparkResource
    from batch_assets.tasks.output_tables import tables_of

    deployment = load_all()
    settings = deployment.default
    default = settings.endpoint or EMBEDDED_ENDPOINT
    if statement == "-":
        statement = sys.stdin.read()
    names = endpoints_of(statement, default)
    contracts = tuple(table for one in deployment.pipelines for table in tables_of(one).all)
    lake = replace(Lake.of(settings), contracts=contracts)
    endpoints = EndpointsResource(file=None if settings.endpoints is None else str(settings.endpoints))
    spark = SparkResource.of(settings)
    try:
        ready = {name: endpoints.get(name) for name in sorted(names)}
        from batch_assets.ai_functions.functions import register_ai_functions

        functions = register_ai_functions(spark.session, ready, default)
        # Two runs of the same statement would delete each other's answers.
        digest = hashlib.sha256(statement.encode()).hexdigest()[:16]
        refusal = "the same statement is already running: wait for it to finish"
        with locked(settings.home / "locks" / f"query-{digest}.lock", refusal=refusal):
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

        named = Row(*_unique_names(columns))
        for row in rows:
            print_json(named(*row).asDict(recursive=True))
        return
    print_table(columns, rows)


def _unique_names(columns: list[str]) -> list[str]:
    """Column names as keys of a JSON object: a repeated name gets a number."""
    seen: Counter[str] = Counter()
    names = []
    for column in columns:
        seen[column] += 1
        names.append(column if seen[column] == 1 else f"{column}_{seen[column]}")
    return names

"""Commands about the state as a whole: ui, upkeep."""

import click

from batch_assets.cli.common import load


@click.command()
def ui() -> None:
    """Open the Dagster UI and the MLflow UI on this machine, and stop both with Ctrl-C."""
    import dagster as dg

    from batch_assets.automation.launch import close_orphaned_runs, prepare_dagster_home
    from batch_assets.ui import serve

    settings = load()
    prepare_dagster_home(settings)
    with dg.DagsterInstance.get() as instance:
        for run_id in close_orphaned_runs(instance):
            click.echo(f"run {run_id} was killed; it is tried again where retries are left")
    serve(settings, click.echo)


@click.command()
def upkeep() -> None:
    """Put small files together, write checkpoints, and remove data files that nothing needs any more.

    It may run beside everything else: a batch that is being replaced meanwhile is left for the next time.
    """
    from batch_assets.lake.configured import configured_lake
    from batch_assets.lake.tables import TABLES
    from batch_assets.lake.upkeep import keep_up

    settings = load()
    lake = configured_lake(settings)
    tables = [table for table in TABLES if lake.exists(table)]
    if not tables:
        click.echo(f"there are no tables in {settings.lake_uri} yet")
    for table in tables:
        done = keep_up(lake.open(table).delta, settings.vacuum_hours, click.echo)
        click.echo(
            f"{table.name}: {done.compacted} files became {done.became}, {done.vacuumed} unneeded files removed, "
            "checkpoint written"
        )

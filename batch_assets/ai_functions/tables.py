"""Tables of the lake in statements: found by one to three names, made by ``CREATE TABLE ... AS``."""

import uuid
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from batch_assets.ai_functions.requests import AiFunctionError
from batch_assets.lake.lake import Lake
from batch_assets.lake.names import check_name
from batch_assets.lake.tables import TABLES

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession


def resolve_tables(spark: "SparkSession", tree: Any, lake: Lake) -> Any:
    """The query with a view in the place of each table of the lake; names that the session knows stay.

    Raises:
        AiFunctionError: neither the session nor the lake has a table of that name.
    """
    from sqlglot import exp

    tree = tree.copy()
    common = {cte.alias.lower() for cte in tree.find_all(exp.CTE)}
    views: dict[str, str] = {}
    for table in list(tree.find_all(exp.Table)):
        if not isinstance(table.this, exp.Identifier) or (not table.db and table.name.lower() in common):
            continue
        if _is_known(spark, table):
            continue
        uri = _uri(lake, table)
        if uri not in views:
            views[uri] = _view(spark, lake, uri, _full_name(lake, table))
        alias = table.args.get("alias") or exp.TableAlias(this=exp.to_identifier(table.name))
        table.replace(exp.Table(this=exp.to_identifier(views[uri]), alias=alias))
    return tree


def create_table_as(spark: "SparkSession", create: Any, rows: "Callable[[], DataFrame]", lake: Lake) -> "DataFrame":
    """Write the rows of a query as a Delta table, in one commit.

    Args:
        spark: the session.
        create: the parsed ``CREATE TABLE``.
        rows: makes the query's data frame.
        lake: where the table goes.

    Returns:
        The table's rows.

    Raises:
        AiFunctionError: an asset owns the table, it is there already, or the statement says something of it that
            can't be had.
    """
    from deltalake import DeltaTable

    from batch_assets.lake.deltars import register_deltars

    register_deltars(spark)
    target = create.this
    partitioned = _properties(create)
    name, uri = _full_name(lake, target), _uri(lake, target)
    if name.lower() in {lake.full_name(table).lower() for table in TABLES}:
        raise AiFunctionError(
            f"{name} belongs to an asset, which alone writes it: give your table another name or schema"
        )
    reader = spark.read.format("deltars")
    for key, value in lake.storage_options.items():
        reader = reader.option(f"storage.{key}", value)
    exists = DeltaTable.is_deltatable(uri, dict(lake.storage_options))
    if exists and create.args.get("exists"):
        return reader.load(uri)
    if exists and not create.args.get("replace"):
        raise AiFunctionError(f"[TABLE_OR_VIEW_ALREADY_EXISTS] {name} is there already: say CREATE OR REPLACE TABLE")
    writer = rows().write.format("deltars").mode("overwrite" if exists else "append")
    for key, value in lake.storage_options.items():
        writer = writer.option(f"storage.{key}", value)
    if exists:
        writer = writer.option("overwriteSchema", "true")
    if partitioned and not exists:
        writer = writer.option("partitionColumns", ",".join(partitioned))
    writer.save(uri)
    return reader.load(uri)


def _properties(create: Any) -> list[str]:
    """The columns that the table is to be partitioned by; anything else that a CREATE may say is refused."""
    from sqlglot import exp

    partitioned: list[str] = []
    if isinstance(create.this, exp.Schema):
        raise AiFunctionError("CREATE TABLE ... AS takes its columns from the query: leave the list of columns out")
    properties = create.args.get("properties")
    for item in properties.expressions if properties is not None else []:
        if isinstance(item, exp.FileFormatProperty) and item.name.lower() in ("delta", "deltars"):
            continue
        if isinstance(item, exp.PartitionedByProperty):
            partitioned = [column.name for column in item.this.expressions]
            continue
        raise AiFunctionError(f"CREATE TABLE ... AS takes no {item.sql(dialect='spark')}")
    return partitioned


def _parts(lake: Lake, table: Any) -> tuple[str, str, str]:
    parts = (table.catalog or lake.catalog, table.db or lake.schema, table.name)
    try:
        for part in parts:
            check_name(part)
    except ValueError as error:
        raise AiFunctionError(f"{table.sql(dialect='spark')} names no table: {error}") from error
    if any(part.startswith("_") for part in parts):
        raise AiFunctionError(f"{table.sql(dialect='spark')} names no table: names here don't start with _")
    return parts


def _full_name(lake: Lake, table: Any) -> str:
    return ".".join(_parts(lake, table))


def _uri(lake: Lake, table: Any) -> str:
    return "/".join((lake.uri.rstrip("/"), *_parts(lake, table)))


def _is_known(spark: "SparkSession", table: Any) -> bool:
    """Whether the session has a table or view of that name."""
    if table.catalog:
        return False
    name = ".".join(part.name for part in table.parts)
    return bool(spark.catalog.tableExists(name))


def _view(spark: "SparkSession", lake: Lake, uri: str, name: str) -> str:
    from deltalake import DeltaTable

    from batch_assets.lake.deltars import register_deltars

    if not DeltaTable.is_deltatable(uri, dict(lake.storage_options)):
        raise AiFunctionError(f"[TABLE_OR_VIEW_NOT_FOUND] there is no table {name}: nothing lies at {uri}")
    register_deltars(spark)
    reader = spark.read.format("deltars")
    for key, value in lake.storage_options.items():
        reader = reader.option(f"storage.{key}", value)
    view = f"_batch_assets_table_{uuid.uuid4().hex}"
    reader.load(uri).createTempView(view)
    return view

"""Tables of the lake in statements: found by one to three names, made by ``CREATE TABLE ... AS``."""

import uuid
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from batch_assets.ai_functions.requests import AiFunctionError
from batch_assets.lake.lake import Lake
from batch_assets.lake.names import check_name
from batch_assets.lake.snapshot import Snapshot
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
    views: dict[str, str] = {}
    for table in list(tree.find_all(exp.Table)):
        if not isinstance(table.this, exp.Identifier) or _is_common(table):
            continue
        if _is_known(spark, table):
            continue
        for clause in ("version", "when"):
            if table.args.get(clause):
                raise AiFunctionError(f"{table.name}: older versions can't be named in a statement")
        uri = _uri(lake, table)
        if uri not in views:
            views[uri] = _view(spark, lake, uri, _full_name(lake, table))
        alias = table.args.get("alias") or exp.TableAlias(this=exp.to_identifier(table.name))
        table.set("this", exp.to_identifier(views[uri]))
        table.set("db", None)
        table.set("catalog", None)
        table.set("alias", alias)
    return tree


def _is_common(table: Any) -> bool:
    """Whether a name is that of a WITH clause around it; inside its own definition it is not yet."""
    from sqlglot import exp

    if table.db:
        return False
    around = _ancestors(table)
    for node in around:
        common = node.args.get("with_") if isinstance(node, exp.Query) else None
        for cte in common.expressions if common is not None else []:
            if any(cte is part for part in around):
                break  # itself and those after it are not known there
            if cte.alias.lower() == table.name.lower():
                return True
    return False


def _ancestors(node: Any) -> list[Any]:
    found = []
    while node is not None:
        found.append(node)
        node = node.parent
    return found


def create_table_as(spark: "SparkSession", create: Any, rows: "Callable[[], DataFrame]", lake: Lake) -> "DataFrame":
    """Write the rows of a query as a Delta table; they appear in one commit.

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

    target = create.this
    partitioned = _properties(create)
    name, uri = _full_name(lake, target), _uri(lake, target)
    if name.lower() in {lake.full_name(table).lower() for table in TABLES}:
        raise AiFunctionError(
            f"{name} belongs to an asset, which alone writes it: give your table another name or schema"
        )
    exists = DeltaTable.is_deltatable(uri, dict(lake.storage_options))
    if exists and create.args.get("exists"):
        return _read(spark, lake, uri)
    if exists and not create.args.get("replace"):
        raise AiFunctionError(f"[TABLE_OR_VIEW_ALREADY_EXISTS] {name} is there already: say CREATE OR REPLACE TABLE")
    if exists and partitioned:
        raise AiFunctionError(
            f"{name} is there already, and PARTITIONED BY can't replace it: leave PARTITIONED BY out, or give the new "
            "table another name"
        )
    register_deltars(spark)
    # Overwriting notices a table that somebody else makes meanwhile.
    writer = rows().write.format("deltars").mode("append" if partitioned else "overwrite")
    for key, value in lake.storage_options.items():
        writer = writer.option(f"storage.{key}", value)
    if exists:
        writer = writer.option("overwriteSchema", "true")
    if partitioned:
        writer = writer.option("partitionColumns", ",".join(partitioned))
    writer.save(uri)
    return _read(spark, lake, uri)


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

    if not DeltaTable.is_deltatable(uri, dict(lake.storage_options)):
        raise AiFunctionError(f"[TABLE_OR_VIEW_NOT_FOUND] there is no table {name}: nothing lies at {uri}")
    view = f"_batch_assets_table_{uuid.uuid4().hex}"
    _read(spark, lake, uri).createTempView(view)
    return view


def _read(spark: "SparkSession", lake: Lake, uri: str) -> "DataFrame":
    from batch_assets.lake.deltars import read_table

    return read_table(spark, Snapshot.open(uri, lake.storage_options))

"""Tables of the lake in statements: resolves their names, and writes them for ``CREATE TABLE ... AS``."""

import uuid
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from batch_assets.ai_functions.requests import AiFunctionError
from batch_assets.lake.lake import Lake, is_owned
from batch_assets.names import check_name

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession


def resolve_tables(spark: "SparkSession", tree: Any, lake: Lake) -> Any:
    """Replace the tables of the lake in a query with views; tables and views of the session take precedence.

    Raises:
        AiFunctionError: neither the session nor the lake has a table with that name.
    """
    from sqlglot import exp

    tree = tree.copy()
    views: dict[str, str] = {}
    for table in list(tree.find_all(exp.Table)):
        if not isinstance(table.this, exp.Identifier) or _is_cte(table):
            continue
        if _is_in_session(spark, table):
            continue
        for clause in ("version", "when"):
            if table.args.get(clause):
                raise AiFunctionError(f"{table.name}: a statement can't read older versions")
        uri = _uri(lake, table)
        if uri not in views:
            views[uri] = _temporary_view(spark, lake, uri, _full_name(lake, table))
        alias = table.args.get("alias") or exp.TableAlias(this=exp.to_identifier(table.name))
        table.set("this", exp.to_identifier(views[uri]))
        table.set("db", None)
        table.set("catalog", None)
        table.set("alias", alias)
    return tree


def _is_cte(table: Any) -> bool:
    """Whether a name refers to a WITH clause around it, which is not visible in its own definition."""
    from sqlglot import exp

    if table.db:
        return False
    ancestors = _ancestors(table)
    for node in ancestors:
        with_clause = node.args.get("with_") if isinstance(node, exp.Query) else None
        for cte in with_clause.expressions if with_clause is not None else []:
            if any(cte is ancestor for ancestor in ancestors):
                break  # a definition only sees those before it
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
    """Write the rows of a query as a Delta table in one commit.

    Args:
        spark: the session.
        create: the parsed ``CREATE TABLE``.
        rows: creates the query's data frame.
        lake: the lake of the new table.

    Returns:
        The table's rows.

    Raises:
        AiFunctionError: an asset owns the table, the table exists already, or the statement has an unsupported clause.
    """
    from deltalake import DeltaTable

    from batch_assets.lake.deltars import register_deltars

    target = create.this
    partitioned = _partition_columns(create)
    name, uri = _full_name(lake, target), _uri(lake, target)
    exists = DeltaTable.is_deltatable(uri, dict(lake.storage_options))
    if is_owned(lake, name, DeltaTable(uri, storage_options=dict(lake.storage_options)) if exists else None):
        raise AiFunctionError(
            f"{name} belongs to an asset and can't be replaced: give your table another name or schema"
        )
    if exists and create.args.get("exists"):
        return _read(spark, lake, uri)
    if exists and not create.args.get("replace"):
        raise AiFunctionError(f"[TABLE_OR_VIEW_ALREADY_EXISTS] {name} exists already: use CREATE OR REPLACE TABLE")
    if exists and partitioned:
        raise AiFunctionError(
            f"{name} exists already, and a table with PARTITIONED BY can't replace it: remove PARTITIONED BY, or give "
            "the new table another name"
        )
    register_deltars(spark)
    # Overwriting detects a table that another writer creates in the meantime.
    writer = rows().write.format("deltars").mode("append" if partitioned else "overwrite")
    for key, value in lake.storage_options.items():
        writer = writer.option(f"storage.{key}", value)
    if exists:
        writer = writer.option("overwriteSchema", "true")
    if partitioned:
        writer = writer.option("partitionColumns", ",".join(partitioned))
    writer.save(uri)
    return _read(spark, lake, uri)


def _partition_columns(create: Any) -> list[str]:
    """Return the columns in PARTITIONED BY, and refuse any other property of the table."""
    from sqlglot import exp

    partitioned: list[str] = []
    if isinstance(create.this, exp.Schema):
        raise AiFunctionError("CREATE TABLE ... AS takes its columns from the query: remove the list of columns")
    properties = create.args.get("properties")
    for item in properties.expressions if properties is not None else []:
        if isinstance(item, exp.FileFormatProperty) and item.name.lower() in ("delta", "deltars"):
            continue
        if isinstance(item, exp.PartitionedByProperty):
            partitioned = [column.name for column in item.this.expressions]
            continue
        raise AiFunctionError(f"CREATE TABLE ... AS doesn't support {item.sql(dialect='spark')}: remove it")
    return partitioned


def _parts(lake: Lake, table: Any) -> tuple[str, str, str]:
    parts = (table.catalog or lake.catalog, table.db or lake.schema, table.name)
    try:
        for part in parts:
            check_name(part)
    except ValueError as error:
        raise AiFunctionError(f"{table.sql(dialect='spark')} is not a valid table name: {error}") from error
    if any(part.startswith("_") for part in parts):
        raise AiFunctionError(f"{table.sql(dialect='spark')} is not a valid table name: names must not start with _")
    return parts


def _full_name(lake: Lake, table: Any) -> str:
    return ".".join(_parts(lake, table))


def _uri(lake: Lake, table: Any) -> str:
    return "/".join((lake.uri.rstrip("/"), *_parts(lake, table)))


def _is_in_session(spark: "SparkSession", table: Any) -> bool:
    """Whether the session has a table or view with that name."""
    if table.catalog:
        return False
    name = ".".join(part.name for part in table.parts)
    return bool(spark.catalog.tableExists(name))


def _temporary_view(spark: "SparkSession", lake: Lake, uri: str, name: str) -> str:
    from deltalake import DeltaTable

    if not DeltaTable.is_deltatable(uri, dict(lake.storage_options)):
        raise AiFunctionError(f"[TABLE_OR_VIEW_NOT_FOUND] there is no table {name} at {uri}")
    view = f"_batch_assets_table_{uuid.uuid4().hex}"
    _read(spark, lake, uri).createTempView(view)
    return view


def _read(spark: "SparkSession", lake: Lake, uri: str) -> "DataFrame":
    from batch_assets.lake.deltars import read_table

    return read_table(spark, lake.open_for_statement(uri))

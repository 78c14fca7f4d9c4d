"""Tables written here, read by engines that share no code with the writer.

polars-deltalake and DuckDB's extension are built on delta-kernel; ClickHouse has a reader of its own.
Each runs in its own process, because two Arrow libraries in one process conflict.
"""

import datetime as dt
import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pyarrow as pa
import pytest

from batch_assets.lake.staging import stage
from batch_assets.lake.upkeep import maintain
from batch_assets.lake.writable_table import WritableTable, create_table

# Each returns the rows of the table at `uri` whose column `moment` is null or not before `since`, in `columns`.
READERS = {
    "polars-deltalake": """
import polars, polars_deltalake
late = polars.col("moment").is_null() | (polars.col("moment") >= polars.lit(since).cast(polars.Datetime("us", "UTC")))
rows = polars_deltalake.scan_delta(uri).filter(late).select(columns).collect().rows()
""",
    "duckdb": """
import pathlib, duckdb, duckdb_extension_delta
extension = next(pathlib.Path(duckdb_extension_delta.__file__).parent.rglob("*.duckdb_extension"))
connection = duckdb.connect()
connection.execute(f"LOAD '{extension}'")
connection.execute("SET timezone = 'UTC'")
connection.execute("SET enable_progress_bar = false")
query = f"SELECT {', '.join(columns)} FROM delta_scan(?) WHERE moment IS NULL OR moment >= ?"
rows = connection.execute(query, [uri, since]).fetchall()
""",
    "clickhouse": """
import chdb
late = f"moment IS NULL OR moment >= toDateTime64('{since:%Y-%m-%d %H:%M:%S.%f}', 6, 'UTC')"
query = f"SELECT {', '.join(columns)} FROM deltaLakeLocal('{uri}') WHERE {late}"
query += " SETTINGS allow_experimental_delta_kernel_rs = 0, session_timezone = 'UTC'"
rows = [json.loads(line) for line in str(chdb.query(query, "JSONCompactEachRow")).splitlines()]
""",
}

PROGRAM = """
import datetime, json, sys
columns = sys.argv[1].split(",")
since = datetime.datetime.fromisoformat(sys.argv[2])
for uri in sys.argv[3:]:
{read}
    print(json.dumps(rows, default=str))
"""

MOMENT = dt.datetime(2026, 1, 2, 3, 4, 5, 678901, dt.UTC)


def plain(value):
    """Convert a value to text that is the same for all readers."""
    if isinstance(value, str) and len(value) > 18 and value[4:8:3] == "--":
        value = dt.datetime.fromisoformat(value)
    if isinstance(value, dt.datetime):
        value = value.replace(tzinfo=None)
    return None if value is None else str(value)


def read_by(reader: str, uris: list[str], columns: list[str]) -> list[list[list[str | None]]]:
    """Read the rows of each table."""
    program = PROGRAM.format(read=textwrap.indent(READERS[reader], "    "))
    command = [sys.executable, "-c", program, ",".join(columns), MOMENT.isoformat(), *uris]
    # ClickHouse only reads files below the current folder.
    folder = os.path.commonpath([Path(uri).parent for uri in uris])
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 0, result.stderr
    return [
        sorted(([plain(value) for value in row] for row in json.loads(line)), key=str)
        for line in result.stdout.splitlines()
    ]


def expected(rows: list[list]) -> list[list[str | None]]:
    return sorted(([plain(value) for value in row] for row in rows), key=str)


QUOTED = 'it\'s "quoted" ☃'
STRINGS = [
    None,
    "a b",
    "k=v",
    "50%",
    "%20",
    "it's",
    'say "x"',
    "ünï/☃",
    "#?&",
    "[x]{y}",
    "back\\slash",
    "a:b",
    "*<>|^`",
]
VALUES = {
    "string": (pa.string(), STRINGS),
    "long": (pa.int64(), [None, -5, 0, 2**62]),
    "date": (pa.date32(), [None, dt.date(1970, 1, 1), dt.date(2020, 2, 29)]),
    "timestamp": (pa.timestamp("us", "UTC"), [None, dt.datetime(2020, 1, 2, 3, 4, 5, 600000, dt.UTC)]),
    "boolean": (pa.bool_(), [None, True, False]),
}


def make_table(uri: str, kind: pa.DataType, values: list, commits: int) -> list[list]:
    """Create a table in ``commits`` commits, with replaced partitions, appended rows, and upkeep half-way through.

    Returns:
        Its rows.
    """
    schema = pa.schema([("id", pa.int64()), ("text", pa.string()), ("moment", pa.timestamp("us", "UTC")), ("p", kind)])
    create_table(uri, {}, schema, ["p"])
    rounds = commits // len(values) + 1
    for number in range(rounds):
        for index, value in enumerate(values):
            snapshot = WritableTable.open(uri)
            rows = pa.table({"id": [index, number], "text": [QUOTED, None], "moment": [MOMENT, None]})
            snapshot.replace({"p": value}, stage([rows], snapshot.staging_area({"p": value})), {})
        if number == rounds // 2:
            maintain(WritableTable.open(uri), 168, print)
    snapshot = WritableTable.open(uri)
    more = pa.table({"id": range(len(values)), "text": ["more"] * len(values), "moment": [MOMENT] * len(values)})
    snapshot.append(stage([more.append_column("p", pa.array(values, kind))], snapshot.staging_area()), {})
    assert WritableTable.open(uri).version > commits
    made = []
    for index, value in enumerate(values):
        made += [[index, QUOTED, MOMENT, value], [rounds - 1, None, None, value], [index, "more", MOMENT, value]]
    return made


@pytest.fixture(scope="module")
def tables(tmp_path_factory) -> dict[str, list[list]]:
    """The rows of one table for each kind of partition value, by table address."""
    folder = tmp_path_factory.mktemp("tables")
    commits = {name: 102 if name == "string" else 10 for name in VALUES}
    return {str(folder / name): make_table(str(folder / name), *VALUES[name], commits[name]) for name in VALUES}


@pytest.mark.parametrize("state", ["after many commits", "after upkeep"])
def test_other_engines_read_every_row_of_tables_written_here(tables, state):
    """Also with a filter on a file's greatest timestamp, which truncating statistics to milliseconds would lose."""
    if state == "after upkeep":
        for uri in tables:
            maintain(WritableTable.open(uri), 168, print)
            assert len(WritableTable.open(uri).files()) == len(VALUES[Path(uri).name][1])
    for reader in READERS:
        read = read_by(reader, [*tables], ["id", "text", "moment", "p"])
        for (uri, rows), found in zip(tables.items(), read, strict=True):
            assert found == expected(rows), (reader, uri)


# ClickHouse's own reader refuses any table whose columns were ever changed; its kernel reads them.
@pytest.mark.parametrize("reader", ["polars-deltalake", "duckdb"])
def test_other_engines_read_a_table_that_got_a_column_and_a_field_of_a_struct_later(tmp_path, reader):
    uri = str(tmp_path / "table")
    moment = ("moment", pa.timestamp("us", "UTC"))
    first = pa.schema([("id", pa.int64()), moment, ("answer", pa.struct([("name", pa.string())])), ("p", pa.string())])
    longer = pa.struct([("name", pa.string()), ("amount", pa.float64())])
    later = pa.schema([("id", pa.int64()), ("customer", pa.string()), moment, ("answer", longer), ("p", pa.string())])
    create_table(uri, {}, first, ["p"])
    for schema, row in (
        (first, {"id": 1, "moment": MOMENT, "answer": {"name": "x"}}),
        (later, {"id": 2, "moment": MOMENT, "answer": {"name": "y", "amount": 2.5}, "customer": "c"}),
    ):
        snapshot = WritableTable.open(uri).with_missing_columns(schema)
        rows = pa.Table.from_pylist([row], schema=pa.schema([field for field in schema if field.name != "p"]))
        partition = {"p": str(row["id"])}
        snapshot.replace(partition, stage([rows], snapshot.staging_area(partition)), {})
    rows = [[1, None, {"name": "x", "amount": None}], [2, "c", {"name": "y", "amount": 2.5}]]
    assert read_by(reader, [uri], ["id", "customer", "answer"]) == [expected(rows)]

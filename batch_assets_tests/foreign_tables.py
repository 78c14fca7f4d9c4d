"""Delta tables as other engines write them: with deletion vectors and with renamed columns.

``delta-tables.tar.xz`` has tables of Spark with Delta Lake; its ORIGIN.txt says where they come from. deltalake creates
tables with column mapping, but no Python package deletes rows with a vector or renames columns: the functions here do
it by the protocol, and the tests compare with DuckDB, which reads Delta with delta-kernel.
"""

import base64
import json
import struct
import subprocess
import sys
import tarfile
import uuid
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pyarrow as pa
import pyarrow.parquet as pq
from deltalake import DeltaTable

ARCHIVE = Path(__file__).with_name("delta-tables.tar.xz")

_READ_WITH_DUCKDB = """
import json, pathlib, sys, duckdb, duckdb_extension_delta
extension = next(pathlib.Path(duckdb_extension_delta.__file__).parent.rglob("*.duckdb_extension"))
connection = duckdb.connect()
connection.execute(f"LOAD '{extension}'")
connection.execute("SET timezone = 'UTC'")
for uri, query in json.loads(sys.argv[1]).items():
    rows = connection.execute(query, [uri])
    names = [column[0] for column in rows.description]
    print(json.dumps([dict(zip(names, row)) for row in rows.fetchall()], default=str))
"""


def tables_of_spark(folder: Path) -> list[str]:
    """Unpack the tables of Spark and return their addresses."""
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(folder, filter="data")
    return sorted(str(path) for path in folder.iterdir() if path.is_dir())


def comparable(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return rows, as Arrow or DuckDB gives them, as sorted texts that are the same for both."""
    return sorted(json.dumps(_plain(row), default=str, sort_keys=True) for row in rows)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list) and value and all(isinstance(item, tuple) for item in value):  # a map in Arrow
        keys, items = ([_plain(item) for item in column] for column in zip(*value, strict=True))
        # DuckDB gives maps with nested keys like this.
        return {"key": keys, "value": items} if isinstance(keys[0], list) else dict(zip(keys, items, strict=True))
    return [_plain(item) for item in value] if isinstance(value, list) else value


def read_with_duckdb(queries: Mapping[str, str]) -> dict[str, list[str]]:
    """Read tables with DuckDB, in a process of its own because two Arrow libraries in one conflict.

    Args:
        queries: address of a table to a query from ``delta_scan(?)``.
    """
    command = [sys.executable, "-c", _READ_WITH_DUCKDB, json.dumps(queries)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 0, result.stderr
    return {uri: comparable(json.loads(line)) for uri, line in zip(queries, result.stdout.splitlines(), strict=True)}


def _log(uri: str) -> list[dict[str, Any]]:
    """The actions of all commits, the newest first."""
    commits = sorted(Path(uri, "_delta_log").glob("*.json"), reverse=True)
    return [json.loads(line) for path in commits for line in path.read_text().splitlines()]


def commit(uri: str, *actions: Mapping[str, Any]) -> int:
    """Write a commit and return its version."""
    version = DeltaTable(uri).version() + 1
    Path(uri, "_delta_log", f"{version:020d}.json").write_text("\n".join(map(json.dumps, actions)))
    return version


def change_columns(
    uri: str, change: Callable[[list[dict[str, Any]]], None], partition_columns: Sequence[str] = ()
) -> int:
    """Commit other columns, without touching a file: the function changes their descriptions in place."""
    metadata = next(action["metaData"] for action in _log(uri) if "metaData" in action)
    schema = json.loads(metadata["schemaString"])
    change(schema["fields"])
    metadata |= {"schemaString": json.dumps(schema), "partitionColumns": list(partition_columns)}
    return commit(uri, {"metaData": metadata})


def rename_in_files(uri: str) -> None:
    """Give the columns in all data files other names, which column mapping by id ignores."""
    for path in Path(uri).rglob("*.parquet"):
        stored = pq.read_table(path)
        renamed = pa.schema([_renamed(field) for field in stored.schema])
        columns = [
            column.combine_chunks().view(field.type) for column, field in zip(stored.columns, renamed, strict=True)
        ]
        pq.write_table(pa.table(columns, schema=renamed), path)


def _renamed(field: pa.Field) -> pa.Field:
    kind = field.type
    if pa.types.is_struct(kind):
        kind = pa.struct([_renamed(child) for child in kind])
    elif pa.types.is_list(kind):
        kind = pa.list_(_renamed(kind.value_field))
    elif pa.types.is_map(kind):
        kind = pa.map_(kind.key_field, _renamed(kind.item_field))
    number = (field.metadata or {}).get(b"PARQUET:field_id")
    return field.with_type(kind) if number is None else field.with_type(kind).with_name(f"other {number.decode()}")


def require(uri: str, *features: str) -> int:
    """Commit a protocol with more features."""
    protocol = DeltaTable(uri).protocol()
    known = {*(protocol.reader_features or []), *features}
    if protocol.min_reader_version == 2:
        known.add("columnMapping")
    lists = {"readerFeatures": sorted(known), "writerFeatures": sorted({*(protocol.writer_features or []), *known})}
    return commit(uri, {"protocol": {"minReaderVersion": 3, "minWriterVersion": 7, **lists}})


def delete_rows(
    uri: str,
    deleted: Mapping[str, Sequence[int]],
    storage: str = "u",
    *,
    runs: bool = False,
    folder: Path | None = None,
) -> int:
    """Delete rows with vectors, as Spark's DELETE does, in one commit.

    Args:
        uri: the table.
        deleted: path of a data file to the sorted positions of its rows to delete.
        storage: u for files in the table's folder, p for files in ``folder``, i for vectors in the log.
        runs: store runs of positions, not each one.
        folder: where the vectors are stored.
    """
    if "deletionVectors" not in (DeltaTable(uri).protocol().reader_features or []):
        require(uri, "deletionVectors")
    log, actions = _log(uri), []
    for path, positions in deleted.items():
        add = next(action["add"] for action in log if action.get("add", {}).get("path") == path)
        bitmap = roaring_bitmap(positions, runs=runs)
        vector = {"storageType": storage, "sizeInBytes": len(bitmap), "cardinality": len(positions)}
        if storage == "i":
            vector["pathOrInlineDv"] = _z85(bitmap)
        else:
            vector |= {"offset": 1, "pathOrInlineDv": _store(bitmap, Path(uri), folder)}
        kept = {key: add[key] for key in ("path", "partitionValues", "size")}
        old = {"deletionVector": add["deletionVector"]} if "deletionVector" in add else {}
        actions.append({"remove": {**kept, **old, "deletionTimestamp": 0, "dataChange": True}})
        actions.append({"add": {**add, "dataChange": True, "deletionVector": vector}})
    return commit(uri, {"commitInfo": {"operation": "DELETE", "engineInfo": "another engine"}}, *actions)


def _store(bitmap: bytes, table: Path, folder: Path | None) -> str:
    """Store a bitmap in a file, and return its path as in a descriptor."""
    name = uuid.uuid4()
    data = b"\x01" + struct.pack(">i", len(bitmap)) + bitmap + struct.pack(">I", zlib.crc32(bitmap))
    path = (folder or table / "q7") / f"deletion_vector_{name}.bin"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(data)
    return f"file://{quote(str(path))}" if folder else f"q7{_z85(name.bytes)}"


def _z85(data: bytes) -> str:
    digits = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.-:+=^!/*?&<>()[]{}@%$#"
    b85 = base64.b85encode(data, pad=True).decode()
    return b85.translate(str.maketrans(base64._b85alphabet.decode(), digits))  # type: ignore[attr-defined]


def roaring_bitmap(positions: Sequence[int], *, runs: bool = False) -> bytes:
    """Return positions as a bitmap of Delta: arrays of up to 4,096 positions, bitmaps of more, or runs.

    https://github.com/RoaringBitmap/RoaringFormatSpec
    """
    buckets = groupby(positions, lambda position: position >> 32)
    parts = [struct.pack("<i", high) + _bitmap(list(group), runs) for high, group in buckets]
    return struct.pack("<iq", 1681511377, len(parts)) + b"".join(parts)


def _bitmap(positions: list[int], runs: bool) -> bytes:
    containers = [
        (key & 0xFFFF, [position & 0xFFFF for position in group])
        for key, group in groupby(positions, lambda position: position >> 16)
    ]
    size = len(containers)
    if runs:
        start = struct.pack("<I", 12347 | (size - 1) << 16) + b"\xff" * ((size + 7) // 8)
    else:
        start = struct.pack("<II", 12346, size)
    header = b"".join(struct.pack("<HH", key, len(low) - 1) for key, low in containers)
    data = [_runs(low) if runs else _array_or_bits(low) for _, low in containers]
    first = len(start) + len(header) + 4 * size
    offsets = [first + sum(map(len, data[:index])) for index in range(size)]
    table = b"" if runs and size < 4 else struct.pack(f"<{size}I", *offsets)
    return start + header + table + b"".join(data)


def _array_or_bits(low: list[int]) -> bytes:
    if len(low) <= 4096:
        return struct.pack(f"<{len(low)}H", *low)
    bits = bytearray(8192)
    for position in low:
        bits[position // 8] |= 1 << position % 8
    return bytes(bits)


def _runs(low: list[int]) -> bytes:
    found = [list(group) for _, group in groupby(enumerate(low), lambda pair: pair[1] - pair[0])]
    pairs = [number for run in found for number in (run[0][1], len(run) - 1)]
    return struct.pack(f"<H{len(pairs)}H", len(found), *pairs)

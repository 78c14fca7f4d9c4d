"""Tables of other engines, with deletion vectors, column mapping, widened types and variants, read with deltars."""

import json
import pickle
import shutil
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable, WriterProperties, write_deltalake
from pyspark.sql.pandas.types import from_arrow_schema
from pyspark.sql.types import VariantVal

from batch_assets.ai_functions.execution import answer_batch
from batch_assets.ai_functions.planner import ai_sql
from batch_assets.errors import BatchAssetsError
from batch_assets.graph.ai_query_inference import statement_of
from batch_assets.lake.contracts import AI_QUERY_INFERENCE, PROD_DATA
from batch_assets.lake.counts import counts_by_batch
from batch_assets.lake.deletion_vectors import deletion_vectors
from batch_assets.lake.deltars import read_table, register_deltars
from batch_assets.lake.deltars import reader as reader_module
from batch_assets.lake.deltars.reader import DeltarsReader
from batch_assets.lake.features import UnreadableTableError
from batch_assets.lake.snapshot import Snapshot
from batch_assets.lake.staging import stage
from batch_assets.lake.upkeep import maintain
from batch_assets.lake.writable_table import WritableTable
from batch_assets.settings import Settings
from batch_assets_tests.foreign_tables import (
    change_columns,
    comparable,
    delete_rows,
    read_with_duckdb,
    rename_in_files,
    require,
    tables_of_spark,
)
from batch_assets_tests.servers import ChatServer, completion
from batch_assets_tests.test_ai_sql import endpoint

ROWS = 70_000


def paths(uri: str) -> list[str]:
    """The data files of a table, as the log names them, in the order in which they were written."""
    actions = pa.table(DeltaTable(uri).get_add_actions(flatten=True)).sort_by("modification_time")
    return actions.column("path").to_pylist()


def make_large_table(uri: str, elsewhere: Path) -> None:
    """A file with many row groups for each place and format of a deletion vector."""
    properties = WriterProperties(max_row_group_size=10_000, compression="UNCOMPRESSED")
    some = [0, 9_999, 10_000, 65_535, 65_536, ROWS - 1]
    # More than 4,096 in a block of 65,536, a whole row group, and few.
    many = [*range(0, 30_000, 3), *range(40_000, 50_000), *range(60_000, ROWS, 700)]
    vectors = [(some, "u", False), (many, "u", False), (many, "p", True), (some, "i", False)]
    for number, (positions, storage, runs) in enumerate(vectors):
        rows = pa.table({"file": pa.array([number] * ROWS, pa.int32()), "n": range(ROWS)})
        before = set(paths(uri)) if number else set()
        write_deltalake(uri, rows, mode="append", writer_properties=properties)
        (path,) = set(paths(uri)) - before
        delete_rows(uri, {path: positions}, storage, runs=runs, folder=elsewhere if storage == "p" else None)


def make_mapped_table(uri: str, mode: str) -> None:
    """Nested columns and a partition column that were renamed, one that was dropped and added again, and vectors."""
    rows = [
        {"p": p, "gone": f"{p}{n}", "s": {"x": n, "y": [{"z": n}, None]}, "m": [("k", {"q": n})], "n": n}
        for p in ("a", "b")
        for n in range(4)
    ]
    kinds = pa.schema(
        [
            ("p", pa.string()),
            ("gone", pa.string()),
            ("s", pa.struct([("x", pa.int64()), ("y", pa.list_(pa.struct([("z", pa.int64())])))])),
            ("m", pa.map_(pa.string(), pa.struct([("q", pa.int64())]))),
            ("n", pa.int64()),
        ]
    )
    first = pa.Table.from_pylist(rows, schema=kinds)
    configuration = {"delta.columnMapping.mode": mode}
    write_deltalake(uri, first, partition_by=["p"], configuration=configuration)

    def rename(fields: list[dict]) -> None:
        part, gone, struct, pairs, _ = fields
        part["name"] = "the part"
        struct["type"]["fields"][0]["name"] = "new x"
        struct["type"]["fields"][1]["type"]["elementType"]["fields"][0]["name"] = "new z"
        pairs["type"]["valueType"]["fields"][0]["name"] = "new q"
        # The new column has the old one's name and another type.
        gone["type"] = "long"
        gone["metadata"] = {"delta.columnMapping.id": 90, "delta.columnMapping.physicalName": "col-again"}
        added = {"delta.columnMapping.id": 91, "delta.columnMapping.physicalName": "col-added"}
        struct["type"]["fields"].append({"name": "w", "type": "string", "nullable": True, "metadata": added})

    change_columns(uri, rename, ["the part"])
    deleted = {path: [0, 2] for path in paths(uri)[:1]}
    schema = pa.schema(DeltaTable(uri).schema().to_arrow())
    later = [
        {"the part": "b", "gone": 7, "s": {"new x": 8, "y": [], "w": "w"}, "m": [("l", None)], "n": 9},
        {"the part": None, "gone": None, "s": None, "m": None, "n": None},
    ]
    write_deltalake(uri, pa.Table.from_pylist(later, schema=schema), mode="append")
    delete_rows(uri, deleted)


@pytest.fixture(scope="module")
def tables(tmp_path_factory) -> dict[str, str]:
    """Addresses of tables by name."""
    folder = tmp_path_factory.mktemp("foreign tables")
    found = {Path(uri).name: uri for uri in tables_of_spark(folder / "of Spark")}
    for name in ("large", "mapped name", "mapped id"):
        found[name] = str(folder / name)
    make_large_table(found["large"], folder / "else where")
    for mode in ("name", "id"):
        make_mapped_table(found[f"mapped {mode}"], mode)
    return found


# One line for each file, or comparing the rows would take most of the time.
TOTALS = "SELECT file, count(*) AS kept, CAST(sum(n) AS BIGINT) AS total, CAST(sum(n * n) AS BIGINT) AS squares FROM"
NAMES = [
    "changing-deletion-vector", "large", "mapped id", "mapped name", "mapped-by-id", "partitions-and-checkpoint",
    "renamed-partition-column", "variants", "widened-types",
]  # fmt: skip
# The others are read by the same code without Spark, which would take most of the time.
IN_SPARK = ("large", "mapped id", "variants")


@pytest.fixture(scope="module")
def by_duckdb(tables) -> dict[str, list[str]]:
    """The rows of the tables as DuckDB reads them, by name; totals for the large one."""
    queries = dict.fromkeys(tables.values(), "SELECT * FROM delta_scan(?)")
    queries[tables["large"]] = f"{TOTALS} delta_scan(?) GROUP BY file"
    found = read_with_duckdb(queries)
    return {name: found[uri] for name, uri in tables.items()}


def rows_of(frame) -> list[str]:
    """The rows of a Spark data frame, to compare."""
    if "variant" not in frame.schema.simpleString():
        return comparable(frame.toArrow().to_pylist())
    rows = (row.asDict(recursive=True) for row in frame.collect())
    return comparable({name: without_variants(value) for name, value in row.items()} for row in rows)


def without_variants(value):
    if isinstance(value, VariantVal):
        return value.toPython()
    if isinstance(value, dict):
        return {key: without_variants(item) for key, item in value.items()}
    return [without_variants(item) for item in value] if isinstance(value, list) else value


@pytest.mark.parametrize("name", NAMES)
def test_every_row_is_read_as_duckdb_reads_it(spark, tables, by_duckdb, monkeypatch, name):
    """Also if several tasks share a file."""
    if name in IN_SPARK:
        monkeypatch.setattr(reader_module, "_TASK_BYTES", 200_000 if name == "large" else 4_000)
        monkeypatch.setattr(reader_module, "_OPEN_COST", 0)
        snapshot = Snapshot.open(tables[name])
        frame = read_table(spark, snapshot)
        if name == "large":
            frame.createOrReplaceTempView("large")
            frame = spark.sql(f"{TOTALS} large GROUP BY file")
        assert rows_of(frame) == by_duckdb[name]
    else:
        monkeypatch.setattr(reader_module, "_TASK_BYTES", 500)
        snapshot = Snapshot.open(tables[name])
        planned = DeltarsReader(snapshot, from_arrow_schema(snapshot.schema))
        reader, tasks = pickle.loads(pickle.dumps((planned, planned.partitions())))
        rows = [row for task in tasks for batch in reader.read(task) for row in batch.to_pylist()]
        assert comparable(rows) == by_duckdb[name]
    if name == "large":
        kept = sum(json.loads(row)["kept"] for row in by_duckdb[name])
        assert snapshot.rows() == kept < 4 * ROWS
    else:
        assert snapshot.rows() == len(by_duckdb[name])


def test_one_partition_is_read_from_its_own_files_by_its_new_name(spark, tables, by_duckdb):
    register_deltars(spark)
    for name in ("mapped name", "mapped id"):
        table = Snapshot.open(tables[name])
        for value in ("a", "b", None):
            partition = {"the part": value}
            expected = [row for row in by_duckdb[name] if json.loads(row)["the part"] == value]
            read = table.read(partition)
            assert comparable(row for batch in read for row in batch.to_pylist()) == expected
            assert table.rows(partition) == len(expected)
            tasks = DeltarsReader(table, from_arrow_schema(table.schema), partition).partitions()
            assert {part.path for task in tasks for part in task.parts} == {
                file.path for file in table.files(partition)
            }
    frame = spark.read.format("deltars").options(partition='{"the part": "b"}').load(tables["mapped id"])
    assert rows_of(frame) == [row for row in by_duckdb["mapped id"] if json.loads(row)["the part"] == "b"]


def test_mode_id_finds_columns_by_their_field_ids_whatever_the_files_call_them(tables, by_duckdb, tmp_path):
    """As the protocol says; DuckDB 1.5 and polars-deltalake 1.3 look for names here too, and find nothing."""
    uri = shutil.copytree(tables["mapped id"], tmp_path / "table")
    rename_in_files(str(uri))
    table = Snapshot.open(str(uri))
    rows = (row for batch in table.read_files(table.files()) for row in batch.to_pylist())
    assert comparable(rows) == by_duckdb["mapped id"]


def test_every_version_is_read_with_its_own_deletion_vector(spark, tables):
    register_deltars(spark)
    uri = tables["changing-deletion-vector"]
    kept = set(range(50))
    for version, gone in enumerate([None, 0, 7, 14]):
        kept.discard(gone)
        table = Snapshot.open(uri, version=version)
        assert {n for batch in table.read_files(table.files()) for n in batch.column("id").to_pylist()} == kept
        assert table.rows() == len(kept)
        assert table.count([replace(file, rows=None) for file in table.files()]) == len(kept)
    for version, count in ((0, 50), (2, 48)):
        assert spark.read.format("deltars").options(versionAsOf=str(version)).load(uri).count() == count


def test_a_commit_that_only_deletes_with_a_vector_changes_the_partitions_of_its_files(tables):
    table = Snapshot.open(tables["mapped name"])
    last = next(table.commits())
    (path,) = table.deletion_vectors
    partitions = {file.partition for file in table.files() if file.log_path == path}
    assert (last.changed, last.unknown_partitions) == (partitions, False)
    assert len(partitions) == 1


def test_a_checkpoint_is_searched_for_deletion_vectors_that_are_not_in_newer_commits(tables, tmp_path):
    """Also if it has several parts, or sidecars."""
    uri = shutil.copytree(tables["mapped name"], tmp_path / "table")
    found = Snapshot.open(str(uri)).deletion_vectors
    log = uri / "_delta_log"
    DeltaTable(str(uri)).create_checkpoint()
    (whole,) = log.glob("*.checkpoint.parquet")
    version = whole.name[:20]
    actions = pq.read_table(whole)
    for path in log.glob("*.json"):
        path.unlink()
    for change in ("one part", "three parts", "sidecar"):
        if change == "three parts":
            for part, rows in enumerate((actions.slice(0, 1), actions.slice(1, 2), actions.slice(3)), 1):
                pq.write_table(rows, log / f"{version}.checkpoint.{part:010}.{3:010}.parquet")
            whole.unlink()
            # A checkpoint that lacks parts is ignored.
            pq.write_table(actions.slice(0, 1), log / f"{version}.checkpoint.{1:010}.{4:010}.parquet")
        if change == "sidecar":
            for path in log.glob("*.parquet"):
                path.unlink()
            (log / "_sidecars").mkdir()
            pq.write_table(actions, log / "_sidecars" / "a.parquet")
            name = f"{version}.checkpoint.80a083e8-7026-4e79-81be-64bd76c43a11.json"
            (log / name).write_text(json.dumps({"sidecar": {"path": "a.parquet", "sizeInBytes": 1}}))
        paths = [file.log_path for file in Snapshot.open(tables["mapped name"]).files()]
        assert deletion_vectors(str(uri), {}, int(version), paths) == found


def test_a_log_without_a_commit_since_its_checkpoint_is_refused(tables, tmp_path):
    uri = shutil.copytree(tables["mapped name"], tmp_path / "table")
    table = Snapshot.open(str(uri))
    (uri / "_delta_log" / f"{table.version:020d}.json").unlink()
    with pytest.raises(BatchAssetsError, match=f"no version {table.version}"):
        table.rows()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: data[:20] + b"\xff" + data[21:], "checksum is wrong"),
        (lambda data: data[:30], "no vector of"),
        (None, "not found"),
    ],
)
def test_a_damaged_or_missing_deletion_vector_is_an_error(tables, tmp_path, damage, message):
    uri = shutil.copytree(tables["changing-deletion-vector"], tmp_path / "table")
    for path in uri.glob("*.bin"):
        if damage is None:
            path.unlink()
        else:
            path.write_bytes(damage(path.read_bytes()))
    table = Snapshot.open(str(uri))
    with pytest.raises(BatchAssetsError, match=message) as caught:
        list(table.read_files(table.files()))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("old", "new", "is_read"), [("integer", "long", True), ("long", "integer", False), ("string", "long", False)]
)
def test_a_type_that_was_changed_in_an_unknown_way_is_refused(tmp_path, old, new, is_read):
    uri = str(tmp_path / "table")
    write_deltalake(uri, pa.table({"a": [1]}))
    require(uri, "typeWidening")
    changes = [{"fromType": old, "toType": new, "fieldPath": "element"}]
    change_columns(uri, lambda fields: fields[0].update(metadata={"delta.typeChanges": changes}))
    if is_read:
        assert Snapshot.open(uri).rows() == 1
    else:
        with pytest.raises(UnreadableTableError, match=f"typeWidening from {old} to {new}"):
            Snapshot.open(uri)


def test_a_file_that_lacks_what_its_table_promises_is_refused(tables, tmp_path):
    by_id = shutil.copytree(tables["mapped id"], tmp_path / "by id")
    for path in by_id.rglob("*.parquet"):
        stored = pq.read_table(path)
        pq.write_table(pa.table(dict(zip(stored.column_names, stored.columns, strict=True))), path)
    shredded = shutil.copytree(tables["variants"], tmp_path / "shredded")
    for path in shredded.glob("*.parquet"):
        stored = pq.read_table(path, columns=["id", "v"])
        value = stored.column("v").combine_chunks()
        split = pa.StructArray.from_arrays(
            [value.field("metadata"), value.field("value"), pa.nulls(len(value), pa.int64())],
            names=["metadata", "value", "typed_value"],
        )
        pq.write_table(stored.set_column(1, "v", split), path)
    for uri, columns, message in ((by_id, ["n"], "has no field ids"), (shredded, ["v"], "variantShredding")):
        table = Snapshot.open(str(uri))
        with pytest.raises(BatchAssetsError, match=message):
            list(table.read_files(table.files(), columns))


@pytest.mark.parametrize(
    ("name", "mode", "feature"),
    [("changing-deletion-vector", "append", "deletionVectors"), ("mapped-by-id", "overwrite", "columnMapping")],
)
def test_writing_is_refused_before_a_file_is_written(spark, tables, name, mode, feature):
    register_deltars(spark)
    uri = tables[name]
    version, before = DeltaTable(uri).version(), sorted(Path(uri).rglob("*"))
    with pytest.raises(Exception, match=f"features this writer does not support: .*{feature}"):
        read_table(spark, Snapshot.open(uri)).write.format("deltars").mode(mode).save(uri)
    with pytest.raises(BatchAssetsError, match=feature):
        maintain(WritableTable.open(uri), 168, print)
    assert (DeltaTable(uri).version(), sorted(Path(uri).rglob("*"))) == (version, before)


@pytest.fixture
def server():
    with ChatServer(lambda body, number: completion(body["messages"][0]["content"].split()[-1].upper())) as server:
        yield server


def test_a_statement_asks_about_the_rows_that_are_left(spark, server, tables, lake):
    from batch_assets.ai_functions.functions import register_ai_functions

    register_ai_functions(spark, {"e": endpoint(server)})
    shutil.copytree(tables["partitions-and-checkpoint"], Path(lake.uri, "main", "default", "theirs"))
    statement = "CREATE TABLE ours AS SELECT part, col1, ai_query('e', CONCAT('say ', col1)) AS said FROM theirs"
    rows = ai_sql(spark, statement, lake).collect()
    assert {row.col1: row.said for row in rows} == {n: str(n) for n in range(50) if n % 2 or n >= 30}
    assert len(server.requests) == len(rows) == 35
    assert DeltaTable(f"{lake.uri}/main/default/ours").protocol().min_reader_version == 1


def test_a_batch_is_scored_without_its_deleted_documents_and_its_output_must_be_writable(spark, server, lake):
    documents = lake.open(PROD_DATA)
    rows = [{"id": str(n), "document": f"text {n}" if n else None} for n in range(6)]
    staged = stage([pa.Table.from_pylist(rows, schema=PROD_DATA.file_schema)], documents.staging_area("a"))
    documents.replace("a", staged, {})
    delete_rows(documents.uri, {path: [1, 4] for path in paths(documents.uri)})
    documents = lake.open(PROD_DATA)
    assert documents.rows("a") == 4
    assert not documents.is_written_by_us("a")
    output, statement = lake.open(AI_QUERY_INFERENCE), statement_of(Settings(endpoint="e", ai_query_limit=0), "a")
    answered = answer_batch(spark, lake, documents, output, "a", endpoint(server), statement, 0, {}, print)
    assert (answered.rows, answered.counts.summaries, len(server.requests)) == (4, 3, 3)

    output = lake.open(AI_QUERY_INFERENCE)
    assert counts_by_batch(output)["a"] == answered.counts
    delete_rows(output.uri, {path: [0] for path in paths(output.uri)})
    output = lake.open(AI_QUERY_INFERENCE)
    assert (output.rows("a"), counts_by_batch(output)) == (3, {"a": None})
    with pytest.raises(BatchAssetsError, match="deletionVectors"):
        answer_batch(spark, lake, documents, output, "a", endpoint(server), statement, 0, {}, print)
    assert len(server.requests) == 3

"""The Spark data source deltars, on any kind of table."""

import datetime as dt
import json
import shutil
from decimal import Decimal
from pathlib import Path

import pyarrow as pa
import pytest
from deltalake import DeltaTable, write_deltalake

from batch_assets.lake.deltars import reader as reader_module
from batch_assets.lake.deltars import register_deltars
from batch_assets.lake.deltars.reader import DeltarsReader
from batch_assets.lake.snapshot import Snapshot

UTC = dt.UTC


@pytest.fixture
def uri(tmp_path) -> str:
    return str(tmp_path / "a table")


@pytest.fixture
def deltars(spark):
    """Reads and writes with options: deltars.read(uri, **options), deltars.write(frame, uri, mode, **options)."""
    register_deltars(spark)

    class Deltars:
        @staticmethod
        def read(uri, **options):
            return spark.read.format("deltars").options(**options).load(uri)

        @staticmethod
        def write(frame, uri, mode="append", **options):
            frame.write.format("deltars").mode(mode).options(**options).save(uri)

    return Deltars


EVERY_TYPE = pa.table(
    {
        "string": ["a", ""],
        "long": pa.array([2**63 - 1, -(2**63)]),
        "integer": pa.array([1, None], pa.int32()),
        "short": pa.array([1, -2], pa.int16()),
        "byte": pa.array([1, -128], pa.int8()),
        "float": pa.array([1.5, None], pa.float32()),
        "double": [1.5, float("inf")],
        "boolean": [True, None],
        "binary": [b"\x00\xff", None],
        "date": [dt.date(2020, 2, 29), dt.date(1, 1, 1)],
        "timestamp": pa.array(
            [dt.datetime(2020, 1, 1, 1, 2, 3, 456789, UTC), dt.datetime(1, 1, 1, tzinfo=UTC)],
            pa.timestamp("us", "UTC"),
        ),
        "timestamp_ntz": pa.array([dt.datetime(2020, 1, 1, 1, 2, 3, 456789), None], pa.timestamp("us")),
        "decimal": pa.array([Decimal("1.23"), Decimal("-4.50")], pa.decimal128(10, 2)),
        "decimal38": pa.array([Decimal("12345678901234567890123456789012345678"), None], pa.decimal128(38, 0)),
        "array": pa.array([[1, None], []], pa.list_(pa.int32())),
        "struct": [{"x": 1, "y": {"z": "q"}}, None],
        "map": pa.array([[("k", 1), ("l", None)], None], pa.map_(pa.string(), pa.int64())),
        "array_of_structs": [[{"a": [1.5]}], None],
    }
)


def test_every_type_is_read_as_deltalake_reads_it(deltars, uri):
    write_deltalake(uri, EVERY_TYPE)
    rows = deltars.read(uri).toArrow()
    expected = DeltaTable(uri).to_pyarrow_table()
    assert rows.schema.names == expected.schema.names
    for name in rows.schema.names:
        assert rows[name].to_pylist() == expected[name].to_pylist(), name


def test_deltalake_reads_every_original_delta_type_that_is_written(deltars, spark, uri):
    rows = EVERY_TYPE.drop_columns(["timestamp_ntz"])
    deltars.write(spark.createDataFrame(rows), uri)
    found = DeltaTable(uri).to_pyarrow_table()
    for name in rows.schema.names:
        assert sorted(map(repr, found[name].to_pylist())) == sorted(map(repr, rows[name].to_pylist())), name
    assert DeltaTable(uri).protocol().min_reader_version == 1


def test_a_read_can_select_a_version_and_columns(deltars, uri):
    write_deltalake(uri, pa.table({"a": [1], "b": ["x"]}))
    write_deltalake(uri, pa.table({"a": [2], "b": ["y"]}), mode="append")
    assert [row.asDict() for row in deltars.read(uri, versionAsOf="0", columns="b, a").collect()] == [
        {"b": "x", "a": 1}
    ]
    assert deltars.read(uri, columns="b").columns == ["b"]
    assert deltars.read(uri).count() == 2


def test_a_column_added_later_is_null_in_older_files(deltars, uri):
    write_deltalake(uri, pa.table({"a": [1]}))
    write_deltalake(uri, pa.table({"a": [2], "b": ["y"]}), mode="append", schema_mode="merge")
    assert {(row["a"], row["b"]) for row in deltars.read(uri).collect()} == {(1, None), (2, "y")}


def test_a_table_without_rows_is_read_as_empty(deltars, uri):
    write_deltalake(uri, pa.table({"a": pa.array([], pa.int64())}))
    assert deltars.read(uri).collect() == []


def test_large_files_are_split_among_tasks_and_small_ones_are_combined(deltars, uri, spark, monkeypatch):
    from deltalake import WriterProperties

    rows = pa.table({"n": range(10_000), "text": [f"{n:0>200}" for n in range(10_000)]})
    write_deltalake(uri, rows, writer_properties=WriterProperties(max_row_group_size=500, compression="UNCOMPRESSED"))
    for number in range(5):
        write_deltalake(uri, pa.table({"n": [-number], "text": ["small"]}), mode="append")
    monkeypatch.setattr(reader_module, "_TASK_BYTES", 300_000)
    monkeypatch.setattr(reader_module, "_OPEN_COST", 1_000)
    reader = DeltarsReader(Snapshot.open(uri), deltars.read(uri).schema)
    tasks = reader.partitions()
    assert 6 <= len(tasks) <= 10
    numbers = [[n for batch in reader.read(task) for n in batch.column("n").to_pylist()] for task in tasks]
    assert sum(1 for task in numbers if task) >= 6
    assert sorted(n for task in numbers for n in task) == sorted([*range(10_000), *(-n for n in range(5))])


@pytest.fixture(scope="module")
def tricky(tmp_path_factory) -> str:
    """A table partitioned by day, one file per group of rows, with values that statistics get wrong."""
    uri = str(tmp_path_factory.mktemp("tricky") / "table")
    moment = dt.datetime(2020, 1, 1, 0, 0, 0, 123456, UTC)
    files = [
        # day, numbers, floats, texts, moments, flags
        (dt.date(2020, 1, 1), [1, 5], [1.0, float("nan")], ["apple", "banana"], [moment, moment], [True, None]),
        (dt.date(2020, 1, 2), [6, None], [-0.0, 2.0], ["cherry", None], [None, moment], [False, False]),
        (None, [None, None], [None, None], [None, None], [None, None], [None, None]),
        (dt.date(2020, 1, 3), [7, 9], [0.0, 5.0], ["x" * 100, "z"], [moment, moment], [True, False]),
    ]
    for day, n, f, s, t, b in files:
        columns = {
            "day": pa.array([day] * 2, pa.date32()),
            "n": pa.array(n, pa.int64()),
            "f": pa.array(f, pa.float64()),
            "s": pa.array(s, pa.string()),
            "t": pa.array(t, pa.timestamp("us", "UTC")),
            "b": pa.array(b, pa.bool_()),
            # deltalake writes the bounds of decimals as floats, and 0.7 is greater than the nearest float32.
            "d": pa.array([Decimal("123456789012345.67"), None], pa.decimal128(20, 2)),
            "r": pa.array([0.7, None], pa.float32()),
        }
        write_deltalake(uri, pa.table(columns), mode="append", partition_by=["day"])
    return uri


@pytest.mark.parametrize("day", ["2020-01-01", "2020-01-02", "2020-01-03", None])
def test_a_partition_is_read_from_its_own_files_and_gives_all_its_rows(deltars, spark, tricky, day):
    table = Snapshot.open(tricky)
    reader = DeltarsReader(table, deltars.read(tricky).schema, {"day": day and dt.date.fromisoformat(day)})
    assert sum(len(task.parts) for task in reader.partitions()) == 1 < len(table.files())
    all_rows = spark.createDataFrame(DeltaTable(tricky).to_pyarrow_table())
    expected = all_rows.where(f"day <=> DATE '{day}'" if day else "day IS NULL")
    found = deltars.read(tricky, partition=json.dumps({"day": day}))
    columns = ("day", "n", "f", "s", "t", "b")
    assert sorted(map(str, found.select(*columns).collect())) == sorted(map(str, expected.select(*columns).collect()))


def test_one_data_frame_can_be_queried_with_different_filters(deltars, spark, tricky):
    """If a data source accepts filters, Spark 4.2 applies one query's filters to all queries of the data frame."""
    spark.conf.set("spark.sql.python.filterPushdown.enabled", "true")
    try:
        frame = deltars.read(tricky)
        assert frame.where("n = 5").count() == 1
        assert frame.count() == 8
        assert frame.where("n = 5").union(frame.where("n = 6")).count() == 2
    finally:
        spark.conf.unset("spark.sql.python.filterPushdown.enabled")


def test_a_data_frame_keeps_the_version_that_was_newest_when_it_was_created(deltars, uri):
    write_deltalake(uri, pa.table({"a": [1]}))
    frame = deltars.read(uri)
    write_deltalake(uri, pa.table({"a": [2]}), mode="append")
    assert frame.count() == 1
    assert deltars.read(uri).count() == 2


def protocol_of(uri: str, features: list[str] | None, *, reader: int = 3, writer: int = 7, **configuration) -> None:
    """Change a table's protocol, and its properties if given, in a separate commit."""
    table = DeltaTable(uri)
    protocol: dict = {"minReaderVersion": reader, "minWriterVersion": writer}
    if features is not None:
        protocol |= {"readerFeatures": features if reader == 3 else None, "writerFeatures": features}
    lines = [{"protocol": protocol}]
    if configuration:
        log = Path(uri, "_delta_log", f"{0:020d}.json").read_text().splitlines()
        metadata = next(json.loads(line) for line in log if '"metaData"' in line)
        metadata["metaData"]["configuration"] = {key.replace("_", "."): value for key, value in configuration.items()}
        lines.append(metadata)
    Path(uri, "_delta_log", f"{table.version() + 1:020d}.json").write_text("\n".join(map(json.dumps, lines)))


def test_reading_a_table_with_an_unsupported_feature_is_an_error_that_names_it(deltars, uri):
    write_deltalake(uri, pa.table({"a": [1]}))
    protocol_of(uri, ["somethingNew"])
    with pytest.raises(Exception, match="somethingNew"):
        deltars.read(uri).collect()


def test_column_mapping_counts_only_if_the_protocol_has_it_and_an_unknown_mode_is_refused(deltars, uri):
    write_deltalake(uri, pa.table({"a": [1]}))
    protocol_of(uri, None, reader=1, writer=2, **{"delta_columnMapping_mode": "name"})
    assert deltars.read(uri).count() == 1
    protocol_of(uri, None, reader=2, writer=5, **{"delta_columnMapping_mode": "none"})
    assert deltars.read(uri).count() == 1
    protocol_of(uri, None, reader=2, writer=5, **{"delta_columnMapping_mode": "other"})
    with pytest.raises(Exception, match="columnMapping in the mode other"):
        deltars.read(uri).collect()


@pytest.mark.parametrize(
    ("configuration", "feature"),
    [
        ({"delta_constraints_positive": "a > 0"}, "checkConstraints"),
        ({"delta_enableChangeDataFeed": "true"}, "changeDataFeed"),
    ],
)
def test_writing_a_table_with_an_unsupported_feature_is_an_error_that_names_it(
    deltars, spark, uri, configuration, feature
):
    write_deltalake(uri, pa.table({"a": [1]}))
    protocol_of(uri, None, reader=1, writer=4)
    deltars.write(spark.sql("SELECT 2L AS a"), uri)
    protocol_of(uri, None, reader=1, writer=4, **configuration)
    with pytest.raises(Exception, match=feature):
        deltars.write(spark.sql("SELECT 3L AS a"), uri)
    assert deltars.read(uri).count() == 2


def test_an_append_only_table_accepts_appends_and_refuses_replacements(deltars, spark, uri):
    write_deltalake(uri, pa.table({"a": [1]}), configuration={"delta.appendOnly": "true"})
    deltars.write(spark.sql("SELECT 2L AS a"), uri)
    with pytest.raises(Exception, match=r"delta\.appendOnly"):
        deltars.write(spark.sql("SELECT 3L AS a"), uri, "overwrite")
    assert deltars.read(uri).count() == 2


PARTITION_VALUES = {
    "string": [
        None, "a b", "a/b", "../up", "k=v", "50%", "%20", "it's", 'say "x"', "ünï ☃ 日本", "#?&;", "[x]{y}",
        "back\\slash", "a:b", "*<>|^`", "tab\tnew\nline", "__HIVE_DEFAULT_PARTITION__x", ".", "..", " lead ",
        "NULL", "0",
    ],
    "int": [None, -5, 0, 2**31 - 1],
    "date": [None, dt.date(1, 1, 1), dt.date(2020, 2, 29), dt.date(9999, 12, 31)],
    "timestamp": [None, dt.datetime(2020, 1, 2, 3, 4, 5, 6, UTC), dt.datetime(1900, 1, 1, tzinfo=UTC)],
    "boolean": [None, True, False],
    "double": [None, -0.1, 1e300],
}  # fmt: skip


@pytest.mark.parametrize("kind", PARTITION_VALUES)
def test_partition_values_of_every_kind_are_written_replaced_and_read_back(deltars, spark, uri, kind):
    values = PARTITION_VALUES[kind]
    rows = [(n, value) for n, value in enumerate(values)]
    deltars.write(spark.createDataFrame(rows, f"n long, p {kind}"), uri, partitionColumns="p")
    for n, value in enumerate(values):
        new = spark.createDataFrame([(n + 100, value)], f"n long, p {kind}")
        deltars.write(new, uri, "overwrite", partition=json.dumps({"p": value}, default=str))
    found = {(row["n"], row["p"]) for row in deltars.read(uri).collect()}
    assert {(n, p.replace(tzinfo=UTC) if isinstance(p, dt.datetime) else p) for n, p in found} == {
        (n + 100, value) for n, value in enumerate(values)
    }
    # No reader that follows the log sees any of the old rows.
    assert sum(DeltaTable(uri).get_add_actions(flatten=True)["num_records"].to_pylist()) == len(values)


@pytest.mark.parametrize(
    ("sql", "message"),
    [
        ("SELECT 1 AS n, '' AS p", "empty text.*write null, or a word"),
        ("SELECT 1 AS n, TIMESTAMP_NTZ '2020-01-01 00:00:00' AS p", "timestamp without zone.*CAST"),
        ("SELECT 1 AS n, X'41' AS p", "binary: partition by text"),
        ("SELECT 1 AS n, array(1) AS p", "partition by text"),
        ("SELECT 1 AS n, 1.5BD AS p", "partition by text"),
        ("SELECT 1 AS n, DATE '2020-01-01' + 10000000 AS p", "after the year 9999"),
        ("SELECT 1 AS n, repeat('x', 300) AS p", "too long for the name of a folder"),
        ("SELECT 1 AS n, DOUBLE('NaN') AS p", "can't be a partition value"),
    ],
)
def test_partition_values_that_readers_disagree_on_are_refused_with_a_remedy(deltars, spark, uri, sql, message):
    with pytest.raises(Exception, match=message):
        deltars.write(spark.sql(sql), uri, partitionColumns="p")
    assert not list(Path(uri).rglob("*.parquet"))


@pytest.fixture(scope="module")
def nine_rows(spark, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("nine") / "rows"
    register_deltars(spark)
    rows = spark.range(9).selectExpr("id", "concat('t', id) AS text", "CAST(id % 3 AS INT) AS p")
    rows.write.format("deltars").mode("append").options(partitionColumns="p").save(str(folder))
    return folder


@pytest.fixture
def table(nine_rows, uri) -> str:
    """Nine rows in the partitions 0, 1 and 2."""
    return str(shutil.copytree(nine_rows, uri))


def counts(deltars, uri) -> dict:
    return {row["p"]: row["count"] for row in deltars.read(uri).groupBy("p").count().collect()}


def test_a_replacement_replaces_its_partition_and_an_empty_one_empties_it(deltars, spark, table):
    new = spark.sql("SELECT 100L AS id, 'new' AS text")
    deltars.write(new, table, "overwrite", partition='{"p": 1}')
    assert counts(deltars, table) == {0: 3, 1: 1, 2: 3}
    deltars.write(new.where("id = 0"), table, "overwrite", partition='{"p": 2}')
    assert counts(deltars, table) == {0: 3, 1: 1}


def test_a_table_without_partitions_is_replaced_as_a_whole(deltars, spark, uri):
    deltars.write(spark.range(5), uri)
    deltars.write(spark.range(2), uri, "overwrite")
    assert deltars.read(uri).count() == 2


@pytest.mark.parametrize(
    ("mode", "sql", "options", "message"),
    [
        ("overwrite", "SELECT 1L AS id, 'x' AS text, 1 AS p", {}, "never the whole table"),
        ("overwrite", "SELECT 1L AS id, 'x' AS text, 2 AS p", {"partition": '{"p": 1}'}, "a row with p=2 can't go"),
        ("overwrite", "SELECT 1L AS id, 'x' AS text, 1 AS p", {"partition": "p=1"}, "not valid JSON"),
        ("overwrite", "SELECT 1L AS id, 'x' AS text, 1 AS p", {"partition": "1"}, "must be a JSON object such as"),
        ("overwrite", "SELECT 1L AS id, 'x' AS text, 1 AS p", {"partition": "{}"}, "but the partition names no column"),
        ("overwrite", "SELECT 1L AS id, 'x' AS text, 1 AS p", {"partition": '{"q": 1}'}, "but the partition names q"),
        ("overwrite", "SELECT 1L AS id, 'x' AS text, 1 AS p", {"partition": '{"p": "x"}'}, "'x' is not valid for"),
        ("append", "SELECT 1L AS id, 'x' AS text, 1 AS p", {"partition": '{"p": 1}'}, "an append needs none"),
        ("append", "SELECT 1L AS id, 'x' AS text, 1 AS p", {"partitionColumns": "id"}, "by p, not by id"),
        ("append", "SELECT 1L AS id, 'x' AS text, 1 AS p", {"partitionColumn": "p"}, "did you mean partitionColumns"),
        ("append", "SELECT 1L AS id, 'x' AS text, 1 AS p", {"replaceWhere": "p = 1"}, "(?i)no option replaceWhere"),
        ("append", "SELECT 1L AS id, 'x' AS text, 1 AS p", {"versionAsOf": "0"}, "(?i)no option versionAsOf"),
        ("append", "SELECT 1L AS id, 'x' AS text, 1 AS p", {"readVersion": "99"}, "can't be opened at version 99"),
        ("append", "SELECT 1L AS ID, 'x' AS text, 1 AS p", {"mergeSchema": "true"}, "is spelled id in the table"),
        ("append", "SELECT 1L AS id, 'x' AS text, 1 AS p, localtimestamp() AS m", {"mergeSchema": "true"}, "CAST"),
        ("append", "SELECT 1L AS id, 'x' AS text, 1 AS p", {"txnAppId": "job"}, "go together"),
        ("append", "SELECT 1L AS id, 'x' AS text, 1 AS p", {"mergeSchema": "yes"}, "must be true or false"),
        ("append", "SELECT 1L AS id, 'x' AS text, 1 AS p, 2 AS more", {}, "has no column more"),
        ("append", "SELECT 1L AS id, 1 AS p", {}, "also has text"),
        ("append", "SELECT 1 AS id, 'x' AS text, 1 AS p", {}, "column id is int, but bigint"),
        ("append", "SELECT 1L AS id, 'x' AS text", {"mergeSchema": "true"}, "lack p"),
        ("append", "SELECT 1L AS id, 'x' AS text, 1 AS p, NULL AS more", {"mergeSchema": "true"}, "type void"),
        ("append", "SELECT 1L AS id, 'x' AS text, 1 AS p, 2 AS TEXT", {"mergeSchema": "true"}, "same name"),
    ],
)  # fmt: skip
def test_a_write_that_does_not_match_the_table_is_refused_and_leaves_no_file(
    deltars, spark, table, mode, sql, options, message
):
    before = set(Path(table).rglob("*"))
    spark.conf.set("spark.sql.caseSensitive", "true")
    try:
        with pytest.raises(Exception, match=message):
            deltars.write(spark.sql(sql), table, mode, **options)
    finally:
        spark.conf.unset("spark.sql.caseSensitive")
    assert set(Path(table).rglob("*")) == before


@pytest.mark.parametrize(
    ("sql", "options", "message"),
    [
        ("SELECT TIMESTAMP_NTZ '2020-01-01 00:00:00' AS t", {}, "CAST"),
        ("SELECT array(TIMESTAMP_NTZ '2020-01-01 00:00:00') AS t", {}, "CAST"),
        ("SELECT INTERVAL 1 DAY AS t", {}, "interval day"),
        ("SELECT parse_json('1') AS t", {}, "type variant"),
        ("SELECT 1 AS t", {"partitionColumns": "t"}, "needs at least one column that is not a partition column"),
        ("SELECT 1 AS t", {"partitionColumns": "u"}, "no column u"),
    ],
)
def test_a_table_that_some_readers_could_not_read_is_not_created(deltars, spark, uri, sql, options, message):
    with pytest.raises(Exception, match=message):
        deltars.write(spark.sql(sql), uri, **options)
    assert not Path(uri).exists()


def test_columns_are_added_only_on_request(deltars, spark, table):
    deltars.write(spark.sql("SELECT 1L AS id, 9 AS p, 2.5D AS more"), table, mergeSchema="true")
    rows = deltars.read(table).where("p = 9").collect()
    assert [row.asDict() for row in rows] == [{"id": 1, "text": None, "p": 9, "more": 2.5}]
    assert deltars.read(table).where("more IS NULL").count() == 9


def test_an_append_with_a_transaction_id_is_applied_once(deltars, spark, table):
    for _ in range(2):
        deltars.write(spark.sql("SELECT 1L AS id, 'x' AS text, 9 AS p"), table, txnAppId="nightly", txnVersion="7")
    assert counts(deltars, table)[9] == 1
    deltars.write(spark.sql("SELECT 1L AS id, 'x' AS text, 9 AS p"), table, txnAppId="nightly", txnVersion="8")
    assert counts(deltars, table)[9] == 2


def test_a_replacement_based_on_an_older_version_is_refused(deltars, spark, table):
    read = DeltaTable(table).version()
    new = spark.sql("SELECT 100L AS id, 'new' AS text")
    deltars.write(new, table, "overwrite", partition='{"p": 1}')
    deltars.write(new, table, "overwrite", partition='{"p": 0}', readVersion=str(read))
    with pytest.raises(Exception, match=f"p=1 of the table .* was changed in version {read + 1}"):
        deltars.write(new, table, "overwrite", partition='{"p": 1}', readVersion=str(read))
    assert counts(deltars, table) == {0: 1, 1: 1, 2: 3}


def test_a_task_that_fails_after_writing_adds_nothing_and_its_retry_adds_all_rows_once(deltars, spark, table, tmp_path):
    marker = str(tmp_path / "failed once")

    def fail_once(batches):
        yield from batches
        if not Path(marker).exists():
            Path(marker).touch()
            raise RuntimeError("the task is lost")

    rows = spark.range(1000).selectExpr("id", "'x' AS text").repartition(2)
    deltars.write(rows.mapInArrow(fail_once, rows.schema), table, "overwrite", partition='{"p": 1}')
    assert Path(marker).exists()
    assert counts(deltars, table) == {0: 3, 1: 1000, 2: 3}
    ids = [row["id"] for row in deltars.read(table).where("p = 1").collect()]
    assert len(set(ids)) == 1000


def test_rerunning_a_replacement_with_a_transaction_id_is_not_a_conflict(deltars, spark, table):
    new = spark.sql("SELECT 100L AS id, 'new' AS text")
    for _ in range(2):
        deltars.write(
            new, table, "overwrite", partition='{"p": 1}', readVersion="1", txnAppId="nightly", txnVersion="1"
        )
    assert counts(deltars, table) == {0: 3, 1: 1, 2: 3}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mergeSchema": "true"}, "(?i)no option mergeSchema for reading"),
        ({"columns": "id,id"}, "different names"),
        ({"columns": ""}, "different names"),
        ({"columns": "ID"}, "it has id, text, p"),
        ({"versionAsOf": "99"}, "can't be opened at version 99"),
        ({"versionAsOf": "newest"}, "must be a number"),
        ({"partition": "p = 1"}, "not valid JSON"),
        ({"partition": '{"q": 1}'}, "but the partition names q"),
    ],
)
def test_a_read_with_invalid_options_is_refused(deltars, table, options, message):
    with pytest.raises(Exception, match=message):
        deltars.read(table, **options).collect()


def test_a_date_is_not_read_as_a_number_of_days(deltars, spark, uri):
    deltars.write(spark.sql("SELECT 1 AS n, DATE '2020-01-01' AS day"), uri, partitionColumns="day")
    with pytest.raises(Exception, match="as text"):
        deltars.write(spark.sql("SELECT 1 AS n"), uri, "overwrite", partition='{"day": 18262}')
    assert deltars.read(uri).count() == 1


def test_paths_that_delta_rs_would_misread_are_refused_or_made_explicit(deltars, spark, tmp_path):
    deltars.write(spark.range(3), f"file://{tmp_path}/a%20b")
    assert deltars.read(f"{tmp_path}/a b").count() == 3
    for path in (f"{tmp_path}/a%20b", f"file:{tmp_path}/c", f"file://host{tmp_path}/c"):
        with pytest.raises(Exception, match=r"rename it|write file:///path"):
            deltars.read(path).count()
        with pytest.raises(Exception, match=r"rename it|write file:///path"):
            deltars.write(spark.range(3), path)


def test_a_failed_job_changes_nothing(deltars, spark, table):
    version = DeltaTable(table).version()
    bad = spark.range(10).selectExpr("id", "IF(id = 7, raise_error('bad value'), 'x') AS text")
    with pytest.raises(Exception, match="bad value"):
        deltars.write(bad, table, "overwrite", partition='{"p": 1}')
    assert (DeltaTable(table).version(), counts(deltars, table)) == (version, {0: 3, 1: 3, 2: 3})


def test_a_bucket_is_read_and_written_with_storage_options_hidden_from_the_plan(deltars, spark):
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        options = {
            "storage.AWS_ENDPOINT_URL": f"http://{host}:{port}",
            "storage.AWS_ALLOW_HTTP": "true",
            "storage.AWS_ACCESS_KEY_ID": "somebody",
            "storage.AWS_SECRET_ACCESS_KEY": "not-for-your-eyes",
            "storage.AWS_REGION": "us-east-1",
        }
        import httpx

        httpx.put(f"http://{host}:{port}/lake-bucket").raise_for_status()
        uri = "s3://lake-bucket/a table"
        deltars.write(spark.range(10).selectExpr("id", "id % 2 AS p"), uri, partitionColumns="p", **options)
        deltars.write(spark.range(3).toDF("id"), uri, "overwrite", partition='{"p": 1}', **options)
        frame = deltars.read(uri, **options)
        assert {row["p"]: row["count"] for row in frame.groupBy("p").count().collect()} == {0: 5, 1: 3}
        assert "not-for-your-eyes" not in frame._jdf.queryExecution().toString()
        with pytest.raises(Exception, match="no-such-bucket") as failure:
            deltars.read("s3://no-such-bucket/x", **options).collect()
        assert "not-for-your-eyes" not in str(failure.value)
    finally:
        server.stop()


def test_the_example_in_the_documentation_runs(spark, tmp_path):
    page = (Path(__file__).parent.parent / "docs" / "deltars.md").read_text()
    example = page.split("```python\n")[1].split("```")[0].replace("/lake/", f"{tmp_path}/")
    names = {"spark": spark, "new": spark.sql("SELECT 'good' AS text, DATE '2026-01-31' AS day")}
    exec(example, names)
    assert names["reviews"].count() == 1

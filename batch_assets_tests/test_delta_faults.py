"""Writers that are killed, race each other, and run during upkeep, as real processes with real kills."""

import os
import re
import signal
import time
from pathlib import Path

import dagster as dg
import pyarrow as pa
import pytest
from deltalake import DeltaTable

from batch_assets.errors import BatchAssetsError
from batch_assets.lake.staging import StagedFile, stage
from batch_assets.lake.upkeep import maintain
from batch_assets.lake.writable_table import ConcurrentCommitError, WritableTable
from batch_assets_tests import delta_processes as writers
from batch_assets_tests.delta_processes import CRASHES, ROWS, processes, race, replace, run, whole


@pytest.fixture
def uri(tmp_path) -> str:
    writers.make_table(str(tmp_path / "table"))
    return str(tmp_path / "table")


def data_files(uri: str) -> set[str]:
    return {str(path.relative_to(uri)) for path in Path(uri).rglob("*.parquet*") if "_delta_log" not in path.parts}


def stage_a(table: WritableTable, generation: str) -> list[StagedFile]:
    """Stage a whole generation of partition a."""
    rows = pa.table({"generation": [generation] * ROWS, "number": range(ROWS)})
    return stage([rows], table.staging_area({"part": "a"}))


@pytest.mark.parametrize("crash", CRASHES)
def test_a_rerun_after_a_crash_leaves_the_table_as_if_run_once(uri, crash):
    for part in ("a", "b"):
        replace(uri, part, "old")
    assert run(replace, uri, "a", "new", crash) == -signal.SIGKILL
    assert whole(uri, "a") == ("old" if crash in CRASHES[:2] else "new")
    replace(uri, "a", "new")
    assert whole(uri, "a") == "new"
    assert whole(uri, "b") == "old"
    assert WritableTable.open(uri).rows() == 2 * ROWS


@pytest.mark.parametrize("crash", CRASHES[:2])
def test_upkeep_removes_files_left_by_a_crash_once_they_are_old(uri, crash):
    run(replace, uri, "a", "lost", crash)
    left = data_files(uri)
    assert len(left) == (2 if crash == CRASHES[0] else writers.FILES)
    replace(uri, "a", "kept")
    assert maintain(WritableTable.open(uri), 168, print).vacuumed == 0
    assert left < data_files(uri)
    for path in left:
        os.utime(Path(uri, path), (time.time() - 169 * 3600,) * 2)
    assert maintain(WritableTable.open(uri), 168, print).vacuumed == len(left)
    assert not left & data_files(uri)
    assert whole(uri, "a") == "kept"


def test_upkeep_removes_old_checkpoints_except_the_newest_and_every_version_stays_readable(uri):
    replace(uri, "a", "first")
    WritableTable.open(uri).checkpoint()
    replace(uri, "a", "second")
    maintain(WritableTable.open(uri), 168, print)
    log = Path(uri, "_delta_log")
    first, second = sorted(log.glob("*.checkpoint.parquet"))
    for path in (first, second):
        os.utime(path, (time.time() - 2 * 3600,) * 2)
    maintain(WritableTable.open(uri), 168, print)
    assert [*log.glob("*.checkpoint.parquet")] == [second]
    assert whole(uri, "a") == "second"
    assert WritableTable.open(uri, {}, 1).rows() == ROWS
    Path(log, f"{0:020d}.json").rename(Path(log, "away"))
    replace(uri, "a", "third")
    WritableTable.open(uri).checkpoint()
    maintain(WritableTable.open(uri), 168, print)
    assert second.exists()


def test_upkeep_keeps_files_that_are_written_but_not_yet_committed(uri):
    table = WritableTable.open(uri)
    staged = stage_a(table, "g")
    maintain(WritableTable.open(uri), 168, print)
    table.replace({"part": "a"}, staged, {})
    assert whole(uri, "a") == "g"


def test_a_commit_of_files_removed_by_a_vacuum_is_refused(uri):
    replace(uri, "a", "old")
    table = WritableTable.open(uri)
    staged = stage_a(table, "g")
    DeltaTable(uri).vacuum(0, dry_run=False, enforce_retention_duration=False, full=True)
    with pytest.raises(BatchAssetsError, match="is missing or was changed"):
        table.replace({"part": "a"}, staged, {})
    assert whole(uri, "a") == "old"


@pytest.mark.parametrize("filled", [False, True], ids=["empty", "filled"])
def test_eight_processes_replace_eight_partitions_at_once_and_all_succeed(uri, filled):
    parts = [f"p{number}" for number in range(8)]
    for part in parts if filled else []:
        replace(uri, part, "old")
    results = race([(replace, uri, part, f"new-{part}") for part in parts])
    assert not [result for result in results if isinstance(result, Exception)]
    assert len(set(results)) == 8
    assert [whole(uri, part) for part in parts] == [f"new-{part}" for part in parts]


@pytest.mark.parametrize("filled", [False, True], ids=["empty", "filled"])
def test_processes_that_replace_one_partition_at_once_never_mix_their_rows(uri, filled):
    if filled:
        replace(uri, "a", "old")
    results = race([(replace, uri, "a", f"run-{number}") for number in range(4)])
    # A process that opens the table after another one committed replaces that commit; one that opened it before fails.
    refused = [result for result in results if isinstance(result, ConcurrentCommitError)]
    versions = sorted(result for result in results if isinstance(result, int))
    assert len(refused) + len(versions) == 4
    assert len(versions) >= 1
    assert whole(uri, "a") == f"run-{results.index(versions[-1])}"
    assert all("by run run-" in str(error) for error in refused)


def test_a_second_writer_that_empties_an_empty_partition_is_refused(uri):
    slow = WritableTable.open(uri)
    WritableTable.open(uri).replace({"part": "a"}, [], {"run_id": "fast"})
    with pytest.raises(ConcurrentCommitError, match="version 1 by run fast"):
        slow.replace({"part": "a"}, [], {"run_id": "slow"})


def test_a_compaction_by_delta_rs_just_before_the_commit_is_detected(uri, monkeypatch):
    replace(uri, "a", "old")
    table = WritableTable.open(uri)
    staged = stage_a(table, "new")
    commit = DeltaTable.create_write_transaction

    def overtaken(*arguments, **options):
        monkeypatch.setattr(DeltaTable, "create_write_transaction", commit)
        assert DeltaTable(uri).optimize.compact()["numFilesRemoved"] == writers.FILES
        commit(*arguments, **options)

    monkeypatch.setattr(DeltaTable, "create_write_transaction", overtaken)
    with pytest.raises(ConcurrentCommitError, match=r"another writer \(delta-rs.*OPTIMIZE"):
        table.replace({"part": "a"}, staged, {})
    assert whole(uri, "a") == "old"


def test_partitions_stay_whole_during_replacements_upkeep_reads_and_an_outside_compaction(uri, tmp_path):
    rounds, parts = 12, ["a", "b"]
    for part in parts:
        replace(uri, part, "first")
    done = str(tmp_path / "done")
    with processes.Pool(5) as pool:
        beside = [
            pool.apply_async(writers.keep_up_until, (uri, done, 168)),
            pool.apply_async(writers.foreign_compaction_until, (uri, done)),
            pool.apply_async(writers.poll_until, (uri, parts, done)),
        ]
        writing = [pool.apply_async(writers.replace_again_and_again, (uri, part, rounds)) for part in parts]
        try:
            for result in writing:
                result.get(240)
        finally:
            Path(done).touch()
        looks = beside[2].get(60)
        for result in beside:
            result.get(60)
    assert looks > 0
    assert [whole(uri, part) for part in parts] == [f"{part}-{rounds - 1}" for part in parts]
    maintain(WritableTable.open(uri), 168, print)
    assert len(WritableTable.open(uri).files()) == len(parts)


def test_a_commit_whose_response_was_lost_counts_even_if_it_was_replaced_immediately(uri, monkeypatch):
    table = WritableTable.open(uri)
    staged = stage_a(table, "g")
    commit = DeltaTable.create_write_transaction

    def lose_the_answer(*arguments, **options):
        monkeypatch.setattr(DeltaTable, "create_write_transaction", commit)
        commit(*arguments, **options)
        replace(uri, "a", "later")
        raise OSError("connection reset")

    monkeypatch.setattr(DeltaTable, "create_write_transaction", lose_the_answer)
    assert table.replace({"part": "a"}, staged, {}) == 1
    assert whole(uri, "a") == "later"


def test_a_file_whose_path_delta_rs_encodes_differently_is_not_left_behind(uri):
    """Spark, for example, leaves non-ASCII letters unchanged in the log, while delta-rs percent-encodes them."""
    replace(uri, "a", "old")
    log = Path(uri, "_delta_log", f"{1:020d}.json")
    log.write_text(log.read_text().replace('"path":"part=', '"path":"part%3D'))
    assert whole(uri, "a") == "old"
    with pytest.raises(BatchAssetsError, match="rewrite that partition with the engine that wrote it"):
        replace(uri, "a", "new")
    assert whole(uri, "a") == "old"
    files, lines = data_files(uri), []
    assert maintain(WritableTable.open(uri), 168, lines.append).compacted == 0
    assert "rewrite that partition" in lines[0]
    assert data_files(uri) == files


@pytest.mark.parametrize("character", [chr(code) for code in [*range(1, 128), 0xE9, 0x2603] if chr(code) != "/"])
def test_delta_rs_encodes_every_path_as_expected(uri, character):
    """Which files a commit may remove depends on this; it fails if a newer delta-rs encodes paths differently."""
    from deltalake.transaction import AddAction

    table = DeltaTable(uri)
    add = AddAction(f"x{character}y.parquet", 1, {"part": "a"}, 0, True, '{"numRecords": 1}')
    table.create_write_transaction([add], "append", table.schema(), ["part"])
    WritableTable.open(uri).check_replaceable({"part": "a"})


def test_writers_that_create_the_table_at_the_same_moment_all_succeed(tmp_path):
    for number in range(3):
        uri = str(tmp_path / f"table-{number}")
        parts = [f"p{part}" for part in range(4)]
        results = race([(make_and_replace, uri, part) for part in parts])
        assert not [result for result in results if isinstance(result, Exception)]
        assert [whole(uri, part) for part in parts] == parts
        assert WritableTable.open(uri).version == len(parts)


def make_and_replace(uri: str, part: str) -> int:
    writers.make_table(uri)
    return replace(uri, part, part)


def test_writers_that_add_columns_at_the_same_moment_all_succeed(uri):
    replace(uri, "a", "old")
    results = race([(add_column, uri, f"c{number // 2}") for number in range(4)])
    assert results == [None] * 4
    assert {"c0", "c1"} < set(WritableTable.open(uri).schema.names)


def add_column(uri: str, name: str) -> None:
    WritableTable.open(uri).add_columns(pa.schema([(name, pa.int64())]))


def test_unusual_log_entries_of_other_writers_cause_no_errors(uri):
    """Unicode line separators in statistics, partition values that this writer would refuse, and missing statistics."""
    from deltalake import write_deltalake
    from deltalake.transaction import AddAction

    for part in ("a", "b"):
        replace(uri, part, "old")
    table = WritableTable.open(uri)
    staged = stage_a(table, "new")
    theirs = pa.table({"part": ["x" * 250], "generation": ["a\u2028b\u0085c\u2029d"], "number": [1]})
    write_deltalake(uri, theirs, mode="append")
    delta = DeltaTable(uri)
    missing = AddAction("part=m/gone.parquet", 5, {"part": "m"}, 0, True, "")
    delta.create_write_transaction([missing], "append", delta.schema(), ["part"])
    table.replace({"part": "a"}, staged, {})
    assert whole(uri, "a") == "new"
    replace(uri, "b", "new")
    lines: list[str] = []
    done = maintain(WritableTable.open(uri), 168, lines.append)
    assert done.became >= 1


def test_an_append_of_text_with_line_separators_is_found_in_the_log(uri):
    table = WritableTable.open(uri)
    rows = pa.table({"part": ["li\u2028ne"], "generation": ["\u0085"], "number": [0]})
    version = table.append(stage([rows], table.staging_area()), {})
    assert version == WritableTable.open(uri).version == 1


def test_a_null_in_a_non_nullable_partition_column_is_refused(tmp_path):
    from batch_assets.lake.writable_table import create_table

    uri = str(tmp_path / "table")
    create_table(uri, {}, pa.schema([pa.field("part", pa.string(), nullable=False), ("n", pa.int64())]), ["part"])
    with pytest.raises(BatchAssetsError, match="must not be null"):
        WritableTable.open(uri).staging_area({"part": None})
    with pytest.raises(BatchAssetsError, match="must not be null"):
        stage([pa.table({"part": pa.nulls(1, pa.string()), "n": [1]})], WritableTable.open(uri).staging_area())


def test_many_partitions_in_any_order_become_one_file_each(uri):
    area = WritableTable.open(uri).staging_area()
    numbers = range(20_000)
    parts = [str(number * 7919 % 500) for number in numbers]
    table = pa.table({"part": parts, "generation": ["g"] * len(parts), "number": numbers})
    staged = stage(table.to_batches(max_chunksize=1000), area)
    assert len(staged) == 500
    assert sum(file.rows for file in staged) == len(parts)


def test_a_file_is_read_completely_whatever_size_the_log_gives(uri):
    replace(uri, "a", "old")
    log = Path(uri, "_delta_log", f"{1:020d}.json")
    log.write_text(re.sub(r'"size":\d+', '"size":3', log.read_text()))
    from pyspark.sql.types import LongType, StructField, StructType

    from batch_assets.lake.deltars.reader import DeltarsReader

    reader = DeltarsReader(WritableTable.open(uri), StructType([StructField("number", LongType())]))
    assert sum(batch.num_rows for task in reader.partitions() for batch in reader.read(task)) == ROWS


def test_a_shallow_clone_is_refused(uri):
    replace(uri, "a", "old")
    log = Path(uri, "_delta_log", f"{1:020d}.json")
    log.write_text(log.read_text().replace('"path":"part=', '"path":"file:///elsewhere/part='))
    with pytest.raises(BatchAssetsError, match="outside of its folder"):
        list(WritableTable.open(uri).read({"part": "a"}))


def test_a_table_recreated_in_the_meantime_is_not_written(uri):
    import shutil

    replace(uri, "a", "old")
    table = WritableTable.open(uri)
    shutil.rmtree(uri)
    writers.make_table(uri)
    for generation in ("x", "y", "z"):
        replace(uri, "a", generation)
    with pytest.raises(ConcurrentCommitError, match="recreated"):
        table.replace({"part": "a"}, [], {})
    assert whole(uri, "a") == "z"


def test_a_log_cleaned_up_in_the_meantime_does_not_hide_conflicting_commits(uri):
    table = WritableTable.open(uri)
    replace(uri, "a", "theirs")
    WritableTable.open(uri).checkpoint()
    Path(uri, "_delta_log", f"{1:020d}.json").unlink()
    with pytest.raises(ConcurrentCommitError, match="no longer has the versions after 0"):
        table.replace({"part": "a"}, [], {})
    assert whole(uri, "a") == "theirs"


def test_a_storage_fault_while_reading_the_log_is_an_error_and_changes_nothing(uri, monkeypatch):
    replace(uri, "a", "old")
    table = WritableTable.open(uri)
    replace(uri, "a", "theirs")

    def out_of_reach(*arguments):
        raise OSError("the bucket is out of reach")

    monkeypatch.setattr("batch_assets.lake.commit_log.file_system", out_of_reach)
    with pytest.raises(OSError, match="out of reach"):
        table.replace({"part": "a"}, [], {})
    assert whole(uri, "a") == "theirs"


def test_a_batch_whose_materialization_was_not_recorded_is_not_written_twice(tmp_path):
    """After a kill between the commit and the materialization event, the rerun finds the batch up to date."""
    from batch_assets_tests.conftest import write_json_lines

    home = tmp_path / "home"
    data = write_json_lines(tmp_path / "d.jsonl", [{"id": str(n), "document": f"text {n}"} for n in range(5)])
    assert run(_land_and_die, str(home), str(data)) == -signal.SIGKILL
    assert run(_land, str(home), str(data)) == 0
    table = WritableTable.open(str(home / "lake" / "main" / "default" / "m4_1_prod_data"))
    assert (table.version, table.rows()) == (1, 5)


def _land(home: str, data: str) -> None:
    from batch_assets.graph.partitions import register_batches
    from batch_assets.graph.prod_data import build_prod_data
    from batch_assets.lake.lake import Lake
    from batch_assets_tests.conftest import settings_for

    settings = settings_for(Path(home), dataset=data)
    storage = Path(home) / "dagster"
    storage.mkdir(parents=True, exist_ok=True)
    with dg.DagsterInstance.local_temp(str(storage)) as instance:
        register_batches(instance, settings.pipeline, ["d"])
        resources = {"lake": Lake(settings.lake_uri)}
        result = dg.materialize([build_prod_data(settings)], partition_key="d", instance=instance, resources=resources)
        assert result.success
        assert instance.get_latest_materialization_event(dg.AssetKey("prod_data")) is not None


def _land_and_die(home: str, data: str) -> None:
    from batch_assets.lake.lake import BatchSnapshot

    replace_batch = BatchSnapshot.replace

    def commit_and_die(self, *arguments):
        version = replace_batch(self, *arguments)
        if self.table.name == "m4_1_prod_data":
            writers.kill_this_process()
        return version

    BatchSnapshot.replace = commit_and_die
    _land(home, data)

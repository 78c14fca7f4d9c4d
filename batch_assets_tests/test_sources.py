import csv
import errno
import gzip
import json
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable

from batch_assets.errors import BatchAssetsError
from batch_assets.lake.contracts import DEFAULT_TABLES, PROD_DATA, PROD_DATA_REJECTED
from batch_assets.lake.forgotten import remember
from batch_assets.sources.aclsum import ACLSumDataset
from batch_assets.sources.column_mapping import XSUM_COLUMNS
from batch_assets.sources.configured import evaluation_dataset, scored_dataset
from batch_assets.sources.files import FileDataset
from batch_assets.sources.hub import HubDataset
from batch_assets.sources.landing import land_batch, obsolete_batches
from batch_assets.sources.records import Document, Record, Rejected, validate
from batch_assets_tests.conftest import settings_for, write_json_lines


def records(*fields):
    return [Record("file", place, item, str(item)) for place, item in enumerate(fields)]


def test_the_embedded_data_set_has_four_batches_of_25_with_joined_expert_summaries(home):
    dataset = scored_dataset(settings_for(home))
    assert dataset.batches() == [f"aclsum-test-000{number}" for number in (1, 2, 3, 4)]
    found = [item for batch in dataset.batches() for item in validate(dataset.records(batch), XSUM_COLUMNS)]
    assert len(found) == 100
    assert all(isinstance(item, Document) and item.document and item.reference for item in found)
    from aclsum import ACLSum

    paper = ACLSum("test").documents[30]
    assert found[30].id == paper.id
    for aspect in ("challenge", "approach", "outcome"):
        assert paper.summaries[aspect].strip() in found[30].reference


def test_evaluation_documents_are_never_among_the_scored_ones(home):
    for split in ("test", "validation", "train"):
        settings = settings_for(home, split=split)
        scored = {
            r.fields["id"] for b in scored_dataset(settings).batches() for r in scored_dataset(settings).records(b)
        }
        assert not scored & {document.id for document in evaluation_dataset(settings).held_out(25)}


def test_every_held_out_document_has_a_text_and_a_summary(tmp_path):
    texts = [("", "s"), (None, "s"), ("\u200b\ufeff", "s"), ("d", " \u200b"), ("d", ""), ("d", None), (".", "s")]
    rows = [{"id": str(n), "document": text, "summary": summary} for n, (text, summary) in enumerate(texts)]
    dataset = FileDataset(str(write_json_lines(tmp_path / "a.jsonl", rows)), batch_rows=10)
    assert [item.id for item in dataset.held_out(10)] == ["6"]


def test_a_limit_applies_to_the_first_records_across_all_batches():
    dataset = ACLSumDataset("test", 25, limit=30)
    assert [len(list(dataset.records(batch))) for batch in dataset.batches()] == [25, 5]


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"id": "a"}, "no field 'document'"),
        ({"id": "a", "document": 7}, "document is int"),
        ({"id": "a", "document": "x", "summary": ["y"]}, "summary is list"),
        ({"id": 1.5, "document": "x"}, "id is float"),
        ({"id": "a", "document": "lone \ud800 surrogate"}, "not valid UTF-8"),
    ],
)
def test_an_invalid_record_is_rejected_with_the_reason(fields, reason):
    (item,) = validate(records(fields), XSUM_COLUMNS)
    assert isinstance(item, Rejected)
    assert reason in item.reason


def test_ids_are_unique_within_a_batch_and_missing_ids_are_generated_deterministically():
    rows = records({"id": 5, "document": "x"}, {"id": "5", "document": "y"}, {"document": "z"}, {"document": "z"})
    first, second = list(validate(rows, XSUM_COLUMNS)), list(validate(rows, XSUM_COLUMNS))
    assert first == second
    assert [type(item) for item in first] == [Document, Rejected, Document, Document]
    assert first[0].id == "5"
    assert first[2].id != first[3].id


def test_json_lines_csv_and_parquet_plain_and_compressed_give_the_same_documents(tmp_path):
    rows = [{"id": str(n), "document": f'text {n}, "quoted"\nand more é', "summary": f"s{n}"} for n in range(3)]
    write_json_lines(tmp_path / "lines.jsonl", rows)
    (tmp_path / "packed.jsonl.gz").write_bytes(gzip.compress((tmp_path / "lines.jsonl").read_bytes()))
    with (tmp_path / "table.csv").open("w", newline="", encoding="utf-8-sig") as file:
        writer = csv.DictWriter(file, ["id", "document", "summary"])
        writer.writeheader()
        writer.writerows(rows)
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "columns.parquet")
    dataset = FileDataset(str(tmp_path), batch_rows=10)
    dataset.check()
    assert dataset.batches() == ["columns", "lines", "packed", "table"]
    for batch in dataset.batches():
        documents = [(d.id, d.document, d.reference) for d in validate(dataset.records(batch), XSUM_COLUMNS)]
        assert documents == [(row["id"], row["document"], row["summary"]) for row in rows]


def test_a_file_larger_than_a_batch_is_split(tmp_path):
    rows = [{"id": str(n), "document": "x"} for n in range(7)]
    dataset = FileDataset(str(write_json_lines(tmp_path / "é big.jsonl", rows)), batch_rows=3)
    assert dataset.batches() == ["e-big-0001", "e-big-0002", "e-big-0003"]
    assert [record.fields["id"] for record in dataset.records("e-big-0003")] == ["6"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b"", "no records"),
        ("a.jsonl", b"[1, 2]\n", "not a JSON object"),
        ("a.jsonl", b'{"text": "x"}\n', "no column 'document'"),
        ("a.csv", b"id,article\n1,x\n", "no column 'document' .columns: article, id"),
        ("a.parquet", b"PAR1 but not really", "can't be read"),
        ("a.jsonl.gz", b"not gzip", "can't be read"),
        ("a.csv", b'id,document\n1,"never closed\n2,x\n3,y\n', "can't be read"),
        ("a.csv", b"id,document,document\n1,x,y\n", "twice"),
        ("a.xlsx", b"x", "files end in"),
    ],
)
def test_a_file_without_usable_records_is_refused_by_the_check(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(BatchAssetsError, match=message):
        FileDataset(str(tmp_path / name), batch_rows=10).check()


def test_a_pattern_that_matches_nothing_is_refused(tmp_path):
    with pytest.raises(BatchAssetsError, match="no file matches"):
        FileDataset(str(tmp_path / "*.csv"), batch_rows=10)


def test_two_files_that_map_to_the_same_batch_are_refused(tmp_path):
    write_json_lines(tmp_path / "a.jsonl", [{"document": "x"}])
    write_json_lines(tmp_path / "a.json", [{"document": "y"}])
    with pytest.raises(BatchAssetsError, match="both become the batch a"):
        FileDataset(str(tmp_path), batch_rows=10).batches()


def test_an_unreachable_hub_data_set_suggests_the_embedded_data_set(tmp_path):
    with pytest.raises(BatchAssetsError, match="BATCH_ASSETS_DATASET=aclsum"):
        HubDataset("EdinburghNLP/xsum", "test", tmp_path, 10).check()


def test_a_full_disk_is_not_taken_for_a_missing_data_set(tmp_path, monkeypatch):
    def load(*arguments, **options):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("datasets.load_dataset", load)
    with pytest.raises(OSError, match="No space left on device"):
        HubDataset("someone/something", "test", tmp_path, 100).parts()


def test_a_hub_data_set_with_a_loading_script_is_read_from_its_converted_copy(tmp_path, monkeypatch):
    import datasets

    asked = []

    def load_dataset(name, config, *, split, revision, cache_dir):
        asked.append((name, split, revision))
        if revision is None:
            raise RuntimeError("Dataset scripts are no longer supported, but found xsum.py")
        return datasets.Dataset.from_list([{"id": "1", "document": "text", "summary": "short"}])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    dataset = HubDataset("EdinburghNLP/xsum", "test", tmp_path, 10)
    dataset.check()
    assert dataset.batches() == ["EdinburghNLP-xsum-test"]
    assert [item.document for item in validate(dataset.records("EdinburghNLP-xsum-test"), XSUM_COLUMNS)] == ["text"]
    assert asked == [
        ("EdinburghNLP/xsum", "test", None),
        ("EdinburghNLP/xsum", "test", "refs/convert/parquet"),
    ]


def test_every_record_is_landed_or_rejected_and_landing_again_writes_nothing(tmp_path, lake):
    path = write_json_lines(tmp_path / "a.jsonl", [{"id": "1", "document": "x"}, {"id": "1", "document": "y"}])
    with path.open("a") as file:
        file.write("{broken\n" + json.dumps({"id": "2", "document": None}) + "\n")
    landed = land_batch(FileDataset(str(path), 10), lake, DEFAULT_TABLES, "a", "run")
    assert (landed.rows, landed.rejected, landed.changed) == (2, 2, True)
    rejected = [row for part in lake.open(PROD_DATA_REJECTED).read("a") for row in part.to_pylist()]
    assert [(row["position"], row["source"]) for row in rejected] == [(1, "a.jsonl"), (2, "a.jsonl")]
    assert "line 3 is not JSON" in rejected[1]["reason"]
    before = lake.open(PROD_DATA).version
    assert not land_batch(FileDataset(str(path), 10), lake, DEFAULT_TABLES, "a", "run").changed
    assert lake.open(PROD_DATA).version == before


def test_a_changed_source_replaces_its_batch_and_a_missing_source_is_an_error(tmp_path, lake):
    path = write_json_lines(tmp_path / "a.jsonl", [{"id": "1", "document": "x"}])
    land_batch(FileDataset(str(path), 10), lake, DEFAULT_TABLES, "a", "run")
    write_json_lines(path, [{"id": "1", "document": "new"}, {"id": "2", "document": "y"}])
    assert land_batch(FileDataset(str(path), 10), lake, DEFAULT_TABLES, "a", "run").rows == 2
    other = write_json_lines(tmp_path / "b.jsonl", [{"id": "1", "document": "x"}])
    with pytest.raises(BatchAssetsError, match="not in the data set"):
        land_batch(FileDataset(str(other), 10), lake, DEFAULT_TABLES, "a", "run")
    assert lake.open(PROD_DATA).rows("a") == 2


def test_a_source_is_read_once_for_all_its_batches_and_not_at_all_if_unchanged(tmp_path, lake):
    opened = []

    class Counted(FileDataset):
        def read(self, part):
            opened.append(part.name)
            return super().read(part)

    path = tmp_path / "a.jsonl"
    for offset, times in ((0, 1), (0, 0), (50, 2)):
        write_json_lines(path, [{"id": str(n), "document": str(n + offset)} for n in range(7)])
        opened.clear()
        dataset = Counted(str(path), 2)
        assert sum(land_batch(dataset, lake, DEFAULT_TABLES, batch, "run").rows for batch in dataset.batches()) == 7
        assert len(opened) == times
        stored = [
            row for batch in dataset.batches() for part in lake.open(PROD_DATA).read(batch) for row in part.to_pylist()
        ]
        assert sorted(int(row["document"]) - offset for row in stored) == list(range(7))


def test_a_batch_is_landed_whole_again_after_its_rows_were_deleted_or_a_document_is_no_longer_forgotten(tmp_path, lake):
    path = write_json_lines(tmp_path / "a.jsonl", [{"id": str(n), "document": "text"} for n in range(3)])

    def land() -> tuple[int, bool]:
        landed = land_batch(FileDataset(str(path), 10), lake, DEFAULT_TABLES, "a", "run")
        return landed.rows, landed.changed

    assert (land(), land()) == ((3, True), (3, False))
    remember(lake, "1")
    assert (land(), land()) == ((2, True), (2, False))
    shutil.rmtree(Path(lake.uri, lake.catalog, lake.schema, "_forgotten"))
    assert (land(), land()) == ((3, True), (3, False))
    DeltaTable(lake.table_uri(PROD_DATA)).delete("batch = 'a'")
    assert (land(), land()) == ((3, True), (3, False))


def test_a_batch_is_never_replaced_from_another_file_with_the_same_name(tmp_path, lake):
    january = write_json_lines(tmp_path / "jan" / "data.jsonl", [{"id": "1", "document": "january"}])
    february = write_json_lines(tmp_path / "feb" / "data.jsonl", [{"id": "1", "document": "february"}])
    land_batch(FileDataset(str(january), 10), lake, DEFAULT_TABLES, "data", "run")
    with pytest.raises(BatchAssetsError, match=r"jan/data.jsonl.*rename"):
        land_batch(FileDataset(str(february), 10), lake, DEFAULT_TABLES, "data", "run")
    assert [row["document"] for part in lake.open(PROD_DATA).read("data") for row in part.to_pylist()] == ["january"]


def test_batches_that_the_current_settings_would_not_create_are_listed(tmp_path, lake):
    rows = [{"id": str(n), "document": "x"} for n in range(4)]
    path = str(write_json_lines(tmp_path / "a.jsonl", rows))
    for batch in FileDataset(path, 2).batches():
        land_batch(FileDataset(path, 2), lake, DEFAULT_TABLES, batch, "run")
    assert obsolete_batches(FileDataset(path, 2), lake, PROD_DATA) == []
    assert obsolete_batches(FileDataset(path, 10), lake, PROD_DATA) == ["a-0001", "a-0002"]


def test_a_csv_row_with_too_few_or_too_many_fields_is_rejected(tmp_path):
    (tmp_path / "a.csv").write_text("id,document\n1,x\n2\n3,y,z\n")
    items = list(validate(FileDataset(str(tmp_path / "a.csv"), 10).records("a"), XSUM_COLUMNS))
    assert [type(item) for item in items] == [Document, Rejected, Rejected]


def test_a_batch_with_rows_from_another_writer_is_only_observed(tmp_path, lake):
    from deltalake import write_deltalake

    path = write_json_lines(tmp_path / "a.jsonl", [{"id": "1", "document": "x"}])
    land_batch(FileDataset(str(path), 10), lake, DEFAULT_TABLES, "a", "run")
    (ours,) = list(lake.open(PROD_DATA).read("a"))
    write_deltalake(
        lake.table_uri(PROD_DATA), pa.Table.from_batches([ours]).select(PROD_DATA.column_names), mode="append"
    )
    write_json_lines(path, [{"id": "9", "document": "new"}])
    landed = land_batch(FileDataset(str(path), 10), lake, DEFAULT_TABLES, "a", "run")
    assert landed.observed
    assert lake.open(PROD_DATA).rows("a") == 2

"""Checks on real tables, with metrics that are written directly instead of being scored."""

import json
from datetime import UTC, datetime, timedelta

import dagster as dg
import pyarrow as pa
import pytest

from batch_assets.graph.quality_checks import quality_checks
from batch_assets.graph.table_checks import table_checks
from batch_assets.lake.contracts import AI_QUERY_INFERENCE, BATCH_INFERENCE, PROD_DATA, SUMMARY_QUALITY
from batch_assets.lake.lake import Lake
from batch_assets.lake.staging import stage
from batch_assets.quality.drift import drift
from batch_assets.quality.histograms import TEXT_BINS
from batch_assets_tests.conftest import settings_for

NOW = datetime.now(UTC)
LENGTHS = (30, 32, 35, 38, 40, 44, 50, 52, 60, 70)


class Tables:
    """A lake, and the checks of a deployment that uses it."""

    def __init__(self, home, **values) -> None:
        self.lake = Lake(str(home / "lake"))
        self.settings = settings_for(home, **values)

    def write(self, table, batch: str, rows: list[dict], **metadata) -> int:
        snapshot = self.lake.open(table)
        written = [pa.Table.from_pylist(rows, schema=table.file_schema)] if rows else []
        return snapshot.replace(batch, stage(written, snapshot.staging_area(batch)), metadata)

    def measured(self, batch: str, table=BATCH_INFERENCE, lengths=LENGTHS, **figures) -> None:
        counts: dict[int, int] = {}
        for length in lengths:
            place = TEXT_BINS["words"].place(length)
            counts[place] = counts.get(place, 0) + 1
        same = {name: TEXT_BINS[name].histogram({5: len(lengths)}) for name in ("compression", "coverage")}
        row = {"table_name": table.name, "model_name": "m", "model_version": "1", "measured_at": NOW}
        row |= {"documents": 10, "summaries": 10, "errors": 0, "empty": 0, "cut": 0, "truncated": 0, "repetition": 0.0}
        row |= {"words_histogram": TEXT_BINS["words"].histogram(counts)}
        row |= {f"{name}_histogram": value for name, value in same.items()} | figures
        kept = [old for part in self.lake.open(SUMMARY_QUALITY).read(batch) for old in part.to_pylist()]
        self.write(SUMMARY_QUALITY, batch, [*kept, row])

    def land(self, batch: str, rows: int = 2) -> int:
        texts = [{"id": str(n), "document": "x", "landed_at": NOW} for n in range(rows)]
        return self.write(PROD_DATA, batch, texts)

    def check(self, name: str, asset: str | None = None) -> dg.AssetCheckResult:
        checks = [*table_checks(self.settings), *quality_checks(self.settings)]
        (check,) = [one for one in checks if one.name == name and asset in (None, one.asset.to_user_string())]
        return check.evaluate(self.lake, None)


@pytest.fixture
def tables(home):
    return Tables(home)


@pytest.mark.parametrize(
    ("check", "figures"),
    [
        ("error_rate", {"errors": 2}),
        ("empty_rate", {"empty": 1}),
        ("cut_rate", {"cut": 6}),
        ("truncated_rate", {"truncated": 3}),
        ("repetition", {"repetition": 0.4}),
    ],
)
def test_a_batch_over_a_threshold_is_named_by_its_newest_metrics(tables, check, figures):
    tables.measured("a")
    tables.measured("b", **figures, measured_at=NOW - timedelta(hours=1))
    result = tables.check(check)
    assert (result.passed, list(result.metadata["batches"].value)) == (False, ["b"])
    tables.measured("b", model_version="2")
    assert tables.check(check).passed
    assert tables.check("drift").passed


def test_thresholds_come_from_settings(home):
    strict = Tables(home, error_rate=0.3, cut_rate=0.1)
    strict.measured("a", errors=2, cut=2)
    assert strict.check("error_rate").passed
    assert not strict.check("cut_rate").passed


def test_a_high_error_rate_names_what_caused_the_errors(tables):
    classes = ["service", "document", None]
    rows = [
        {"id": str(n), "error_message": "no", "request_hash": str(n), "error_class": caused}
        for n, caused in enumerate(classes)
    ]
    # A document without text is not a failure.
    rows += [{"id": "no text", "error_message": "the document has no text"}]
    tables.write(AI_QUERY_INFERENCE, "a", rows)
    tables.measured("a", AI_QUERY_INFERENCE, errors=3)
    result = tables.check("error_rate")
    ((batch, said),) = result.metadata["batches"].value.items()
    assert batch == "a (ai_query_inference)"
    assert said.endswith("causes: service (1), document (1), unclassified (1)")
    assert result.metadata["no_text"].value == {"m4_1_batch_inference": 0, "ai_query_inference": 1}


def test_failed_rows_count_even_if_they_name_a_different_model_than_the_answers(tables):
    tables.measured("a", AI_QUERY_INFERENCE, model_name="asked", documents=4, errors=4, summaries=0, repetition=None)
    tables.measured("a", AI_QUERY_INFERENCE, model_name="answered", documents=6, summaries=6)
    tables.measured("a", AI_QUERY_INFERENCE, model_name="before", documents=990, measured_at=NOW - timedelta(hours=1))
    ((batch, said),) = tables.check("error_rate").metadata["batches"].value.items()
    assert (batch, said.split(";")[0]) == ("a (ai_query_inference)", "4 of 10 documents, 40%")
    assert tables.check("repetition").passed


@pytest.mark.parametrize("check", ["error_rate", "contract"])
def test_an_unreadable_table_is_an_error_and_gives_no_verdict(tables, tmp_path, check):
    tables.measured("a")
    log = next((tmp_path / "home" / "lake").rglob("summary_quality/_delta_log"))
    for file in log.iterdir():
        file.write_text("{broken")
    with pytest.raises(Exception, match=r"(?i)json|log|parse|invalid"):
        tables.check(check, "summary_quality")


def test_a_batch_with_summaries_of_a_different_length_drifts_and_shows_the_index_and_a_plot(tables):
    for batch in ("a", "b", "c"):
        tables.land(batch)
        tables.measured(batch)
    result = tables.check("drift")
    assert result.passed
    assert result.metadata["index of length"].value < 0.1
    tables.land("d")
    tables.measured("d", lengths=[length * 8 for length in LENGTHS])
    result = tables.check("drift")
    assert (result.passed, result.severity) == (False, dg.AssetCheckSeverity.WARN)
    assert result.metadata["batches"].value["d"].startswith("length")
    assert result.metadata["plot"].value.startswith("![d](data:image/png;base64,")


def test_the_stability_index_follows_its_definition_and_small_samples_may_differ_by_chance():
    before, now = [50, 30, 20], [20, 30, 50]
    found = drift(before, now)
    # (.2 - .5) ln(.2 / .5) twice, apart from the smoothing
    assert found.index == pytest.approx(0.55, abs=0.02)
    assert drift([500, 300, 200], [200, 300, 500]).is_over(0.25)
    assert not drift([5, 3, 2], [3, 4, 3]).is_over(0.25)
    assert drift([0, 0], [1, 2]) is None
    assert drift([0, 40, 0], [0, 0, 40]).is_over(0.25)


def test_each_bin_holds_the_values_from_its_lower_edge():
    for name in ("words", "compression", "coverage"):
        bins = TEXT_BINS[name]
        begins = bins.edges
        assert [bins.place(begin * 1.0001 + 1e-9) for begin in begins] == list(range(len(begins)))
        assert bins.place(0.0) == 0
        assert bins.place(1e9) == len(begins) - 1
        assert len(json.loads(bins.histogram({}))) == len(begins)


def test_a_batch_that_waits_too_long_for_its_summaries_is_named(home):
    patient, hasty = Tables(home), Tables(home, fresh_hours=1e-9)
    version = patient.land("a")
    assert patient.check("freshness").passed
    assert list(hasty.check("freshness").metadata["batches"].value) == ["a"]
    patient.write(BATCH_INFERENCE, "a", [], input_version=version, input_table=patient.lake.open(PROD_DATA).table_id)
    assert hasty.check("freshness").passed


def test_missing_or_extra_rows_fail_row_parity(tables):
    version = tables.land("a", rows=2)
    rows = [{"id": str(n), "document": "x", "landed_at": NOW} for n in range(2)]
    tables.write(BATCH_INFERENCE, "a", rows, input_version=version)
    assert tables.check("row_parity").passed
    tables.write(BATCH_INFERENCE, "a", rows[:1], input_version=version)
    assert tables.check("row_parity").metadata["batches"].value == {"a": "2 documents, 1 rows"}

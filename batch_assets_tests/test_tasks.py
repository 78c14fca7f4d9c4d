"""Tasks: how answers are read and measured, and how typed answers are stored."""

import json
from dataclasses import replace
from datetime import UTC, datetime

import pyarrow as pa
import pytest

from batch_assets.engines.contract import Completion, ScoringModel
from batch_assets.lake.column_types import arrow_type, json_schema, spark_ddl, struct_ddl
from batch_assets.lake.contracts import Column, pipeline_tables
from batch_assets.lake.staging import stage
from batch_assets.quality.batch_measures import measure_batch
from batch_assets.scoring.completions import CompletionStore, FinishedWork
from batch_assets.scoring.scorer import score_batch
from batch_assets.tasks.classification import Classification
from batch_assets.tasks.extraction import Extraction
from batch_assets.tasks.generation import Generation
from batch_assets.tasks.summarization import Summarization
from batch_assets.tasks.task import AnswerError

LABELS = Classification({"billing": "about money", "bug": None, "Ärger": None})
FIELDS = "name STRING, amount DOUBLE, paid BOOLEAN, due DATE, items ARRAY<STRING>"
ORDER = Extraction(FIELDS)
ANSWER = {"name": "Ann", "amount": 2.5, "paid": True, "due": "2026-01-31", "items": ["a", "b"]}


@pytest.mark.parametrize("text", ["billing", " Billing.\n", '"BILLING"', "`billing`"])
def test_a_label_is_read_whatever_its_case_and_the_marks_around_it(text):
    assert LABELS.read(text) == "billing"
    assert LABELS.read(LABELS.read(text)) == "billing"


@pytest.mark.parametrize("text", ["", "billing, bug", "the label is bug", "other"])
def test_anything_but_a_label_is_no_answer(text):
    with pytest.raises(AnswerError, match="not one of the labels"):
        LABELS.read(text)


def test_the_prompt_lists_the_labels_with_their_descriptions_and_takes_no_document_from_them():
    assert "- billing: about money\n- bug\n- Ärger" in LABELS.prompt
    assert LABELS.prompt.count("{document}") == 1
    assert Classification({"{document}": None, "b": None}).prompt.count("{document}") == 1


def test_macro_f1_is_the_mean_over_labels_and_the_baseline_is_the_most_frequent_label():
    pairs = [("billing", "billing"), ("billing", "bug"), ("bug", "bug"), ("bug", "bug")]
    outcomes = {}
    for reference, label in pairs:
        outcome = LABELS.outcome(reference, label)
        outcomes[outcome] = outcomes.get(outcome, 0) + 1
    # billing: precision 1, recall 1/2; bug: precision 2/3, recall 1.
    assert LABELS.overall(outcomes)["macro_f1"] == pytest.approx((2 / 3 + 4 / 5) / 2)
    assert LABELS.overall({}) == {}
    assert LABELS.baselines(["x"] * 3, ["bug", "billing", "bug"]) == {"majority_": ["bug"] * 3}
    assert LABELS.scores("", "Billing", "billing") == {"accuracy": 1.0}


def test_an_extraction_reads_json_with_or_without_a_fence_in_the_order_of_the_schema():
    shuffled = dict(reversed(ANSWER.items()))
    for text in (json.dumps(shuffled), f"```json\n{json.dumps(shuffled)}\n```"):
        assert ORDER.read(text) == json.dumps(ANSWER)
    nulls = dict.fromkeys(ANSWER)
    assert json.loads(ORDER.read(json.dumps(nulls))) == nulls


@pytest.mark.parametrize(
    "answer",
    [
        "not json",
        "[1]",
        json.dumps({**ANSWER, "amount": "2.5"}),
        json.dumps({**ANSWER, "more": 1}),
        json.dumps({key: value for key, value in ANSWER.items() if key != "paid"}),
        json.dumps({**ANSWER, "due": "31 January"}),
        json.dumps({**ANSWER, "items": [1]}),
    ],
)
def test_an_answer_that_does_not_match_the_schema_is_an_error(answer):
    with pytest.raises(AnswerError, match=r"is not JSON|doesn't match the schema"):
        ORDER.read(answer)


def test_each_field_of_an_extraction_has_a_score():
    scores = ORDER.scores("", json.dumps(ANSWER), json.dumps({**ANSWER, "name": " ann", "amount": 3.0}))
    assert scores["fields_equal"] == pytest.approx(4 / 5)
    assert (scores["name_equal"], scores["amount_equal"]) == (1, 0)
    assert ORDER.scores("", "no json", "{}")["fields_equal"] == 0


def test_a_json_schema_gives_the_same_type_as_fields_in_sparks_syntax():
    schema = {
        "type": "object",
        "properties": {
            "name": {"type": "string"},
            "lines": {"type": "array", "items": {"type": "object", "properties": {"n": {"type": "integer"}}}},
        },
    }
    assert struct_ddl(schema) == struct_ddl("name STRING, lines ARRAY<STRUCT<n: BIGINT>>")
    assert spark_ddl(arrow_type(struct_ddl(schema))) == struct_ddl(schema)
    assert json_schema(arrow_type("struct<a: int>"))["properties"] == {"a": {"type": ["integer", "null"]}}


@pytest.mark.parametrize("schema", ["name STRNG", "STRING", "a INT, A INT", "m MAP<STRING, INT>", "a DECIMAL(3, 1)"])
def test_a_schema_with_other_types_is_refused(schema):
    with pytest.raises(ValueError, match=r"syntax|not supported|same name|use fields"):
        Extraction(schema)


@pytest.mark.parametrize("task", [Summarization(), Generation("{document}"), LABELS, ORDER])
def test_what_a_task_measures_is_what_it_has_columns_and_bins_for(task):
    measured = task.measure("a document with words", None, "bug")
    assert {figure.name for figure in task.figures} <= measured.keys()
    assert measured.keys() - {figure.name for figure in task.figures} <= set(task.binned)
    assert task.main_score in {figure.name for figure in task.figures}
    assert all(isinstance(score, float) for score in task.scores("d", "bug", "bug").values())


class JsonEngine:
    """Answers with the order that a document asks for."""

    def __init__(self, model: ScoringModel, threads: int) -> None:
        pass

    def stream(self, documents, batch_tokens=None):
        for place, document in enumerate(documents):
            text = json.dumps({**ANSWER, "name": document}) if document != "bad" else "sorry"
            yield place, Completion(text, finish_reason="stop", input_truncated=False)


def test_typed_answers_are_stored_as_structs_reused_and_measured(spark, lake):
    import sys

    from pyspark import cloudpickle

    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    output = Column("order", ORDER.output_type, "Order", holds="text")
    figures = [Column(figure.name, "double", figure.description) for figure in ORDER.figures]
    tables = pipeline_tables("orders", output, ORDER.words, figures=figures)
    documents = lake.open(tables.documents)
    texts = [{"id": n, "document": n, "reference": json.dumps({**ANSWER, "name": "x"})} for n in ("x", "y", "bad")]
    rows = pa.Table.from_pylist(texts, schema=tables.documents.file_schema)
    documents.replace("a", stage([rows], documents.staging_area("a")), {})
    model = ScoringModel("m", 1, "d", "", {}, None, "json", "none", 0, read=ORDER.read, rules=ORDER.rules)

    def score():
        table = lake.open(tables.scored)
        store = CompletionStore.of(lake, tables.scored, "a", model.fingerprint)
        return score_batch(spark, lake.open(tables.documents), table, "a", model, store, {}, print, load=JsonEngine)

    scored = score()
    assert (scored.scored, scored.counts.summaries, scored.counts.errors) == (3, 2, 1)
    found = {row["id"]: row for part in lake.open(tables.scored).read("a") for row in part.to_pylist()}
    assert found["y"]["order"] == {**ANSWER, "name": "y", "due": datetime(2026, 1, 31, tzinfo=UTC).date()}
    assert found["bad"]["order"] is None
    assert found["bad"]["error_message"].startswith("the answer is not JSON")
    assert (found["bad"]["error_class"], found["bad"]["attempts"]) == ("model", None)
    # The same request would get the same answer; the structs are read back as they were.
    assert score().scored == 0
    snapshot = lake.open(tables.scored)
    store = CompletionStore.of(lake, tables.scored, "a", model.fingerprint)
    known, _ = FinishedWork.of(store, snapshot, "a").load()
    assert {json.loads(one.text)["name"] for one in known.values() if one.text} == {"x", "y"}
    from batch_assets.lake.deltars import read_batch
    from batch_assets.quality.batch_measures import _answer

    frame = read_batch(spark, snapshot, "a").selectExpr(
        "model_name", "model_version", "id", "document", "reference", _answer(snapshot), "error_message",
        "finish_reason", "input_truncated",
    )  # fmt: skip
    (row,) = measure_batch("a", {"t": frame}, ORDER, datetime.now(UTC))
    assert (row["answers"], row["errors"], row["name_equal"], row["amount_equal"]) == (2, 1, 0.5, 1.0)
    # With a new field and a new column, the answers that are there are still used.
    longer = replace(output, type=Extraction(f"{FIELDS}, phone STRING").output_type)
    tables = pipeline_tables("orders", longer, ORDER.words, figures=figures)
    seconds = Column("seconds", "double", "Seconds that the answer took", holds="seconds")
    tables = replace(tables, scored=replace(tables.scored, columns=(*tables.scored.columns, seconds)))
    assert score().scored == 0
    found = {row["id"]: row for part in lake.open(tables.scored).read("a") for row in part.to_pylist()}
    assert found["y"]["order"] == {
        **ANSWER,
        "name": "y",
        "due": datetime(2026, 1, 31, tzinfo=UTC).date(),
        "phone": None,
    }
    assert found["y"]["seconds"] is None


def test_an_extraction_is_normalized_to_what_spark_reads():
    task = Extraction("n BIGINT, day DATE, at TIMESTAMP")
    read = json.loads(task.read('{"at": "2026-01-31T10:00:00+02:00", "day": "20260131", "n": 3.0}'))
    assert read == {"n": 3, "day": "2026-01-31", "at": "2026-01-31T08:00:00+00:00"}
    stored = json.dumps({"n": 3, "day": "2026-01-31", "at": "2026-01-31T08:00:00.000Z"})
    assert task.scores("", json.dumps(read), stored)["fields_equal"] == 1
    with pytest.raises(AnswerError, match="too large"):
        task.read('{"n": 1e30, "day": null, "at": null}')
    assert '"day" (date as YYYY-MM-DD)' in task.prompt

import html
import json
from datetime import UTC, datetime

import pytest

from batch_assets.graph.table_metadata import markdown_sample
from batch_assets.quality import plots
from batch_assets.quality.batch_measures import measure_batch
from batch_assets.quality.measures import measure, per_document
from batch_assets.quality.report import markdown, totals
from batch_assets.quality.rouge import lead, mean_rouge, rouge

SCORED = ("id", "document", "summary", "generated_summary", "error_message", "finish_reason", "input_truncated")


def test_scores_are_those_of_the_rouge_score_package():
    # The example of https://github.com/google-research/google-research/tree/master/rouge
    scores = rouge("The quick brown fox jumps over the lazy dog", "The quick brown dog jumps on the log.")
    assert scores["rouge1"] == pytest.approx(2 * (6 / 8) * (6 / 9) / (6 / 8 + 6 / 9))
    assert scores["rougeL"] == pytest.approx(2 * (5 / 8) * (5 / 9) / (5 / 8 + 5 / 9))
    assert rouge("same words here", "same words here") == {
        "rouge1": 1,
        "rouge2": 1,
        "rougeL": 1,
        "rougeLsum": 1,
    }


def test_a_mean_is_over_all_pairs():
    assert mean_rouge([("a b", "a b"), ("a b", "c d")])["rouge1"] == 0.5


def test_the_lead_baseline_is_the_first_sentences():
    assert lead("One. Two! Three? Four.") == "One. Two! Three?"
    assert lead("no end") == "no end"
    assert len(lead("no end " * 1_000_000)) == 10_000


def test_reference_free_measures_by_hand():
    measured = measure("the cat sat on the mat today", "the cat sat on a mat")
    assert measured.words == 6
    assert measured.compression == pytest.approx(7 / 6)
    assert measured.coverage == pytest.approx(5 / 6)  # "the cat sat on" and "mat"
    assert measured.density == pytest.approx((16 + 1) / 6)
    assert measured.novel_bigrams == pytest.approx(2 / 5)  # "on a" and "a mat"
    assert measured.repetition == 0
    assert measure("x", "go go go go go").repetition == pytest.approx(2 / 3)
    assert measure("x", " ... ") is None


def test_a_reference_without_text_is_none():
    figures = per_document("the cat sat", "\u200b ", "the cat")
    assert (figures["rouge1"], figures["lead_rouge1"], figures["words"]) == (None, None, 2)


def test_documents_without_text_count_nowhere_and_summaries_without_text_are_empty(spark):
    rows = [
        ("1", "a document", "a document", "a document", None, "stop", "false"),
        ("2", "a document", None, "\u200b ", None, "length", "true"),
        ("3", "a document", None, None, "RuntimeError: x", None, None),
        ("4", None, None, None, "the document has no text", None, None),
        ("5", None, None, None, None, None, None),  # as earlier releases wrote it
        ("6", "\ufeff", "x", "invented", None, "length", "true"),  # as earlier releases wrote it
    ]
    schema = ", ".join(f"{name} string" for name in (*SCORED, "model_name", "model_version"))
    frame = spark.createDataFrame([(*row, "m", "1") for row in rows], schema)
    (row,) = measure_batch("a", {"t": frame}, datetime.now(UTC))
    counted = ("documents", "summaries", "errors", "empty", "cut", "truncated", "references")
    assert {name: row[name] for name in counted} == {
        "documents": 3, "summaries": 2, "errors": 1, "empty": 1, "cut": 1, "truncated": 1, "references": 1,
    }  # fmt: skip
    assert row["rouge1"] == 1


def test_figures_of_a_batch_are_the_same_whatever_number_of_tasks_adds_them_up(spark):
    words = ["one", "two", "three", "four", "five", "six", "seven", "eight"]
    rows = [
        (str(n), "One two three. " * n, "one two three four", " ".join(words[:n]), None, "stop", "false", "m", version)
        for n in range(1, 8)
        for version in ("1", "2" if n < 4 else None)
    ]
    schema = ", ".join(f"{name} string" for name in (*SCORED, "model_name", "model_version"))
    frame = spark.createDataFrame(rows, schema)
    now = datetime.now(UTC)
    of_one = measure_batch("a", {"t": frame.repartition(1), "u": frame.limit(0)}, now)
    assert of_one == measure_batch("a", {"t": frame.repartition(5), "u": frame.limit(0)}, now)
    assert [(row["table_name"], row["model_version"]) for row in of_one] == [("t", None), ("t", "1"), ("t", "2")]
    figures = of_one[1]
    assert (figures["summaries"], figures["words"], figures["compression"]) == (7, 4, 3)
    assert sum(json.loads(figures["words_histogram"])) == 7
    # F-measures of n words of which the reference has four; of two that are equal, the lower id is first.
    assert [one["id"] for one in json.loads(figures["best"])] == ["4", "5", "3", "6", "7"]
    assert [one["id"] for one in json.loads(figures["worst"])] == ["1", "2", "7", "6", "3"]


def test_totals_weigh_means_by_what_they_were_taken_over():
    row = {
        "table_name": "t",
        "model_name": "m",
        "model_version": "1",
        "documents": 4,
        "errors": 0,
        "rouge2": None,
        "rougeL": None,
        "lead_rouge1": None,
        "words": 10.0,
        "compression": 2.0,
        "novel_bigrams": 0.0,
    }
    rows = [
        {**row, "batch": "a", "summaries": 4, "references": 3, "rouge1": 0.2},
        {**row, "batch": "b", "summaries": 4, "references": 1, "rouge1": 0.6},
    ]
    (total,) = totals(rows)
    assert (total["batches"], total["documents"]) == (2, 8)
    assert total["rouge1"] == pytest.approx(0.3)
    assert total["rouge2"] is None
    assert "| t | m | 1 | 2 | 8 |" in markdown([total])


def test_any_text_of_a_sample_is_shown_as_it_is():
    text = r"f(x) = [a|b] * {c}_d #1 + `e` ~ \ ! &amp; <b>bold</b>"
    row = markdown_sample([{"document": text}], ["document"]).md_str.splitlines()[-1]
    assert not set("()[]*{}_`<>!~\\") & set(row)
    # What a reader of Markdown does, once, with character references.
    assert html.unescape(row) == f"| {text} |"


def test_a_name_that_somebody_else_chose_is_no_markup_in_figures_and_plots():
    row = dict.fromkeys(("table_name", "model_version", "batches", "documents", "summaries", "errors", "rouge1"))
    row |= dict.fromkeys(("rouge2", "rougeL", "lead_rouge1", "words", "compression", "novel_bigrams"))
    shown = markdown([{**row, "model_name": "a|b <img src=x>"}]).splitlines()[-1]
    assert shown.count("|") == 15
    assert "<" not in shown
    figure = plots.over_batches({}, "y", [])
    assert plots.image(figure, "](http://x) ![").count("](") == 1


def test_a_plot_over_batches_has_them_in_their_order_whichever_line_has_them():
    figure = plots.over_batches({"1": {"c": 1.0}, "2": {"a": 1.0, "b": 2.0}}, "y", ["a", "b", "c", "d"])
    assert [label.get_text() for label in figure.axes[0].get_xticklabels()] == ["a", "b", "c"]

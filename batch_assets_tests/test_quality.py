import html
import json
from datetime import UTC, datetime

import pytest

from batch_assets.graph.table_metadata import markdown_sample
from batch_assets.quality import plots
from batch_assets.quality.batch_measures import measure_batch
from batch_assets.quality.measures import measure, per_document
from batch_assets.quality.report import markdown, totals
from batch_assets.quality.rouge import lead, rouge
from batch_assets.tasks.summarization import Summarization

SCORED = ("id", "document", "reference", "answer", "error_message", "finish_reason", "input_truncated")


def test_scores_match_the_rouge_score_package():
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


def test_the_lead_baseline_consists_of_the_first_sentences():
    assert lead("One. Two! Three? Four.") == "One. Two! Three?"
    assert lead("no end") == "no end"
    assert len(lead("no end " * 1_000_000)) == 10_000


def test_reference_free_metrics_match_values_computed_by_hand():
    measured = measure("the cat sat on the mat today", "the cat sat on a mat")
    assert measured.words == 6
    assert measured.compression == pytest.approx(7 / 6)
    assert measured.coverage == pytest.approx(5 / 6)  # "the cat sat on" and "mat"
    assert measured.density == pytest.approx((16 + 1) / 6)
    assert measured.novel_bigrams == pytest.approx(2 / 5)  # "on a" and "a mat"
    assert measured.repetition == 0
    assert measure("x", "go go go go go").repetition == pytest.approx(2 / 3)
    assert measure("x", " ... ") is None


def test_a_reference_without_text_counts_as_missing():
    figures = per_document("the cat sat", "\u200b ", "the cat")
    assert (figures["rouge1"], figures["lead_rouge1"], figures["words"]) == (None, None, 2)


def test_documents_without_text_are_not_counted_and_summaries_without_text_count_as_empty(spark):
    rows = [
        ("1", "a document", "a document", "a document", None, "stop", "false"),
        ("2", "a document", None, "\u200b ", None, "length", "true"),
        ("3", "a document", None, None, "RuntimeError: x", None, None),
        ("4", None, None, None, "the document has no text", None, None),
        ("5", None, None, None, None, None, None),  # written by an earlier release
        ("6", "\ufeff", "x", "invented", None, "length", "true"),  # written by an earlier release
    ]
    schema = ", ".join(f"{name} string" for name in (*SCORED, "model_name", "model_version"))
    frame = spark.createDataFrame([(*row, "m", "1") for row in rows], schema)
    (row,) = measure_batch("a", {"t": frame}, Summarization(), datetime.now(UTC))
    counted = ("documents", "summaries", "errors", "empty", "cut", "truncated", "references")
    assert {name: row[name] for name in counted} == {
        "documents": 3, "summaries": 2, "errors": 1, "empty": 1, "cut": 1, "truncated": 1, "references": 1,
    }  # fmt: skip
    assert row["rouge1"] == 1


def test_batch_metrics_do_not_depend_on_the_number_of_tasks(spark):
    words = ["one", "two", "three", "four", "five", "six", "seven", "eight"]
    rows = [
        (str(n), "One two three. " * n, "one two three four", " ".join(words[:n]), None, "stop", "false", "m", version)
        for n in range(1, 8)
        for version in ("1", "2" if n < 4 else None)
    ]
    schema = ", ".join(f"{name} string" for name in (*SCORED, "model_name", "model_version"))
    frame = spark.createDataFrame(rows, schema)
    now = datetime.now(UTC)
    of_one = measure_batch("a", {"t": frame.repartition(1), "u": frame.limit(0)}, Summarization(), now)
    assert of_one == measure_batch("a", {"t": frame.repartition(5), "u": frame.limit(0)}, Summarization(), now)
    assert [(row["table_name"], row["model_version"]) for row in of_one] == [("t", None), ("t", "1"), ("t", "2")]
    figures = of_one[1]
    assert (figures["summaries"], figures["words"], figures["compression"]) == (7, 4, 3)
    assert sum(json.loads(figures["words_histogram"])) == 7
    # F-measures of n words, four of them in the reference; of two equal scores, the lower id comes first.
    assert [one["id"] for one in json.loads(figures["best"])] == ["4", "5", "3", "6", "7"]
    assert [one["id"] for one in json.loads(figures["worst"])] == ["1", "2", "7", "6", "3"]


def test_totals_weight_each_mean_by_its_sample_size():
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
    (total,) = totals(rows, Summarization())
    assert (total["batches"], total["documents"]) == (2, 8)
    assert total["rouge1"] == pytest.approx(0.3)
    assert total["rouge2"] is None
    assert "| t | m | 1 | 2 | 8 |" in markdown([total], Summarization(), "summaries")


def test_any_sample_text_is_displayed_verbatim():
    text = r"f(x) = [a|b] * {c}_d #1 + `e` ~ \ ! &amp; <b>bold</b>"
    row = markdown_sample([{"document": text}], ["document"]).md_str.splitlines()[-1]
    assert not set("()[]*{}_`<>!~\\") & set(row)
    # A Markdown renderer resolves character references once.
    assert html.unescape(row) == f"| {text} |"


def test_model_names_and_plot_titles_are_escaped_in_markdown():
    row = dict.fromkeys(("table_name", "model_version", "batches", "documents", "summaries", "errors", "rouge1"))
    row |= dict.fromkeys(("rouge2", "rougeL", "lead_rouge1", "words", "compression", "novel_bigrams"))
    shown = markdown([{**row, "model_name": "a|b <img src=x>"}], Summarization(), "summaries").splitlines()[-1]
    assert shown.count("|") == 15
    assert "<" not in shown
    figure = plots.over_batches({}, "y", [])
    assert plots.image(figure, "](http://x) ![").count("](") == 1


def test_a_plot_over_batches_keeps_their_order_even_if_some_lines_lack_a_batch():
    figure = plots.over_batches({"1": {"c": 1.0}, "2": {"a": 1.0, "b": 2.0}}, "y", ["a", "b", "c", "d"])
    assert [label.get_text() for label in figure.axes[0].get_xticklabels()] == ["a", "b", "c"]

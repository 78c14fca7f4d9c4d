"""Asset checks for the summaries: error and other rates, repetition, drift, and batches that wait too long."""

import json
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import dagster as dg

from batch_assets.ai_functions.requests import NO_ANSWER
from batch_assets.engines.contract import RowError
from batch_assets.graph.batch_checks import batch_check, result
from batch_assets.lake.contracts import AI_QUERY_INFERENCE, BATCH_INFERENCE, PROD_DATA, SUMMARY_QUALITY
from batch_assets.lake.counts import no_text_by_table
from batch_assets.lake.lake import BatchSnapshot, Lake
from batch_assets.quality.batch_measures import last_measured
from batch_assets.quality.histograms import add
from batch_assets.settings import Settings, variables
from batch_assets.staleness import stale_batches

_WARN = dg.AssetCheckSeverity.WARN
# Check name, which is also the setting of its limit: counted column, column of the total, description.
_RATES = {
    "error_rate": ("errors", "documents", "documents failed; documents without text are not counted"),
    "empty_rate": ("empty", "summaries", "summaries are empty"),
    "cut_rate": ("cut", "summaries", "summaries were cut off at the length limit"),
    "truncated_rate": ("truncated", "documents", "documents were truncated to the model's input limit"),
}
_DRIFT_MEASURES = {"words": "length", "compression": "compression", "coverage": "coverage"}
# Earlier batches that a batch is compared with; older ones say little about the usual distribution.
_COMPARED_BATCHES = 50
# The checks of one run all read the same rows.
_cached_rows: dict[tuple[str, int, str, int], list[Mapping[str, Any]]] = {}


def quality_checks(settings: Settings) -> list[dg.AssetChecksDefinition]:
    """Create the checks with the thresholds of the settings."""
    limits = settings.model_dump()
    names = variables()

    def rate_check(name: str) -> dg.AssetChecksDefinition:
        counted, total, what = _RATES[name]
        limit = float(limits[name])

        def judge(lake: Lake) -> Mapping[str, str]:
            wrong = {}
            for row in newest(lake):
                share = row[counted] / row[total] if row[total] else 0.0
                if share > limit:
                    wrong[_batch_label(row)] = f"{row[counted]} of {row[total]} {total}, {share:.0%}"
                    if counted == "errors":
                        wrong[_batch_label(row)] += _error_causes(lake, row)
            return wrong

        description = f"At most {limit:.0%} ({names[name]}) of a batch's {what}."
        if name == "error_rate":
            return batch_check(
                "summary_quality", name, description, judge, more=lambda lake: {"no_text": no_text_by_table(lake)}
            )
        return batch_check("summary_quality", name, description, judge, severity=_WARN)

    def repeats(lake: Lake) -> Mapping[str, str]:
        over = [row for row in newest(lake) if (row["repetition"] or 0) > settings.repetition]
        return {_batch_label(row): f"{row['repetition']:.0%} of the trigrams repeat an earlier one" for row in over}

    @dg.asset_check(
        asset="summary_quality",
        name="drift",
        description="The length, compression and coverage of each batch's summaries are distributed as in earlier "
        f"batches: the population stability index is at most {settings.drift} ({names['drift']}), or no higher than "
        "chance explains for a batch of that size.",
    )
    def drift_check(lake: dg.ResourceParam[Lake]) -> dg.AssetCheckResult:
        from batch_assets.quality import plots
        from batch_assets.quality.drift import drift

        wrong: dict[str, str] = {}
        shown: dict[str, Any] = {}
        rows = newest(lake)
        for table in (AI_QUERY_INFERENCE.name, BATCH_INFERENCE.name):
            of_table = [row for row in rows if row["table_name"] == table]
            for position in range(1, len(of_table)):
                row, before = of_table[position], of_table[max(position - _COMPARED_BATCHES, 0) : position]
                counts = {"earlier batches": _histograms(before), row["batch"]: _histograms([row])}
                expected, now = counts.values()
                found = {title: drift(expected[name], now[name]) for name, title in _DRIFT_MEASURES.items()}
                compared = {title: one for title, one in found.items() if one is not None}
                over = [f"{title} {one.index:.2f}" for title, one in compared.items() if one.is_over(settings.drift)]
                if over:
                    wrong[_batch_label(row)] = ", ".join(over)
                if over or not wrong:
                    indexes = {f"index of {title}": round(one.index, 4) for title, one in compared.items()}
                    shown = {"batch": _batch_label(row), **indexes, "plot": counts}
        if shown:
            figure = plots.distributions(shown["plot"], _DRIFT_MEASURES)
            shown["plot"] = dg.MetadataValue.md(plots.image(figure, shown["batch"]))
        return result(wrong, _WARN, shown)

    @dg.asset_check(
        asset="batch_inference",
        name="freshness",
        description=f"No batch has waited more than {settings.fresh_hours} hours ({names['fresh_hours']}) for its "
        "summaries.",
    )
    def freshness(lake: dg.ResourceParam[Lake]) -> dg.AssetCheckResult:
        documents, output = lake.open(PROD_DATA), lake.open(BATCH_INFERENCE)
        wrong = {}
        for batch in stale_batches(documents, output, busy=frozenset()):
            commit = documents.last_commit(batch)
            hours = 0.0 if commit is None else (time.time() - commit.seconds) / 3600
            if hours > settings.fresh_hours:
                wrong[batch] = f"changed {hours:.0f} hours ago and not scored since"
        return result(wrong, _WARN)

    return [
        *(rate_check(name) for name in _RATES),
        batch_check(
            "summary_quality",
            "repetition",
            f"At most {settings.repetition:.0%} ({names['repetition']}) of a summary's trigrams repeat an earlier one, "
            "on average over each batch.",
            repeats,
            severity=_WARN,
        ),
        drift_check,
        freshness,
    ]


def newest(lake: Lake) -> Sequence[Mapping[str, Any]]:
    """The newest metrics of each batch and table, in the order in which the batches landed."""
    quality, documents = lake.open(SUMMARY_QUALITY), lake.open(PROD_DATA)
    state = (quality.table_id, quality.version, documents.table_id, documents.version)
    if state not in _cached_rows:
        # Older states are not read again.
        _cached_rows.clear()
        _cached_rows[state] = _read_newest(quality, documents)
    return _cached_rows[state]


def _read_newest(quality: BatchSnapshot, documents: BatchSnapshot) -> list[Mapping[str, Any]]:
    found: list[Mapping[str, Any]] = []
    for batch in documents.sort_by_last_change(quality.batches()):
        tables: dict[str, list[Mapping[str, Any]]] = {}
        for row in last_measured(row for part in quality.read(batch) for row in part.to_pylist()):
            tables.setdefault(row["table_name"], []).append(row)
        found += map(_merge_models, tables.values())
    return found


def _merge_models(rows: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """Merge the metrics of all models of one batch and table into one row."""
    counted = {name for figures in _RATES.values() for name in figures[:2]}
    summaries = sum(row["summaries"] for row in rows)
    repeated = sum((row["repetition"] or 0.0) * row["summaries"] for row in rows)
    return {
        **rows[0],
        **{name: sum(row[name] for row in rows) for name in counted},
        **{f"{name}_histogram": json.dumps(counts) for name, counts in _histograms(rows).items()},
        "repetition": repeated / summaries if summaries else None,
    }


def _batch_label(row: Mapping[str, Any]) -> str:
    return str(row["batch"]) if row["table_name"] == BATCH_INFERENCE.name else f"{row['batch']} ({row['table_name']})"


def _histograms(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[int]]:
    return {name: add([row[f"{name}_histogram"] for row in rows]) for name in _DRIFT_MEASURES}


def _error_causes(lake: Lake, row: Mapping[str, Any]) -> str:
    """Describe how many of a batch's errors come from its documents, and how many from an endpoint outage."""
    table = {table.name: table for table in (BATCH_INFERENCE, AI_QUERY_INFERENCE)}[row["table_name"]]
    messages = [
        message
        for part in lake.open(table).read(row["batch"], ["error_message"])
        for message in part.column("error_message").to_pylist()
        if message not in (None, RowError.NO_TEXT)
    ]
    causes = Counter("endpoint outage" if NO_ANSWER in message else "document errors" for message in messages)
    return "; causes: " + ", ".join(f"{cause} ({count})" for cause, count in causes.items())

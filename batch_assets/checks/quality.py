"""What a person should look at in the summaries: rates over their thresholds, drift, batches that wait too long."""

import json
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import dagster as dg

from batch_assets.ai_functions.requests import NO_ANSWER
from batch_assets.automation.stale import stale_batches
from batch_assets.checks.batches import batch_check, result
from batch_assets.inference.contract import RowError
from batch_assets.lake.counts import no_text_by_table
from batch_assets.lake.lake import BatchSnapshot, Lake
from batch_assets.lake.tables import AI_QUERY_INFERENCE, BATCH_INFERENCE, PROD_DATA, SUMMARY_QUALITY
from batch_assets.quality.batches import last_measured
from batch_assets.quality.histograms import add
from batch_assets.settings import Settings, variables

_WARN = dg.AssetCheckSeverity.WARN
# By check, which is also the setting of its limit: what is counted, out of what, and what that means.
_RATES = {
    "error_rate": ("errors", "documents", "documents failed; documents without text don't count"),
    "empty_rate": ("empty", "summaries", "summaries are empty"),
    "cut_rate": ("cut", "summaries", "summaries end at the length limit"),
    "truncated_rate": ("truncated", "documents", "documents were cut to what the model takes"),
}
_DRIFTING = {"words": "length", "compression": "compression", "coverage": "coverage"}
# Batches that one is compared with: what is older says little of what is usual.
_LOOKED_BACK = 50
# The checks of a run ask for the same figures, one after the other.
_read: dict[tuple[str, int, str, int], list[Mapping[str, Any]]] = {}


def quality_checks(settings: Settings) -> list[dg.AssetChecksDefinition]:
    """The checks with the thresholds of a deployment."""
    limits = settings.model_dump()
    names = variables()

    def rate_check(name: str) -> dg.AssetChecksDefinition:
        counted, of, what = _RATES[name]
        limit = float(limits[name])

        def judge(lake: Lake) -> Mapping[str, str]:
            wrong = {}
            for row in newest(lake):
                share = row[counted] / row[of] if row[of] else 0.0
                if share > limit:
                    wrong[_name(row)] = f"{row[counted]} of {row[of]} {of}, {share:.0%}"
                    if counted == "errors":
                        wrong[_name(row)] += _causes(lake, row)
            return wrong

        said = f"At most {limit:.0%} ({names[name]}) of a batch's {what}."
        if name == "error_rate":
            return batch_check(
                "summary_quality", name, said, judge, more=lambda lake: {"no_text": no_text_by_table(lake)}
            )
        return batch_check("summary_quality", name, said, judge, severity=_WARN)

    def repeats(lake: Lake) -> Mapping[str, str]:
        over = [row for row in newest(lake) if (row["repetition"] or 0) > settings.repetition]
        return {_name(row): f"{row['repetition']:.0%} of the trigrams repeat an earlier one" for row in over}

    @dg.asset_check(
        asset="summary_quality",
        name="drift",
        description="Length, compression and coverage of each batch's summaries are distributed as in the batches "
        f"before it: their population stability index is at most {settings.drift} ({names['drift']}), or no more than "
        "chance makes of batches of that size.",
    )
    def drift_check(lake: dg.ResourceParam[Lake]) -> dg.AssetCheckResult:
        from batch_assets.quality import plots
        from batch_assets.quality.drift import drift

        wrong: dict[str, str] = {}
        shown: dict[str, Any] = {}
        rows = newest(lake)
        for table in (AI_QUERY_INFERENCE.name, BATCH_INFERENCE.name):
            of_table = [row for row in rows if row["table_name"] == table]
            for place in range(1, len(of_table)):
                row, before = of_table[place], of_table[max(place - _LOOKED_BACK, 0) : place]
                counts = {"the batches before": _histograms(before), row["batch"]: _histograms([row])}
                was, now = counts.values()
                found = {title: drift(was[name], now[name]) for name, title in _DRIFTING.items()}
                compared = {title: one for title, one in found.items() if one is not None}
                over = [f"{title} {one.index:.2f}" for title, one in compared.items() if one.is_over(settings.drift)]
                if over:
                    wrong[_name(row)] = ", ".join(over)
                if over or not wrong:
                    indexes = {f"index of {title}": round(one.index, 4) for title, one in compared.items()}
                    shown = {"batch": _name(row), **indexes, "plot": counts}
        if shown:
            figure = plots.distributions(shown["plot"], _DRIFTING)
            shown["plot"] = dg.MetadataValue.md(plots.image(figure, shown["batch"]))
        return result(wrong, _WARN, shown)

    @dg.asset_check(
        asset="batch_inference",
        name="freshness",
        description=f"No batch has waited for its summaries for more than {settings.fresh_hours} hours "
        f"({names['fresh_hours']}).",
    )
    def freshness(lake: dg.ResourceParam[Lake]) -> dg.AssetCheckResult:
        documents, output = lake.open(PROD_DATA), lake.open(BATCH_INFERENCE)
        wrong = {}
        for batch in stale_batches(documents, output, busy=frozenset()):
            commit = documents.last_commit(batch)
            hours = 0.0 if commit is None else (time.time() - commit.seconds) / 3600
            if hours > settings.fresh_hours:
                wrong[batch] = f"changed {hours:.0f} hours ago, and not scored since"
        return result(wrong, _WARN)

    return [
        *(rate_check(name) for name in _RATES),
        batch_check(
            "summary_quality",
            "repetition",
            f"Of no batch, more than {settings.repetition:.0%} of the trigrams of a summary repeat an earlier one, "
            f"in the mean ({names['repetition']}).",
            repeats,
            severity=_WARN,
        ),
        drift_check,
        freshness,
    ]


def newest(lake: Lake) -> Sequence[Mapping[str, Any]]:
    """Of each batch and table, the figures of what it holds now, in the order in which batches landed."""
    quality, documents = lake.open(SUMMARY_QUALITY), lake.open(PROD_DATA)
    state = (quality.table_id, quality.version, documents.table_id, documents.version)
    if state not in _read:
        # Only the last one is kept: what is older is not asked for again.
        _read.clear()
        _read[state] = _newest(quality, documents)
    return _read[state]


def _newest(quality: BatchSnapshot, documents: BatchSnapshot) -> list[Mapping[str, Any]]:
    found: list[Mapping[str, Any]] = []
    for batch in documents.in_order(quality.batches()):
        tables: dict[str, list[Mapping[str, Any]]] = {}
        for row in last_measured(row for part in quality.read(batch) for row in part.to_pylist()):
            tables.setdefault(row["table_name"], []).append(row)
        found += map(_together, tables.values())
    return found


def _together(rows: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """The figures of one batch of a table, whichever models its rows name."""
    counted = {name for figures in _RATES.values() for name in figures[:2]}
    summaries = sum(row["summaries"] for row in rows)
    repeated = sum((row["repetition"] or 0.0) * row["summaries"] for row in rows)
    return {
        **rows[0],
        **{name: sum(row[name] for row in rows) for name in counted},
        **{f"{name}_histogram": json.dumps(counts) for name, counts in _histograms(rows).items()},
        "repetition": repeated / summaries if summaries else None,
    }


def _name(row: Mapping[str, Any]) -> str:
    return str(row["batch"]) if row["table_name"] == BATCH_INFERENCE.name else f"{row['batch']} ({row['table_name']})"


def _histograms(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[int]]:
    return {name: add([row[f"{name}_histogram"] for row in rows]) for name in _DRIFTING}


def _causes(lake: Lake, row: Mapping[str, Any]) -> str:
    """Whether the errors of a batch come from its documents, or from an endpoint that was out of reach."""
    table = {table.name: table for table in (BATCH_INFERENCE, AI_QUERY_INFERENCE)}[row["table_name"]]
    messages = [
        message
        for part in lake.open(table).read(row["batch"], ["error_message"])
        for message in part.column("error_message").to_pylist()
        if message not in (None, RowError.NO_TEXT)
    ]
    causes = Counter("an outage of the endpoint" if NO_ANSWER in message else "the documents" for message in messages)
    return "; because of " + ", ".join(f"{cause} ({count})" for cause, count in causes.items())

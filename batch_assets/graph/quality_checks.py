"""Asset checks for the answers: error and other rates, repetition, drift, and batches that wait too long."""

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import dagster as dg

from batch_assets.engines.contract import RowError
from batch_assets.graph.batch_checks import Check, batch_check, result
from batch_assets.graph.pipeline_names import AssetKeys
from batch_assets.lake.contracts import PipelineTables, Table
from batch_assets.lake.counts import no_text_by_table
from batch_assets.lake.lake import BatchSnapshot, Lake
from batch_assets.quality.batch_measures import last_measured, quality_rows
from batch_assets.quality.histograms import Bins
from batch_assets.resources.registry import ModelRegistry
from batch_assets.settings import IN_PIPELINE_FILES, Settings, variables
from batch_assets.sources.documents import open_documents
from batch_assets.staleness import stale_batches
from batch_assets.tasks.output_tables import measured_task, tables_of

_WARN = dg.AssetCheckSeverity.WARN
# Evaluated by a sensor too: no run happens while nothing does.
FRESHNESS = "freshness"
# Check name, which is also the setting of its limit: counted column, column of the total, description.
_RATES = {
    "error_rate": ("errors", "documents", "documents failed; documents without text are not counted"),
    "empty_rate": ("empty", "summaries", "{answers} are empty"),
    "cut_rate": ("cut", "summaries", "{answers} were cut off at the length limit"),
    "truncated_rate": ("truncated", "documents", "documents were truncated to the model's input limit"),
}
_HISTOGRAM = "_histogram"
# Earlier batches that a batch is compared with, and newest batches that are compared: older ones say little about the
# usual distribution.
_COMPARED_BATCHES = 50
# The checks of one run all read the same rows.
_cached_rows: dict[tuple[str, int, str, int], list[Mapping[str, Any]]] = {}


def quality_checks(settings: Settings) -> list[Check]:
    """Create the checks with the thresholds of the settings."""
    limits = settings.model_dump()
    names = variables() if settings.is_default else IN_PIPELINE_FILES
    keys, tables, task = AssetKeys(settings.pipeline), tables_of(settings), measured_task(settings)
    answers, drift_bins = task.words[1], task.binned

    def label(row: Mapping[str, Any]) -> str:
        batch = str(row["batch"])
        return batch if row["table_name"] == tables.scored.name else f"{batch} ({row['table_name']})"

    def rate_check(name: str) -> Check:
        counted, total, what = _RATES[name]
        total_word, what = answers if total == "summaries" else total, what.format(answers=answers)
        limit = float(limits[name])

        def judge(lake: Lake) -> Mapping[str, str]:
            wrong = {}
            for row in newest(lake, settings, tables):
                share = row[counted] / row[total] if row[total] else 0.0
                if share > limit:
                    wrong[label(row)] = f"{row[counted]} of {row[total]} {total_word}, {share:.0%}"
                    if counted == "errors":
                        wrong[label(row)] += _error_causes(lake, tables.of_answers, row)
            return wrong

        description = f"At most {limit:.0%} ({names[name]}) of a batch's {what}."
        if name == "error_rate":
            return batch_check(
                keys.quality,
                name,
                description,
                judge,
                more=lambda lake: {"no_text": no_text_by_table(lake, tables.of_answers)},
            )
        return batch_check(keys.quality, name, description, judge, severity=_WARN)

    def repeats(lake: Lake) -> Mapping[str, str]:
        over = [row for row in newest(lake, settings, tables) if (row["repetition"] or 0) > settings.repetition]
        return {label(row): f"{row['repetition']:.0%} of the trigrams repeat an earlier one" for row in over}

    def evaluate_drift(lake: Lake, registry: ModelRegistry) -> dg.AssetCheckResult:
        from batch_assets.quality import plots
        from batch_assets.quality.drift import drift

        wrong: dict[str, str] = {}
        shown: dict[str, Any] = {}
        rows = newest(lake, settings, tables)
        for table in reversed([table.name for table in tables.of_answers]):
            of_table = [row for row in rows if row["table_name"] == table]
            for position in range(max(len(of_table) - _COMPARED_BATCHES, 1), len(of_table)):
                row, before = of_table[position], of_table[max(position - _COMPARED_BATCHES, 0) : position]
                counts = {
                    "earlier batches": _histograms(drift_bins, before),
                    row["batch"]: _histograms(drift_bins, [row]),
                }
                expected, now = counts.values()
                found = {bins.title: drift(expected[name], now[name]) for name, bins in drift_bins.items()}
                compared = {title: one for title, one in found.items() if one is not None}
                over = [f"{title} {one.index:.2f}" for title, one in compared.items() if one.is_over(settings.drift)]
                if over:
                    wrong[label(row)] = ", ".join(over)
                if over or not wrong:
                    indexes = {f"index of {title}": round(one.index, 4) for title, one in compared.items()}
                    shown = {"batch": label(row), **indexes, "plot": counts}
        if shown:
            figure = plots.distributions(shown["plot"], drift_bins)
            shown["plot"] = dg.MetadataValue.md(plots.image(figure, shown["batch"]))
        return result(wrong, _WARN, shown)

    def waiting(lake: Lake) -> Mapping[str, str]:
        return waiting_batches(open_documents(lake, settings, tables), lake.open(tables.scored), settings.fresh_hours)

    description = (
        f"No batch has waited more than {settings.fresh_hours} hours ({names['fresh_hours']}) for its {answers}."
    )
    checks = [
        *(rate_check(name) for name in _RATES),
        batch_check(keys.scored, FRESHNESS, description, waiting, severity=_WARN),
    ]
    if any(figure.name == "repetition" for figure in task.figures):
        description = (
            f"At most {settings.repetition:.0%} ({names['repetition']}) of the trigrams of an answer repeat an earlier "
            "one, on average over each batch."
        )
        checks.append(batch_check(keys.quality, "repetition", description, repeats, severity=_WARN))
    if drift_bins:
        description = (
            f"The {_listed([bins.title for bins in drift_bins.values()])} of each batch's {answers} are distributed as "
            f"in earlier batches: the population stability index is at most {settings.drift} ({names['drift']}), or no "
            "higher than chance explains for a batch of that size."
        )
        checks.append(Check(keys.quality, "drift", description, evaluate_drift))
    return checks


def waiting_batches(documents: BatchSnapshot, output: BatchSnapshot, hours: float) -> dict[str, str]:
    """Batches that have waited for their answers for more than some hours, each with how long."""
    wrong = {}
    for batch in stale_batches(documents, output, busy=frozenset()):
        commit = documents.last_commit(batch)
        waited = 0.0 if commit is None else (time.time() - commit.seconds) / 3600
        if waited > hours:
            wrong[batch] = f"changed {waited:.0f} hours ago and not scored since"
    return wrong


def _listed(words: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(words[:-1]), words[-1]]))


def newest(lake: Lake, settings: Settings, tables: PipelineTables) -> Sequence[Mapping[str, Any]]:
    """The newest metrics of each batch and table, in the order in which the batches landed."""
    quality, documents = lake.open(tables.quality), open_documents(lake, settings, tables)
    state = (quality.table_id, quality.version, documents.table_id, documents.version)
    if state not in _cached_rows:
        # Older states are not read again.
        for old in [known for known in _cached_rows if known[0] == quality.table_id]:
            del _cached_rows[old]
        _cached_rows[state] = _read_newest(quality, documents)
    return _cached_rows[state]


def _read_newest(quality: BatchSnapshot, documents: BatchSnapshot) -> list[Mapping[str, Any]]:
    found: list[Mapping[str, Any]] = []
    for batch in documents.sort_by_last_change(quality.batches()):
        tables: dict[str, list[Mapping[str, Any]]] = {}
        for row in last_measured(quality_rows(quality, batch)):
            tables.setdefault(row["table_name"], []).append(row)
        found += map(_merge_models, tables.values())
    return found


def _merge_models(rows: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """Merge the metrics of all models of one batch and table into one row; it has a list of their histograms."""
    counted = {name for figures in _RATES.values() for name in figures[:2]}
    summaries = sum(row["summaries"] for row in rows)
    repeated = sum((row.get("repetition") or 0.0) * row["summaries"] for row in rows)
    return {
        **rows[0],
        **{name: sum(row[name] for row in rows) for name in counted},
        **{name: [row[name] for row in rows] for name in rows[0] if name.endswith(_HISTOGRAM)},
        "repetition": repeated / summaries if summaries else None,
    }


def _histograms(binned: Mapping[str, Bins], rows: Sequence[Mapping[str, Any]]) -> dict[str, list[int]]:
    """Counts by bin over merged rows."""
    return {
        name: bins.add([stored for row in rows for stored in row[f"{name}{_HISTOGRAM}"]])
        for name, bins in binned.items()
    }


def _error_causes(lake: Lake, tables: Sequence[Table], row: Mapping[str, Any]) -> str:
    """Describe what caused the errors of a batch."""
    table = next(table for table in tables if table.name == row["table_name"])
    causes = Counter(
        failed["error_class"] or "unclassified"
        for part in lake.open(table).read(row["batch"], ["error_message", "error_class"])
        for failed in part.to_pylist()
        if failed["error_message"] not in (None, RowError.NO_TEXT)
    )
    return "; causes: " + ", ".join(f"{cause} ({count})" for cause, count in causes.items())

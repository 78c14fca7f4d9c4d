"""The quality report on all batches and model versions."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import dagster as dg

from batch_assets.errors import BatchAssetsError, reason
from batch_assets.graph.pipeline_names import AssetKeys, group_of, owners_of
from batch_assets.graph.quality_checks import quality_checks
from batch_assets.graph.signatures import with_known_signature
from batch_assets.graph.table_checks import table_checks
from batch_assets.lake.counts import no_text_by_table
from batch_assets.lake.lake import Lake
from batch_assets.quality import plots
from batch_assets.quality.batch_measures import last_measured, quality_rows
from batch_assets.quality.examples import examples
from batch_assets.quality.report import Facts, draw, markdown, page, totals
from batch_assets.resources.registry import ModelRegistry
from batch_assets.settings import Settings
from batch_assets.sources.documents import open_documents
from batch_assets.tasks.configured_task import task_of
from batch_assets.tasks.output_tables import measured_task, tables_of

_ARTIFACTS = "reports"
# Older reports are removed.
_MAX_REPORTS = 50
# Batches in the throughput plot, and materializations read per batch. Each batch is one query to Dagster's storage.
_MAX_BATCHES, _MAX_EVENTS = 50, 5
_MAX_EXAMPLES = 5
# Checks whose failure is an error; the others warn.
_ERRORS = {"every_record", "row_parity", "one_model", "error_rate"}


def build_quality_report(settings: Settings) -> dg.AssetsDefinition:
    """The asset of a pipeline's quality report."""
    keys, tables, task = AssetKeys(settings.pipeline), tables_of(settings), measured_task(settings)
    shared = settings.shared_model

    @dg.asset(
        key=keys.report,
        deps=[keys.quality],
        group_name=group_of(settings, "summaries"),
        owners=owners_of(settings),
        kinds={"python", "html"},
        code_version="2",
        description="Quality of every table and model version over all batches: an HTML page in <home>/reports"
        + (", also stored with the champion's MLflow run." if shared is None else "."),
    )
    @with_known_signature
    def quality_report(
        context: dg.AssetExecutionContext,
        lake: dg.ResourceParam[Lake],
        registry: dg.ResourceParam[ModelRegistry],
    ) -> dg.MaterializeResult[None]:
        """Write the report from the current measures and the registry."""
        from batch_assets.models.overview import compare_champion, main_scores, overview
        from batch_assets.models.registry import CHAMPION

        registry = registry.of(settings)
        model = registry.model(settings)
        snapshot = lake.open(tables.quality)
        batches = open_documents(lake, settings, tables).sort_by_last_change(snapshot.batches())
        rows = [row for batch in batches for row in quality_rows(snapshot, batch)]
        outcomes = _outcomes(rows, tables.scored.name)
        scores, baseline = main_scores(model, settings)
        compared, pairs = compare_champion(model, settings)
        champion = model.with_alias(CHAMPION)
        links = {
            "Dagster": f"http://127.0.0.1:{settings.ui_port}/assets/{'/'.join(keys.report.path)}",
            "MLflow": settings.mlflow_pages,
        }
        version_page = None if champion is None else registry.version_page(champion.name, champion.number)
        if champion is not None and version_page is not None:
            whose = f" of the pipeline {shared}" if shared else ""
            links[f"version {champion.number}, the champion{whose}"] = version_page
        facts = Facts(
            model=settings.registered_model + (f" of the pipeline {shared}" if shared else ""),
            task=task,
            words=task.words,
            rows=rows,
            overall=task.overall(outcomes),
            confusions={
                (first, second): count for pair, count in outcomes.items() for first, second in [json.loads(pair)]
            },
            versions=overview(model, settings, lake, []),
            no_text=no_text_by_table(lake, tables.of_answers),
            score=task_of(settings).main_score,
            scores=scores,
            baseline=baseline,
            compared=compared,
            pairs=pairs,
            rates=_throughput(context.instance, keys.scored, batches[-_MAX_BATCHES:]),
            links=links,
            failing=_failing(settings, lake, registry),
        )
        figures = draw(facts)
        now = datetime.now(UTC)
        shown = examples(lake.open(tables.scored), rows, task.main_score, min(settings.samples, _MAX_EXAMPLES))
        html = page(facts, figures, shown, now)

        folder = settings.report_file.parent
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"quality_report-{now:%Y%m%dT%H%M%S%f}.html"
        for target in (path, settings.report_file):
            # Two runs may write at the same time, so each writes its own temporary file first.
            part = folder / f".{context.run_id}.part"
            part.write_text(html, encoding="utf-8")
            part.replace(target)
        for old in sorted(folder.glob("quality_report-*.html"))[:-_MAX_REPORTS]:
            old.unlink(missing_ok=True)
        metadata: dict[str, Any] = {
            "report": dg.MetadataValue.md(markdown(totals(rows, task), task, task.words[1])),
            "no_text": facts.no_text,
            "plots": dg.MetadataValue.md("\n\n".join(plots.image(figure, title) for title, figure in figures.items())),
            "path": dg.MetadataValue.path(str(path)),
            "delta_version": snapshot.version,
        }
        # The report in the run of a shared model is that of its owner.
        if champion is not None and champion.run_id and shared is None:
            registry.client.log_text(champion.run_id, html, f"{_ARTIFACTS}/quality_report.html")
            metadata["mlflow_report"] = dg.MetadataValue.url(
                f"{registry.run_page(champion.run_id)}/artifacts/{_ARTIFACTS}/quality_report.html"
            )
        if version_page is not None:
            metadata["version_page"] = dg.MetadataValue.url(version_page)
        context.log.info(f"report on {len(batches)} batches written to {path}")
        return dg.MaterializeResult(metadata=metadata, data_version=dg.DataVersion(str(snapshot.version)))

    return quality_report


def _failing(settings: Settings, lake: Lake, registry: ModelRegistry) -> dict[str, Mapping[str, str]]:
    """The bad batches of each check that is an error when it fails."""
    found: dict[str, Mapping[str, str]] = {}
    for check in [*table_checks(settings), *quality_checks(settings)]:
        if check.name in _ERRORS:
            try:
                bad = check.evaluate(lake, registry).metadata["batches"]
            except (BatchAssetsError, OSError) as error:
                found[check.name] = {"not evaluated": reason(error)}
                continue
            if isinstance(bad, dg.JsonMetadataValue) and isinstance(bad.value, dict) and bad.value:
                found[check.name] = bad.value
    return found


def _outcomes(rows: Sequence[Mapping[str, Any]], table: str) -> dict[str, int]:
    """How often each pair of reference and answer occurs in the table of the registered model's answers."""
    counts: Counter[str] = Counter()
    for row in last_measured(rows):
        if row["table_name"] == table:
            counts.update(json.loads(row.get("outcomes") or "{}"))
    return counts


def _throughput(instance: dg.DagsterInstance, scored: dg.AssetKey, batches: Sequence[str]) -> dict[str, float]:
    """Documents per second of each batch, from its last materialization that scored documents."""
    rates: dict[str, float] = {}
    for batch in batches:
        records = instance.fetch_materializations(
            dg.AssetRecordsFilter(scored, asset_partitions=[batch]), limit=_MAX_EVENTS
        ).records
        for record in records:
            event = record.asset_materialization
            rate = None if event is None else event.metadata.get("documents_per_second")
            if rate is not None and isinstance(rate.value, int | float) and rate.value > 0:
                rates[batch] = rate.value
                break
    return rates

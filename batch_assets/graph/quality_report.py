"""The quality report on all batches and model versions."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import dagster as dg

from batch_assets.graph.batch_inference import batch_inference
from batch_assets.graph.summary_quality import summary_quality
from batch_assets.lake.contracts import BATCH_INFERENCE, PROD_DATA, SUMMARY_QUALITY
from batch_assets.lake.counts import no_text_by_table
from batch_assets.lake.lake import Lake
from batch_assets.quality import plots
from batch_assets.quality.examples import examples
from batch_assets.quality.report import Facts, draw, markdown, page, totals
from batch_assets.resources.registry import ModelRegistry
from batch_assets.settings import Settings

_ARTIFACTS = "reports"
# Older reports are removed.
_MAX_REPORTS = 50
# Batches in the throughput plot, and materializations read per batch. Each batch is one query to Dagster's storage.
_MAX_BATCHES, _MAX_EVENTS = 50, 5
_MAX_EXAMPLES = 5


@dg.asset(
    deps=[summary_quality],
    group_name="summaries",
    kinds={"python", "html"},
    code_version="2",
    description="Quality of every table and model version over all batches: an HTML page in <home>/reports, also "
    "stored with the champion's MLflow run.",
)
def quality_report(
    context: dg.AssetExecutionContext,
    settings: dg.ResourceParam[Settings],
    lake: dg.ResourceParam[Lake],
    registry: dg.ResourceParam[ModelRegistry],
) -> dg.MaterializeResult[None]:
    """Write the report from the current ``summary_quality`` and registry."""
    from batch_assets.models.configured_task import task_of
    from batch_assets.models.overview import compare_champion, main_scores, overview
    from batch_assets.models.registry import CHAMPION, with_alias

    snapshot = lake.open(SUMMARY_QUALITY)
    batches = lake.open(PROD_DATA).sort_by_last_change(snapshot.batches())
    rows = [row for batch in batches for table in snapshot.read(batch) for row in table.to_pylist()]
    scores, baseline = main_scores(registry.client, settings)
    compared, pairs = compare_champion(registry.client, settings)
    champion = with_alias(registry.client, settings.registered_model, CHAMPION)
    links = {"Dagster": f"http://127.0.0.1:{settings.ui_port}/assets/quality_report", "MLflow": settings.mlflow_pages}
    version_page = None if champion is None else registry.version_page(champion.name, champion.number)
    if champion is not None and version_page is not None:
        links[f"version {champion.number}, the champion"] = version_page
    facts = Facts(
        model=settings.registered_model,
        rows=rows,
        versions=overview(registry.client, settings, lake, []),
        no_text=no_text_by_table(lake),
        score=task_of(settings).main_score,
        scores=scores,
        baseline=baseline,
        compared=compared,
        pairs=pairs,
        rates=_throughput(context.instance, batches[-_MAX_BATCHES:]),
        links=links,
    )
    figures = draw(facts)
    now = datetime.now(UTC)
    shown = examples(lake.open(BATCH_INFERENCE), rows, min(settings.samples, _MAX_EXAMPLES))
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
        "report": dg.MetadataValue.md(markdown(totals(rows))),
        "no_text": facts.no_text,
        "plots": dg.MetadataValue.md("\n\n".join(plots.image(figure, title) for title, figure in figures.items())),
        "path": dg.MetadataValue.path(str(path)),
        "delta_version": snapshot.version,
    }
    if champion is not None and champion.run_id:
        registry.client.log_text(champion.run_id, html, f"{_ARTIFACTS}/quality_report.html")
        metadata["mlflow_report"] = dg.MetadataValue.url(
            f"{registry.run_page(champion.run_id)}/artifacts/{_ARTIFACTS}/quality_report.html"
        )
    if version_page is not None:
        metadata["version_page"] = dg.MetadataValue.url(version_page)
    context.log.info(f"report on {len(batches)} batches written to {path}")
    return dg.MaterializeResult(metadata=metadata, data_version=dg.DataVersion(str(snapshot.version)))


def _throughput(instance: dg.DagsterInstance, batches: Sequence[str]) -> dict[str, float]:
    """Documents per second of each batch, from its last materialization that scored documents."""
    rates: dict[str, float] = {}
    for batch in batches:
        records = instance.fetch_materializations(
            dg.AssetRecordsFilter(batch_inference.key, asset_partitions=[batch]), limit=_MAX_EVENTS
        ).records
        for record in records:
            event = record.asset_materialization
            rate = None if event is None else event.metadata.get("documents_per_second")
            if rate is not None and isinstance(rate.value, int | float) and rate.value > 0:
                rates[batch] = rate.value
                break
    return rates

"""The report over all batches and model versions."""

from collections.abc import Iterator
from typing import Any

import dagster as dg

from batch_assets.assets.summary_quality import summary_quality
from batch_assets.lake.lake import Lake
from batch_assets.lake.tables import SUMMARY_QUALITY
from batch_assets.quality.report import markdown, totals
from batch_assets.settings import Settings


@dg.asset(
    deps=[summary_quality],
    group_name="summaries",
    kinds={"python", "markdown"},
    code_version="1",
    description="What every table and model version came to, over all batches; also a file in <home>/reports.",
)
def quality_report(
    context: dg.AssetExecutionContext, settings: dg.ResourceParam[Settings], lake: dg.ResourceParam[Lake]
) -> dg.MaterializeResult[None]:
    """Write the report from ``summary_quality`` as it is now."""
    snapshot = lake.open(SUMMARY_QUALITY)

    def rows() -> Iterator[dict[str, Any]]:
        for batch in snapshot.batches():
            for table in snapshot.read(batch):
                yield from table.to_pylist()

    report = markdown(totals(rows()))
    folder = settings.home / "reports"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "quality_report.md"
    path.write_text(f"# Quality of the summaries\n\n{report}\n")
    context.log.info(f"{len(snapshot.batches())} batches, written to {path}")
    return dg.MaterializeResult(
        metadata={
            "report": dg.MetadataValue.md(report),
            "path": dg.MetadataValue.path(str(path)),
            "delta_version": snapshot.version,
        },
        data_version=dg.DataVersion(str(snapshot.version)),
    )

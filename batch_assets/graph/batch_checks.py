"""Asset checks over batches: a check passes when no batch fails it."""

from collections.abc import Callable, Mapping
from typing import Any

import dagster as dg

from batch_assets.lake.lake import Lake

# Failed batches listed in the metadata of a check result.
_MAX_LISTED = 50

Judge = Callable[[Lake], Mapping[str, str]]


def batch_check(
    asset: dg.AssetKey,
    name: str,
    description: str,
    judge: Judge,
    *,
    severity: dg.AssetCheckSeverity = dg.AssetCheckSeverity.ERROR,
    more: Callable[[Lake], Mapping[str, Any]] = lambda lake: {},
) -> dg.AssetChecksDefinition:
    """Create a check that lists the batches that fail it, with the reasons.

    If a table can't be read, the check raises an error instead of failing.

    Args:
        asset: key of the asset.
        name: name of the check.
        description: what holds when the check passes.
        judge: reads the tables and returns the problem of each failed batch.
        severity: severity of a failure.
        more: returns additional metadata.
    """

    @dg.asset_check(asset=asset, name=name, description=description)
    def check(lake: dg.ResourceParam[Lake]) -> dg.AssetCheckResult:
        return result(judge(lake), severity, more(lake))

    return check


def result(
    wrong: Mapping[str, str],
    severity: dg.AssetCheckSeverity = dg.AssetCheckSeverity.ERROR,
    more: Mapping[str, Any] | None = None,
) -> dg.AssetCheckResult:
    """The result of a check over batches; ``wrong`` maps each failed batch to its problem."""
    return dg.AssetCheckResult(
        passed=not wrong,
        severity=severity,
        metadata={"failed": len(wrong), "batches": dict(list(wrong.items())[:_MAX_LISTED]), **(more or {})},
    )

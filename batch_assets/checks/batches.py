"""A check over batches: passed where no batch has anything wrong with it."""

from collections.abc import Callable, Mapping
from typing import Any

import dagster as dg

from batch_assets.lake.lake import Lake

# What a page shows of many.
_MOST = 50

Judge = Callable[[Lake], Mapping[str, str]]


def batch_check(
    asset: str,
    name: str,
    description: str,
    judge: Judge,
    *,
    blocking: bool = False,
    severity: dg.AssetCheckSeverity = dg.AssetCheckSeverity.ERROR,
    more: Callable[[Lake], Mapping[str, Any]] = lambda lake: {},
) -> dg.AssetChecksDefinition:
    """A check that names the batches which fail it, and why.

    A table that can't be read makes the check end in an error, which is not the same as a batch that fails it.

    Args:
        asset: key of the asset.
        name: of the check.
        description: what is true where it passes.
        judge: looks at the tables as they are, and says what is wrong, by batch.
        blocking: whether what is downstream waits for it.
        severity: of a failure.
        more: gives further metadata.
    """

    @dg.asset_check(asset=asset, name=name, blocking=blocking, description=description)
    def check(lake: dg.ResourceParam[Lake]) -> dg.AssetCheckResult:
        return result(judge(lake), severity, more(lake))

    return check


def result(
    wrong: Mapping[str, str],
    severity: dg.AssetCheckSeverity = dg.AssetCheckSeverity.ERROR,
    more: Mapping[str, Any] | None = None,
) -> dg.AssetCheckResult:
    """What a check over batches found: the batches that failed it, some of them by name."""
    return dg.AssetCheckResult(
        passed=not wrong,
        severity=severity,
        metadata={"failed": len(wrong), "batches": dict(list(wrong.items())[:_MOST]), **(more or {})},
    )

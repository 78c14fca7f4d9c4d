"""Asset checks: what each one evaluates, and their definitions, one step per asset.

No check blocks: each batch is verified before it is committed, and an old bad batch must not fail later runs. A check
stays red until its batches are repaired.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import dagster as dg

from batch_assets.graph.signatures import with_known_signature
from batch_assets.lake.lake import Lake
from batch_assets.resources.registry import ModelRegistry

# Failed batches listed in the metadata of a check result.
_MAX_LISTED = 50


@dataclass(frozen=True)
class Check:
    """A check of an asset: ``description`` says what holds when it passes."""

    asset: dg.AssetKey
    name: str
    description: str
    evaluate: Callable[[Lake, ModelRegistry], dg.AssetCheckResult]


def check_definitions(checks: Sequence[Check]) -> list[dg.AssetChecksDefinition]:
    """Create the definitions of checks, one for all checks of an asset, because every step of a run costs time."""
    by_asset = groupby(sorted(checks, key=lambda check: check.asset), key=lambda check: check.asset)
    return [_definition(asset, list(of_asset)) for asset, of_asset in by_asset]


def _definition(asset: dg.AssetKey, checks: Sequence[Check]) -> dg.AssetChecksDefinition:
    @dg.multi_asset_check(
        name=f"{asset.to_python_identifier()}_checks",
        specs=[dg.AssetCheckSpec(check.name, asset=asset, description=check.description) for check in checks],
        can_subset=True,
    )
    @with_known_signature
    def evaluate(
        context: dg.AssetCheckExecutionContext,
        lake: dg.ResourceParam[Lake],
        registry: dg.ResourceParam[ModelRegistry],
    ) -> Iterator[dg.AssetCheckResult]:
        errors: list[Exception] = []
        for check in checks:
            if dg.AssetCheckKey(asset, check.name) in context.selected_asset_check_keys:
                try:
                    found = check.evaluate(lake, registry)
                except Exception as error:  # raised below, after the other checks
                    errors.append(error)
                    continue
                yield dg.AssetCheckResult(
                    asset_key=asset,
                    check_name=check.name,
                    passed=found.passed,
                    severity=found.severity,
                    metadata=found.metadata,
                )
        if errors:
            raise errors[0]

    return evaluate


def batch_check(
    asset: dg.AssetKey,
    name: str,
    description: str,
    judge: Callable[[Lake], Mapping[str, str]],
    *,
    severity: dg.AssetCheckSeverity = dg.AssetCheckSeverity.ERROR,
    more: Callable[[Lake], Mapping[str, Any]] = lambda lake: {},
) -> Check:
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
    return Check(asset, name, description, lambda lake, registry: result(judge(lake), severity, more(lake)))


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

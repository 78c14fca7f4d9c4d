"""Invalid pipeline files, as an asset with a failing check each, so that the UI shows them."""

import re
from collections.abc import Sequence

import dagster as dg

from batch_assets.pipelines.deployment import BrokenPipeline


def broken_pipelines(problems: Sequence[BrokenPipeline]) -> dg.Definitions:
    """Definitions that say which files were left out, and why."""
    specs, checks = [], []
    for number, problem in enumerate(problems, 1):
        # Two files may differ only in characters that Dagster does not allow.
        name = re.sub(r"[^A-Za-z0-9]+", "_", problem.file.stem).strip("_") or "file"
        key = dg.AssetKey(["invalid_pipelines", f"{name}_{number}"])
        specs.append(
            dg.AssetSpec(
                key, group_name="invalid_pipelines", description=problem.message, metadata={"file": str(problem.file)}
            )
        )
        checks.append(_check(key, problem.message))
    return dg.Definitions(assets=specs, asset_checks=checks)


def _check(key: dg.AssetKey, message: str) -> dg.AssetChecksDefinition:
    @dg.asset_check(asset=key, name="is_valid", description="The file of the pipeline is valid.")
    def is_valid() -> dg.AssetCheckResult:
        return dg.AssetCheckResult(passed=False, metadata={"problem": message})

    return is_valid

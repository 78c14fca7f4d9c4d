"""Every table against its contract, and the tables against each other."""

from collections.abc import Mapping

import dagster as dg
import pyarrow.compute as pc

from batch_assets.checks.batches import batch_check, result
from batch_assets.lake.lake import BatchSnapshot, Lake
from batch_assets.lake.tables import (
    AI_QUERY_INFERENCE,
    BATCH_INFERENCE,
    PROD_DATA,
    PROD_DATA_REJECTED,
    SUMMARY_QUALITY,
    Table,
)
from batch_assets.resources.registry import ModelRegistry
from batch_assets.settings import Settings


def contract_check(asset: str, table: Table, name: str = "contract") -> dg.AssetChecksDefinition:
    """A check that the Delta table has the columns and types that its contract names."""

    @dg.asset_check(asset=asset, name=name, blocking=True, description=f"{table.name} has the columns of its contract.")
    def check(lake: dg.ResourceParam[Lake]) -> dg.AssetCheckResult:
        difference = lake.difference(table)
        return dg.AssetCheckResult(passed=difference is None, metadata={"difference": difference or "none"})

    return check


def _parity(lake: Lake) -> Mapping[str, str]:
    scored, documents = lake.open(BATCH_INFERENCE), lake.open(PROD_DATA)
    wrong = {}
    for batch in scored.batches():
        commit, origin = scored.last_commit(batch), documents.last_commit(batch)
        # A batch that has changed since it was scored is stale, not wrong.
        is_current = commit and origin and commit.metadata.get("input_version") == origin.version
        if is_current and documents.rows(batch) != scored.rows(batch):
            wrong[batch] = f"{documents.rows(batch)} documents, {scored.rows(batch)} rows"
    return wrong


def _records(lake: Lake) -> Mapping[str, str]:
    documents, rejected = lake.open(PROD_DATA), lake.open(PROD_DATA_REJECTED)
    wrong = {}
    for batch in documents.batches():
        commit = documents.last_commit(batch)
        # Where another writer's rows came from, nobody says.
        if commit is None or "provenance" not in commit.metadata or not documents.is_ours(batch):
            continue
        # The rejected records of a batch are written first; here a run is between the two.
        aside = rejected.last_commit(batch)
        if aside is not None and aside.metadata.get("digest") != commit.metadata.get("digest"):
            continue
        records = commit.metadata["provenance"]["records"]
        counts = (documents.rows(batch), rejected.rows(batch))
        if sum(counts) != records:
            wrong[batch] = f"{records} records, {counts[0]} documents and {counts[1]} rejected"
    return wrong


def _versions(scored: BatchSnapshot) -> dict[str, tuple[int, int]]:
    """The lowest and highest model version of the rows of each batch that has several, from the statistics."""
    actions = scored.delta.add_actions().select(["partition.batch", "min.model_version", "max.model_version"])
    found: dict[str, tuple[int, int]] = {}
    for batch, low, high in zip(*(column.to_pylist() for column in actions.columns), strict=True):
        if low is not None and high is not None:
            before = found.get(batch, (low, high))
            found[batch] = (min(before[0], low), max(before[1], high))
    return {batch: versions for batch, versions in found.items() if versions[0] != versions[1]}


def _numbers(scored: BatchSnapshot, batch: str) -> list[int]:
    numbers = (pc.unique(rows.column("model_version")) for rows in scored.read(batch, ["model_version"]))
    return sorted({number for part in numbers for number in part.to_pylist() if number is not None})


@dg.asset_check(
    asset="batch_inference",
    name="one_model",
    blocking=True,
    description="All summaries of a batch were written by one model: versions that share a batch share their digest.",
)
def one_model(
    lake: dg.ResourceParam[Lake], settings: dg.ResourceParam[Settings], registry: dg.ResourceParam[ModelRegistry]
) -> dg.AssetCheckResult:
    """Look up the digests of versions that share a batch."""
    from batch_assets.models.registry import digest_of, get_version

    scored = lake.open(BATCH_INFERENCE)
    wrong = {}
    for batch in _versions(scored):
        numbers = _numbers(scored, batch)
        digests = {digest_of(registry.client, get_version(registry.client, settings, number)) for number in numbers}
        if len(digests) > 1:
            wrong[batch] = f"versions {', '.join(str(number) for number in numbers)}, which are not the same model"
    return result(wrong)


TABLE_CHECKS = [
    contract_check("prod_data", PROD_DATA),
    contract_check("prod_data", PROD_DATA_REJECTED, "contract_of_rejected"),
    contract_check("batch_inference", BATCH_INFERENCE),
    contract_check("ai_query_inference", AI_QUERY_INFERENCE),
    contract_check("summary_quality", SUMMARY_QUALITY),
    batch_check(
        "prod_data",
        "every_record",
        "Every record of a batch's source is a document, or is set aside with the reason.",
        _records,
        blocking=True,
    ),
    batch_check(
        "batch_inference",
        "row_parity",
        "Every scored batch has as many rows as the documents that it was scored from.",
        _parity,
        blocking=True,
    ),
    one_model,
]

"""Every table against its contract."""

import dagster as dg

from batch_assets.lake.lake import Lake
from batch_assets.lake.tables import (
    AI_QUERY_INFERENCE,
    BATCH_INFERENCE,
    PROD_DATA,
    PROD_DATA_REJECTED,
    SUMMARY_QUALITY,
    Table,
)


def contract_check(asset: str, table: Table) -> dg.AssetChecksDefinition:
    """A check that the Delta table has the columns and types that its contract names."""

    @dg.asset_check(
        asset=asset, name="contract", blocking=True, description=f"{table.name} has the columns of its contract."
    )
    def check(lake: dg.ResourceParam[Lake]) -> dg.AssetCheckResult:
        difference = lake.difference(table)
        return dg.AssetCheckResult(passed=difference is None, metadata={"difference": difference or "none"})

    return check


def row_parity_check() -> dg.AssetChecksDefinition:
    """A check that every document of a scored batch has one row."""

    @dg.asset_check(
        asset="batch_inference",
        name="row_parity",
        blocking=True,
        description="Every scored batch has as many rows as the documents that it was scored from.",
    )
    def check(lake: dg.ResourceParam[Lake]) -> dg.AssetCheckResult:
        scored, documents = lake.open(BATCH_INFERENCE), lake.open(PROD_DATA)
        different = {}
        for batch in scored.batches():
            commit, origin = scored.last_commit(batch), documents.last_commit(batch)
            # A batch that has changed since it was scored is stale, not wrong.
            if commit and origin and commit.metadata.get("input_version") == origin.version:
                counts = (documents.rows(batch), scored.rows(batch))
                if counts[0] != counts[1]:
                    different[batch] = f"{counts[0]} documents, {counts[1]} rows"
        return dg.AssetCheckResult(passed=not different, metadata={"different": different})

    return check


def every_record_check() -> dg.AssetChecksDefinition:
    """A check that no record of a source got lost."""

    @dg.asset_check(
        asset="prod_data",
        name="every_record",
        blocking=True,
        description="Every record of a batch's source is a document, or is set aside with the reason.",
    )
    def check(lake: dg.ResourceParam[Lake]) -> dg.AssetCheckResult:
        documents, rejected = lake.open(PROD_DATA), lake.open(PROD_DATA_REJECTED)
        different = {}
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
                different[batch] = f"{records} records, {counts[0]} documents and {counts[1]} rejected"
        return dg.AssetCheckResult(passed=not different, metadata={"different": different})

    return check


def answered_check() -> dg.AssetChecksDefinition:
    """A check that warns of rows which the endpoint gave no answer for."""

    @dg.asset_check(
        asset="ai_query_inference", name="answered", description="Every row of ai_query_inference has its answer."
    )
    def check(lake: dg.ResourceParam[Lake]) -> dg.AssetCheckResult:
        snapshot = lake.open(AI_QUERY_INFERENCE)
        commits = {batch: snapshot.last_commit(batch) for batch in snapshot.batches()}
        errors = {batch: commit.metadata.get("errors", 0) for batch, commit in commits.items() if commit}
        failed = {batch: number for batch, number in errors.items() if number}
        return dg.AssetCheckResult(
            passed=not failed, severity=dg.AssetCheckSeverity.WARN, metadata={"errors by batch": failed}
        )

    return check


TABLE_CHECKS = [
    contract_check("prod_data", PROD_DATA),
    contract_check("batch_inference", BATCH_INFERENCE),
    contract_check("ai_query_inference", AI_QUERY_INFERENCE),
    contract_check("summary_quality", SUMMARY_QUALITY),
    every_record_check(),
    row_parity_check(),
    answered_check(),
]

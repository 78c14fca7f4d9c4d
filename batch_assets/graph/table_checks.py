"""Asset checks of the tables: against their contracts and against each other."""

from collections.abc import Mapping

import dagster as dg
import pyarrow as pa

from batch_assets.graph.batch_checks import Check, batch_check, result
from batch_assets.graph.pipeline_names import AssetKeys
from batch_assets.lake.contracts import PipelineTables, Table
from batch_assets.lake.lake import BatchSnapshot, Lake
from batch_assets.resources.registry import ModelRegistry
from batch_assets.settings import Settings
from batch_assets.sources.documents import open_documents
from batch_assets.tasks.output_tables import tables_of


def table_checks(settings: Settings) -> list[Check]:
    """The checks of a pipeline's tables."""
    keys, tables = AssetKeys(settings.pipeline), tables_of(settings)
    checks = [
        contract_check(keys.scored, tables.scored),
        contract_check(keys.quality, tables.quality),
        batch_check(
            keys.scored,
            "row_parity",
            "Every scored batch has one row per document it was scored from.",
            lambda lake: _row_count_mismatches(lake, settings, tables),
        ),
        _one_model(keys, tables),
    ]
    if not settings.is_in_place:
        checks += [
            contract_check(keys.documents, tables.documents),
            contract_check(keys.documents, tables.rejected, "contract_of_rejected"),
            batch_check(
                keys.documents,
                "every_record",
                "Every record of a batch's source is a document, or a rejected record with a reason.",
                lambda lake: _record_count_mismatches(lake, tables),
            ),
        ]
    if tables.answered is not None:
        checks.append(contract_check(keys.answered, tables.answered))
    return checks


def contract_check(asset: dg.AssetKey, table: Table, name: str = "contract") -> Check:
    """Create a check that the Delta table has the columns and types of its contract."""

    def evaluate(lake: Lake, registry: ModelRegistry) -> dg.AssetCheckResult:
        difference = lake.difference(table)
        return dg.AssetCheckResult(passed=difference is None, metadata={"difference": difference or "none"})

    return Check(asset, name, f"{table.name} has the columns of its contract.", evaluate)


def _row_count_mismatches(lake: Lake, settings: Settings, tables: PipelineTables) -> Mapping[str, str]:
    scored, documents = lake.open(tables.scored), open_documents(lake, settings, tables)
    wrong = {}
    for batch in scored.batches():
        commit, origin = scored.last_commit(batch), documents.last_commit(batch)
        # A batch that changed after it was scored is stale, so its counts may differ.
        is_current = commit and origin and commit.metadata.get("input_version") == origin.version
        if is_current and documents.rows(batch) != scored.rows(batch):
            wrong[batch] = f"{documents.rows(batch)} documents, {scored.rows(batch)} rows"
    return wrong


def _record_count_mismatches(lake: Lake, tables: PipelineTables) -> Mapping[str, str]:
    documents, rejected = lake.open(tables.documents), lake.open(tables.rejected)
    wrong = {}
    for batch in documents.batches():
        commit = documents.last_commit(batch)
        # Commits of other writers have no provenance.
        if commit is None or "provenance" not in commit.metadata or not documents.is_written_by_us(batch):
            continue
        # Rejected records are committed first; different digests mean that a run has not committed the documents yet.
        rejected_commit = rejected.last_commit(batch)
        if rejected_commit is not None and rejected_commit.metadata.get("digest") != commit.metadata.get("digest"):
            continue
        records = commit.metadata["provenance"]["records"]
        counts = (documents.rows(batch), rejected.rows(batch))
        if sum(counts) != records:
            wrong[batch] = f"{records} records, but {counts[0]} documents and {counts[1]} rejected"
    return wrong


def _mixed_versions(scored: BatchSnapshot) -> dict[str, tuple[int, int]]:
    """Batches with several model versions, each with its lowest and highest version, from the file statistics."""
    actions = scored.delta.add_actions().select(["partition.batch", "min.model_version", "max.model_version"])
    found: dict[str, tuple[int, int]] = {}
    for batch, low, high in zip(*(column.to_pylist() for column in actions.columns), strict=True):
        if low is not None and high is not None:
            before = found.get(batch, (low, high))
            found[batch] = (min(before[0], low), max(before[1], high))
    return {batch: versions for batch, versions in found.items() if versions[0] != versions[1]}


def _versions(scored: BatchSnapshot, batch: str) -> list[tuple[str, int]]:
    """The versions that wrote a batch, each with the name of its registered model, which may have been another one."""
    columns = ["model_name", "model_version"]
    tables = (pa.Table.from_batches([rows]).group_by(columns).aggregate([]) for rows in scored.read(batch, columns))
    found = {(row["model_name"], row["model_version"]) for table in tables for row in table.to_pylist()}
    return sorted((name, number) for name, number in found if number is not None)


def _one_model(keys: AssetKeys, tables: PipelineTables) -> Check:
    def evaluate(lake: Lake, registry: ModelRegistry) -> dg.AssetCheckResult:
        """Compare the digests of the versions that wrote a batch."""
        from batch_assets.models.registry import RegisteredModel, digest_of

        scored = lake.open(tables.scored)
        wrong = {}
        for batch in _mixed_versions(scored):
            versions = _versions(scored, batch)
            digests = {
                digest_of(registry.client, RegisteredModel(registry.client, name).version(number))
                for name, number in versions
            }
            if len(digests) > 1:
                wrong[batch] = f"versions {', '.join(str(number) for _, number in versions)} have different digests"
        return result(wrong)

    description = "One model wrote all answers of a batch: if several versions wrote it, they have the same digest."
    return Check(keys.scored, "one_model", description, evaluate)

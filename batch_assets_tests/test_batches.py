"""A batch that fails in one asset of a run does not stop other batches, in that asset or in later ones."""

import dagster as dg
import pytest

from batch_assets.graph.batch_execution import BatchOutcome, each_batch
from batch_assets.resources.terminal import terminal_logger

BATCHES = dg.StaticPartitionsDefinition(["x", "y", "z"])


class Chain:
    """Three assets in sequence over the same batches, and a fourth in parallel with the second."""

    def __init__(self) -> None:
        self.fails: set[tuple[str, str]] = set()
        self.worked: list[tuple[str, str]] = []
        parents = {"landed": [], "scored": ["landed"], "asked": ["landed"], "measured": ["scored", "asked"]}
        self.assets = [self._asset(name, deps) for name, deps in parents.items()]
        self.instance = dg.DagsterInstance.ephemeral()

    def _asset(self, name: str, deps: list[str]) -> dg.AssetsDefinition:
        def work(batch: str) -> BatchOutcome:
            self.worked.append((name, batch))
            if (name, batch) in self.fails:
                raise ValueError(f"{batch} is broken")
            return BatchOutcome(1, {})

        @dg.asset(name=name, deps=deps, partitions_def=BATCHES, backfill_policy=dg.BackfillPolicy.single_run())
        def asset(context: dg.AssetExecutionContext) -> dg.MaterializeResult[None]:
            return each_batch(context, work)

        return asset

    def run(
        self, *fails: tuple[str, str], selection: list[str] | None = None, loggers: dict | None = None
    ) -> dict[str, str]:
        """Run over all batches and return the message of each failed step."""
        self.fails, self.worked = {*fails}, []
        defs = dg.Definitions(assets=self.assets, loggers=loggers, executor=dg.in_process_executor)
        job = dg.define_asset_job("job", selection=selection or "*", partitions_def=BATCHES)
        resolved = dg.Definitions.merge(defs, dg.Definitions(jobs=[job])).resolve_job_def("job")
        result = resolved.execute_in_process(
            instance=self.instance,
            run_config={"loggers": {name: {} for name in loggers or {}}},
            tags={"dagster/asset_partition_range_start": "x", "dagster/asset_partition_range_end": "z"},
            raise_on_error=False,
        )
        self.last = result.run_id
        failures = [event for event in result.all_events if event.is_step_failure]
        return {event.step_key: event.step_failure_data.error.message for event in failures}

    def materialized(self, asset: str) -> set[str]:
        records = self.instance.fetch_materializations(dg.AssetKey(asset), limit=100).records
        return {record.partition_key for record in records if record.run_id == self.last}


@pytest.fixture
def chain():
    return Chain()


def test_the_last_asset_fails_the_run_with_the_reasons_from_earlier_assets(chain):
    (step, message), *others = chain.run(("landed", "x"), ("scored", "y")).items()
    assert (step, others) == ("measured", [])
    assert "2 of 3 batches failed (x: landed: x is broken; y: scored: y is broken)" in message
    assert chain.materialized("landed") == {"y", "z"}
    assert chain.materialized("scored") == {"z"}
    assert chain.materialized("asked") == {"y", "z"}
    assert chain.materialized("measured") == {"z"}
    assert ("scored", "x") not in chain.worked


def test_the_terminal_shows_the_reason_of_a_failed_batch_once(chain, capfd):
    chain.run(("scored", "y"), loggers={"console": terminal_logger})
    printed = capfd.readouterr().out
    assert printed.count("y is broken") == 1
    assert "batch y skipped: it failed in scored" in printed
    assert '"measured" failed. 1 of 3 batches failed' in printed


def test_an_asset_processes_a_batch_that_failed_only_in_a_parallel_asset(chain):
    assert [*chain.run(("scored", "x"), selection=["landed", "scored", "asked"])] == ["scored"]
    assert chain.materialized("asked") == {"x", "y", "z"}


def test_an_asset_fails_immediately_if_all_batches_failed(chain):
    failures = chain.run(*(("landed", batch) for batch in "xyz"))
    assert [*failures] == ["landed"]
    assert chain.worked == [("landed", batch) for batch in "xyz"]


def test_a_run_with_a_failure_before_its_last_asset_is_retried_from_the_start(chain):
    chain.run(("landed", "x"))
    assert chain.instance.get_run_by_id(chain.last).tags["dagster/retry_strategy"] == "ALL_STEPS"
    assert chain.run() == {}
    assert chain.materialized("measured") == {"x", "y", "z"}


def test_the_observation_of_a_failed_batch_gives_the_reason(chain):
    chain.run(("landed", "x"))
    (record,) = chain.instance.fetch_observations(dg.AssetKey("landed"), limit=10).records
    observation = record.event_log_entry.asset_observation
    assert observation.partition == "x"
    assert observation.metadata["failed"].value == "x is broken"

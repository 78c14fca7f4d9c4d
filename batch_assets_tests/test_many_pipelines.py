"""What many pipelines cost to load. Calls are counted instead of seconds, which depend on the machine."""

import cProfile
from collections.abc import Callable, Sequence

import dagster as dg

from batch_assets import Pipeline
from batch_assets.automation import jobs as jobs_module
from batch_assets.definitions import build_defs
from batch_assets.settings import Settings, load_settings


def settings_of(count: int) -> list[Settings]:
    """Pipelines of all kinds: with files or a landing folder, with and without an endpoint."""
    return [
        Pipeline(
            f"p{number}",
            {"landing": f"in/p{number}"} if number % 2 else {"dataset": "a.jsonl"},
            task={"kind": "classification", "labels": ["a", "b"]},
            ai_query={"endpoint": "smollm2"} if number % 2 else None,
        ).settings(load_settings())
        for number in range(count)
    ]


def calls(work: Callable[[], object]) -> int:
    """The number of function calls that some work makes."""
    profile = cProfile.Profile()
    profile.runcall(work)
    return sum(entry.callcount for entry in profile.getstats())


def bare_pipeline(settings: Settings) -> dg.Definitions:
    """Definitions as many as those of a pipeline, which do nothing."""
    names = ["documents", "logged", "evaluation", "champion", "scored", "quality", "report"]
    names += ["answered"] if settings.endpoint else []
    keys = {name: dg.AssetKey([settings.pipeline, name]) for name in names}
    partitions = dg.DynamicPartitionsDefinition(name=settings.pipeline)

    def asset(name: str) -> dg.AssetsDefinition:
        is_partitioned = name in ("documents", "scored", "quality", "answered")

        @dg.asset(key=keys[name], partitions_def=partitions if is_partitioned else None)
        def bare() -> None: ...

        return bare

    def check(name: str, count: int) -> dg.AssetChecksDefinition:
        specs = [dg.AssetCheckSpec(f"check_{number}", asset=keys[name]) for number in range(count)]

        @dg.multi_asset_check(name=f"{settings.pipeline}_{name}_checks", specs=specs, can_subset=True)
        def bare(): ...

        return bare

    def job(name: str) -> dg.JobDefinition:
        @dg.op(name=f"{settings.pipeline}_{name}_op")
        def bare() -> None: ...

        @dg.job(name=f"{settings.pipeline}_{name}")
        def bare_job() -> None:
            bare()

        return bare_job

    def asset_job(name: str, selected: Sequence[str]):
        return dg.define_asset_job(f"{settings.pipeline}_{name}", [keys[one] for one in selected])

    jobs = [asset_job("all", names), asset_job("land", names[:1]), asset_job("score", names[4:])]
    jobs += [job(name) for name in ("promote", "rollback", *(["take"] if settings.is_landing else []))]
    watched = ("documents", "champion", *(["landing"] if settings.is_landing else []))
    return dg.Definitions(
        assets=[*(asset(name) for name in names), *(dg.AssetSpec([settings.pipeline, name]) for name in ("a", "b"))],
        asset_checks=[
            check(*one) for one in (("documents", 3), ("scored", 4), ("quality", 7), ("evaluation", 1), ("champion", 1))
        ],
        jobs=jobs,
        sensors=[
            dg.SensorDefinition(f"{settings.pipeline}_{name}", job=jobs[2], evaluation_fn=lambda context: None)
            for name in watched
        ],
        schedules=[dg.ScheduleDefinition(f"{settings.pipeline}_n", job=jobs[2], cron_schedule="0 2 * * *")],
    )


def test_a_job_costs_the_same_beside_many_pipelines_as_beside_few(home):
    few, many = (build_defs(settings=settings_of(count)).get_repository_def() for count in (2, 6))
    assert calls(many.load_all_definitions) < 3.1 * calls(few.load_all_definitions)


def test_a_pipeline_costs_little_more_than_what_dagster_takes_for_as_many_definitions(home):
    pipelines = settings_of(2)
    bare = calls(lambda: dg.Definitions.merge(*map(bare_pipeline, pipelines)).get_repository_def())
    ours = calls(lambda: build_defs(settings=pipelines).get_repository_def())
    assert ours < 1.8 * bare


def test_jobs_are_those_that_dagster_resolves_by_itself(home, monkeypatch):
    pipelines = settings_of(2)
    scored = [dg.AssetKey([one.pipeline, "batch_inference"]) for one in pipelines]

    @dg.multi_asset_check(specs=[dg.AssetCheckSpec("theirs", asset=key) for key in scored], can_subset=True)
    def check_of_another_project(): ...

    theirs = dg.Definitions(asset_checks=[check_of_another_project])

    def jobs() -> dict[str, dg.JobDefinition]:
        repository = dg.Definitions.merge(build_defs(settings=pipelines), theirs).get_repository_def()
        return {job.name: job for job in repository.get_all_jobs()}

    def slowly(name: str, keys: Sequence[dg.AssetKey], *, executor: dg.ExecutorDefinition, description: str):
        return dg.define_asset_job(name, list(keys), executor_def=executor, description=description)

    ours = jobs()
    monkeypatch.setattr(jobs_module, "asset_job", slowly)
    expected = jobs()
    assert ours.keys() == expected.keys()
    for name, job in ours.items():
        assert job.get_job_snapshot_id() == expected[name].get_job_snapshot_id()
        layer, other = job.asset_layer, expected[name].asset_layer
        assert layer.selected_asset_keys == other.selected_asset_keys
        assert layer.asset_graph.asset_check_keys == other.asset_graph.asset_check_keys
        assert layer.asset_graph.get_all_asset_keys() == other.asset_graph.get_all_asset_keys()
        assert job.partitions_def == expected[name].partitions_def
        assert job.backfill_policy == expected[name].backfill_policy
    assert dg.AssetCheckKey(scored[0], "theirs") in ours["p0_score_batches"].asset_layer.asset_graph.asset_check_keys

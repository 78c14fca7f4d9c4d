"""Promotion and rollback of models: the rule, the registry, the command line, and the jobs."""

import json
import random
import re
import resource
import shutil
import threading
from pathlib import Path

import dagster as dg
import pytest
from click.testing import CliRunner

from batch_assets.cli import main
from batch_assets.errors import BatchAssetsError
from batch_assets.isolation import end_isolated_process
from batch_assets.models.evaluation import DocumentResult
from batch_assets.models.model_runs import find_run, run_of
from batch_assets.models.promotion import decide, promote_by_hand, promotion_lock, propose, rollback
from batch_assets.models.registry import RegisteredModel
from batch_assets.models.tracking import connect
from batch_assets.operations.promotion import promote_version
from batch_assets.settings import Settings
from batch_assets.tasks.configured_task import task_of
from batch_assets_tests.conftest import log, registered, settings_for
from batch_assets_tests.servers import free_port, serve, stop


def rule(**values) -> Settings:
    return Settings(home=Path("/nowhere"), **values)


def scored(values: list[float], failed: int = 0, baseline: float = 0.3) -> list[DocumentResult]:
    return [DocumentResult(value, baseline, number < failed) for number, value in enumerate(values)]


def decision(candidate, champion=None, **values):
    settings = rule(**values)
    return decide(settings, task_of(settings), candidate, champion)


def test_without_a_champion_a_candidate_is_promoted_unless_it_fails_too_often():
    assert decision(scored([0.1] * 20, failed=1)).is_promoted
    refused = decision(scored([0.9] * 20, failed=2))
    assert not refused.is_promoted
    assert "failed on 10% of 20 documents" in refused.reason
    assert decision(scored([0.9] * 20, failed=2), error_rate=0.1).is_promoted


def test_the_baseline_must_be_beaten_only_if_the_setting_requires_it():
    assert decision(scored([0.2] * 20)).is_promoted
    assert not decision(scored([0.2] * 20), beat_baseline=True).is_promoted
    assert decision(scored([0.4] * 20), beat_baseline=True).is_promoted


def test_a_clearly_worse_candidate_is_always_refused_and_a_clearly_better_one_always_promoted():
    for seed in range(100):
        draw = random.Random(seed)
        champion = [draw.uniform(0.1, 0.6) for _ in range(25)]
        worse = [value - 0.1 + draw.uniform(-0.1, 0.1) for value in champion]
        better = [value + 0.1 + draw.uniform(-0.1, 0.1) for value in champion]
        assert not decision(scored(worse), scored(champion)).is_promoted
        assert decision(scored(better), scored(champion)).is_promoted
        assert decision(scored(champion), scored(champion)).is_promoted


def test_a_decision_includes_the_metrics_of_both_candidate_and_champion():
    refused = decision(scored([0.2] * 10), scored([0.4] * 10))
    assert refused.figures["rouge1"] == pytest.approx(0.2)
    assert refused.figures["champion_rouge1"] == pytest.approx(0.4)
    assert refused.figures["difference_low"] == refused.figures["difference_high"] == pytest.approx(-0.2)
    assert "rouge1 0.200 against the champion's 0.400 on the same 10 documents" in refused.reason
    assert refused.tags()["promotion.decision"] == "refused"
    assert refused.tags()["promotion.champion_rouge1"] == "0.4000"


@pytest.fixture(scope="module")
def logged_pair(tmp_path_factory, t5_folder, held_out):
    """An evaluated run, and a run that was not evaluated, whose model is worse: it stops after five tokens."""
    settings = settings_for(tmp_path_factory.mktemp("pair") / "home", model=str(t5_folder))
    settings, client, version = registered(settings, held_out)
    _, logged = log(settings.model_copy(update={"min_length": 1, "max_length": 5}))
    return settings, run_of(client, version.run_id), logged.run


@pytest.fixture
def registry(request, logged_pair):
    """The two runs as champion and candidate, under a model name specific to the test."""
    settings, good, worse = logged_pair
    client = connect(settings)
    settings = settings.model_copy(update={"model_name": request.node.name})
    model = RegisteredModel.of(client, settings)
    champion, _ = model.register(good, {"task": "summarization"})
    model.promote(champion)
    candidate, _ = model.register(worse, {"checkpoint": "small-t5", "kind": "short"})
    return settings, client, champion, candidate


def aliases(client, version) -> dict[str, int]:
    found = client.get_registered_model(version.name).aliases
    return {alias: int(number) for alias, number in found.items()}


def invoke(settings: Settings, *arguments: str, monkeypatch):
    monkeypatch.setenv("BATCH_ASSETS_HOME", str(settings.home))
    monkeypatch.setenv("BATCH_ASSETS_MODEL", settings.model)
    monkeypatch.setenv("BATCH_ASSETS_MODEL_NAME", settings.model_name)
    monkeypatch.setenv("BATCH_ASSETS_EVALUATION_ROWS", "3")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return CliRunner().invoke(main, arguments)


def test_a_worse_candidate_stays_challenger_and_can_be_promoted_by_hand_and_rolled_back(
    registry, held_out, monkeypatch
):
    settings, client, champion, candidate = registry
    said: list[str] = []
    proposal = propose(RegisteredModel.of(client, settings), settings, candidate, held_out, said.append)
    assert proposal.champion.number == champion.number
    assert not proposal.decision.is_promoted
    assert aliases(client, champion) == {"champion": 1, "challenger": 2}
    tags = {version.number: version.tags for version in RegisteredModel.of(client, settings).versions()}[2]
    assert (tags["promotion.decision"], tags["promotion.against"]) == ("refused", "1")
    assert float(tags["promotion.rouge1"]) < float(tags["promotion.champion_rouge1"])
    # Both models have scored the documents by now, so promoting again loads no model.
    said.clear()
    propose(RegisteredModel.of(client, settings), settings, candidate, held_out, said.append)
    assert not any("evaluated" in line for line in said)

    listed = invoke(settings, "models", "--json", monkeypatch=monkeypatch)
    rows = [json.loads(line) for line in listed.output.splitlines()]
    assert [(row["version"], row["aliases"]) for row in rows] == [("2", "challenger"), ("1", "champion")]
    assert rows[0]["decision"].startswith("refused: rouge1")
    only = invoke(settings, "models", "--tag", "kind=short", "--json", monkeypatch=monkeypatch)
    assert [json.loads(line)["version"] for line in only.output.splitlines()] == ["2"]

    promoted = invoke(settings, "promote", "2", monkeypatch=monkeypatch)
    assert f"version 2 of {champion.name} is the champion; version 1 is now the previous champion" in promoted.output
    assert aliases(client, champion) == {"champion": 2, "previous": 1}
    again = invoke(settings, "promote", "2", monkeypatch=monkeypatch)
    assert "previous" not in again.output
    assert aliases(client, champion) == {"champion": 2, "previous": 1}
    tried = invoke(settings, "try", held_out[0].document, monkeypatch=monkeypatch)
    assert f"version 2 of {champion.name}" in tried.output
    back = invoke(settings, "rollback", monkeypatch=monkeypatch)
    assert f"version 1 of {champion.name} is the champion again" in back.output
    assert aliases(client, champion) == {"champion": 1, "previous": 2}
    unknown = invoke(settings, "promote", "7", monkeypatch=monkeypatch)
    assert (unknown.exit_code, aliases(client, champion)["champion"]) == (2, 1)


def test_the_jobs_promote_and_roll_back_and_report_the_champion(registry):
    from batch_assets.definitions import build_defs

    settings, client, champion, _ = registry
    defs = build_defs(settings=settings)
    with dg.DagsterInstance.ephemeral() as instance:
        config = {"ops": {"promote_champion": {"config": {"version": 2}}}}
        assert defs.get_job_def("promote").execute_in_process(instance=instance, run_config=config).success
        assert aliases(client, champion)["champion"] == 2
        event = instance.get_latest_materialization_event(dg.AssetKey("champion_model"))
        assert event.asset_materialization.tags["dagster/data_version"] == "2"
        assert defs.get_job_def("rollback").execute_in_process(instance=instance).success
        assert aliases(client, champion)["champion"] == 1


def test_rollback_fails_before_there_is_a_second_champion(registry):
    settings, client, _, _ = registry
    with pytest.raises(BatchAssetsError, match=r"no version of .* has the alias previous"):
        rollback(RegisteredModel.of(client, settings))


class KilledError(BaseException):
    """Stands for the end of the process: nothing handles it."""


class DyingClient:
    """MLflow's client in a process that is killed instead of its write number ``writes``, counted from 0."""

    def __init__(self, client, writes: int) -> None:
        self._client, self._writes = client, writes

    def __getattr__(self, name: str):
        method = getattr(self._client, name)
        if not name.startswith(("set_", "delete_")):
            return method

        def write(*arguments, **options):
            if self._writes == 0:
                raise KilledError
            self._writes -= 1
            return method(*arguments, **options)

        return write


def test_a_promotion_that_is_killed_at_any_point_is_completed_or_undone_and_can_be_rolled_back(registry):
    settings, client, champion, _ = registry
    model = RegisteredModel.of(client, settings)
    source = client.get_model_version(champion.name, "1").source
    client.create_model_version(champion.name, source, champion.run_id, model_id=source.removeprefix("models:/"))
    before, after = {"champion": 2, "previous": 1, "challenger": 3}, {"champion": 3, "previous": 2}
    outcomes = []
    for writes in range(6):
        for alias, number in before.items():
            client.set_registered_model_alias(champion.name, alias, str(number))
        killed = False
        try:
            RegisteredModel.of(DyingClient(client, writes), settings).promote(model.version(3))
        except KilledError:
            killed = True
        # Recovery can be killed too.
        for again in range(3):
            try:
                RegisteredModel.of(DyingClient(client, again), settings).finish_promotion()
            except KilledError:
                continue
        model.finish_promotion()
        outcomes.append((killed, aliases(client, champion)))
        expected = {"champion": 2, "previous": 3} if outcomes[-1][1] == after else {"champion": 1, "previous": 2}
        rollback(model)
        assert aliases(client, champion).items() >= expected.items()
    assert outcomes == [*[(True, before)] * 2, *[(True, after)] * 3, (False, after)]
    client.set_registered_model_alias(champion.name, "previous", str(aliases(client, champion)["champion"]))
    with pytest.raises(BatchAssetsError, match="is the champion and the previous champion: promote a version"):
        rollback(model)


def test_a_rollback_that_is_killed_and_repeated_rolls_back_once(registry):
    settings, client, champion, _ = registry
    model = RegisteredModel.of(client, settings)
    for writes in range(8):
        for alias, number in {"champion": 2, "previous": 1}.items():
            client.set_registered_model_alias(champion.name, alias, str(number))
        try:
            rollback(RegisteredModel.of(DyingClient(client, writes), settings))
        except KilledError:
            assert rollback(model).number == 1
        assert aliases(client, champion).items() >= {"champion": 1, "previous": 2}.items()


def test_a_promotion_waits_for_the_one_that_is_running(registry):
    settings, client, champion, _ = registry
    said: list[str] = []
    waits = threading.Event()

    def report(line: str) -> None:
        said.append(line)
        waits.set()

    with promotion_lock(settings, print):
        second = threading.Thread(target=lambda: said.append(promote_version(settings, 2, report)))
        second.start()
        assert waits.wait(60)
        assert said == [f"waiting for another promotion of {champion.name}"]
        assert aliases(client, champion)["champion"] == 1
    second.join(60)
    assert aliases(client, champion)["champion"] == 2


def test_a_version_that_cannot_be_loaded_cannot_be_promoted_by_hand(registry, held_out):
    settings, client, champion, candidate = registry
    weights = [
        path
        for path in settings.artifact_root.rglob("*.safetensors")
        if client.get_run(candidate.run_id).data.tags["batch_assets.model_uri"].removeprefix("models:/") in str(path)
    ]
    assert weights
    before = weights[0].read_bytes()
    weights[0].write_bytes(b"no weights")
    try:
        with pytest.raises(Exception, match=r"(?i)header|safetensors"):
            promote_by_hand(RegisteredModel.of(client, settings), settings, candidate.number, held_out, print)
    finally:
        weights[0].write_bytes(before)
    assert aliases(client, champion)["champion"] == 1


def test_runs_are_found_by_tag(registry):
    settings, client, champion, candidate = registry
    client.set_tag(champion.run_id, "team", "news desk")
    assert find_run(client, settings).run_id == candidate.run_id
    assert find_run(client, settings.model_copy(update={"select_tag": "team=news desk"})).run_id == champion.run_id
    with pytest.raises(BatchAssetsError, match="the tag team=sports"):
        find_run(client, settings.model_copy(update={"select_tag": "team=sports"}))
    client.delete_run(candidate.run_id)
    assert find_run(client, settings).run_id == champion.run_id
    client.restore_run(candidate.run_id)


@pytest.mark.proof
def test_a_shared_mlflow_server_works_and_the_alias_is_unchanged_if_the_server_dies_midway(
    tmp_path, t5_folder, held_out, monkeypatch
):
    port = free_port()
    server = serve(tmp_path / "server", port)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    try:
        url = f"http://127.0.0.1:{port}"
        settings = settings_for(tmp_path / "home", model=str(t5_folder), mlflow_tracking_uri=url)
        settings, client, version = registered(settings, held_out)
        assert aliases(client, version) == {"champion": 1}
        source = client.get_model_version(version.name, "1").source
        client.create_model_version(version.name, source, version.run_id, model_id=source.removeprefix("models:/"))
        client.set_registered_model_alias(version.name, "challenger", "2")
        stop(server)
        with pytest.raises(BatchAssetsError, match="MLflow"):
            promote_by_hand(RegisteredModel.of(connect(settings), settings), settings, 2, held_out, print)
        server = serve(tmp_path / "server", port)
        assert aliases(client, version) == {"champion": 1, "challenger": 2}
        promote_by_hand(RegisteredModel.of(client, settings), settings, 2, held_out, print)
        assert aliases(client, version) == {"champion": 2, "previous": 1}
    finally:
        stop(server)


@pytest.fixture
def small_disk(t5_folder):
    """Simulate a full disk with a file size limit: the database fits, the weights do not."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, ((t5_folder / "model.safetensors").stat().st_size - 1, before[1]))
    # A new process that logs models inherits the limit.
    end_isolated_process()
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    end_isolated_process()


def test_a_disk_that_fills_up_during_logging_leaves_no_model(tmp_path, t5_folder, small_disk):
    with pytest.raises(Exception, match=r"File too large|error while serializing"):
        log(settings_for(tmp_path / "home", model=str(t5_folder)))
    settings = settings_for(tmp_path / "home", model=str(t5_folder))
    client = connect(settings)
    with pytest.raises(BatchAssetsError, match="no finished run with a model"):
        find_run(client, settings)
    assert RegisteredModel.of(client, settings).versions() == []


def test_a_checkpoint_that_does_not_generate_text_is_refused(tmp_path, t5_folder):
    from batch_assets.models.checkpoint_sources import checkpoint_source

    folder = shutil.copytree(t5_folder, tmp_path / "bert")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "architectures": ["BertForMaskedLM"]}))
    with pytest.raises(BatchAssetsError, match="type t5 with the architecture 'BertForMaskedLM' is not supported"):
        checkpoint_source(settings_for(tmp_path / "home", model=str(folder))).check()


def test_a_second_task_works_as_documented(tmp_path, t5_folder, held_out, monkeypatch):
    page = (Path(__file__).parent.parent / "docs" / "tasks.md").read_text()
    (tmp_path / "titles.py").write_text(re.search(r"```python\n(.*?)```", page, re.DOTALL)[1])
    monkeypatch.syspath_prepend(tmp_path)
    home = tmp_path / "home"
    settings = settings_for(home, model=str(t5_folder), task="titles:Titles", model_name="titles")
    settings, client, version = registered(settings, held_out)
    run = client.get_run(version.run_id)
    assert (run.data.params["pipeline"], run.data.params["max_length"]) == ("text2text-generation", "12")
    assert 0 <= run.data.metrics["title_words_low"] <= run.data.metrics["title_words"] <= 1
    assert "lead_title_words" in run.data.metrics
    decided = propose(RegisteredModel.of(client, settings), settings, version, held_out, print)
    assert decided.champion.number == version.number
    with pytest.raises(BatchAssetsError, match="titles:Nothing"):
        task_of(settings.model_copy(update={"task": "titles:Nothing"}))

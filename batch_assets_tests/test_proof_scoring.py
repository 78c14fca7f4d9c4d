"""Scoring at full size: 200 documents through every engine, and a run that is killed halfway."""

import re
import signal
import subprocess
from pathlib import Path

import dagster as dg
import pytest
from aclsum import ACLSum

from batch_assets.engines.catalog import load_engine
from batch_assets.engines.contract import generate
from batch_assets.models.registry import scoring_model
from batch_assets_tests.conftest import (
    BATCH_ASSETS,
    batch_assets,
    environment,
    registered,
    settings_for,
    write_json_lines,
)
from batch_assets_tests.test_engines import margins, predicted, prepared
from batch_assets_tests.test_graph import tables_of

pytestmark = pytest.mark.proof

ROWS = 200


@pytest.fixture(scope="module")
def many() -> list[str]:
    papers = [paper for split in ("test", "train") for paper in ACLSum(split).documents]
    return [" ".join(paper.get_all_sentences(["abstract"])) for paper in papers][:ROWS]


@pytest.fixture(scope="module")
def full_smollm2(tmp_path_factory, smollm2_checkpoints, held_out):
    """The embedded model with its default length: 60 new tokens."""
    home = tmp_path_factory.mktemp("full") / "home"
    home.mkdir()
    (home / "checkpoints").symlink_to(smollm2_checkpoints)
    return registered(settings_for(home), held_out)


@pytest.mark.parametrize("fixture", ["logged_t5", "full_smollm2"])
def test_the_reference_and_the_fast_engine_write_what_pyfunc_predicts_for_200_documents(
    request, fixture, many, held_out, record_property
):
    from batch_assets.models.tracking import connect

    settings, client, version = request.getfixturevalue(fixture)
    connect(settings)
    alone = predicted(version, many)
    reference = scoring_model(client, version, settings.model_copy(update={"engine": "transformers"}))
    assert [generation.text for generation in generate(load_engine(reference, 2), many)] == alone
    fast = prepared((settings, client, version), held_out)
    assert fast.engine in {"ctranslate2", "openvino"}
    generations = generate(load_engine(fast, 2), many)
    apart = margins(fast, many, generations)
    record_property(f"{fast.engine}: rows that differ, and how far the best two tokens were apart", str(apart))
    assert all(margin < 1e-4 for margin in apart)
    assert len(apart) <= 0.02 * ROWS


def test_a_run_killed_halfway_through_200_documents_scores_only_the_rest(
    tmp_path, smollm2_checkpoints, many, record_property
):
    data = write_json_lines(
        tmp_path / "papers.jsonl", [{"id": str(n), "document": text} for n, text in enumerate(many)]
    )

    def home(name: str) -> tuple[Path, dict[str, str]]:
        path = tmp_path / name
        path.mkdir()
        (path / "checkpoints").symlink_to(smollm2_checkpoints)
        values = {"DATASET": str(data), "BATCH_ROWS": str(ROWS), "EVALUATION_ROWS": "3", "AI_QUERY_LIMIT": "1"}
        return path, environment(path, **values)

    whole, env = home("undisturbed")
    assert batch_assets("run", env=env).returncode == 0
    killed, env = home("killed")
    process = subprocess.Popen([*BATCH_ASSETS, "run"], env=env, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    done = 0
    for line in process.stdout:
        found = re.search(r"batch_inference .*\] (\d+) of 200 rows", line.decode())
        done = int(found[1]) if found else done
        if done >= ROWS // 2:
            process.send_signal(signal.SIGKILL)
            break
    process.wait()
    assert done >= ROWS // 2
    run = batch_assets("run", env=env)
    assert run.returncode == 0, run.stdout + run.stderr
    scored = int(re.search(r"200 rows committed in \d+ s, (\d+) scored", run.stdout)[1])
    record_property("done before the kill, scored after it", f"{done}, {scored}")
    # Progress counts only rows that are already written; a flush by each of the two workers adds a few rows.
    assert scored <= ROWS - done
    assert tables_of(killed / "lake") == tables_of(whole / "lake")
    again = batch_assets("run", env=env)
    assert "committed" not in again.stdout
    instance = dg.DagsterInstance.from_config(str(killed / "dagster"))
    (last,) = instance.get_runs(limit=1)
    (step,) = instance.get_run_step_stats(last.run_id, ["batch_inference"])
    record_property("seconds of scoring a batch that is not stale", step.end_time - step.start_time)
    assert step.end_time - step.start_time < 5

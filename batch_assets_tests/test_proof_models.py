"""Models at full size: a version in a separate environment, and promotions of planted models."""

import json
import random
import subprocess
import sys
import venv

import pytest
from aclsum import ACLSum

from batch_assets.models.evaluation import results_on
from batch_assets.models.model_runs import find_run
from batch_assets.models.promotion import decide
from batch_assets.models.registry import run_model
from batch_assets.sources.records import Document
from batch_assets.tasks.configured_task import task_of
from batch_assets_tests.conftest import log

pytestmark = pytest.mark.proof

_DRAWS, _DOCUMENTS = 100, 25


def test_a_version_predicts_in_a_new_environment_built_from_its_requirements(t5_version, documents, tmp_path):
    import mlflow

    _, _, version = t5_version
    folder = mlflow.artifacts.download_artifacts(version.uri, dst_path=str(tmp_path / "model"))
    texts = [row["document"] for row in documents[:3]]
    expected = mlflow.pyfunc.load_model(version.uri).predict(texts)
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv" / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "-q", "-r", f"{folder}/requirements.txt"], check=True)
    program = (
        "import json, sys, mlflow; "
        "print(json.dumps(list(mlflow.pyfunc.load_model(sys.argv[1]).predict(json.loads(sys.argv[2])))))"
    )
    missing = subprocess.run([python, "-I", "-c", "import batch_assets"], cwd=tmp_path, capture_output=True)
    assert missing.returncode != 0
    (tmp_path / "program.py").write_text(program)
    done = subprocess.run(
        [python, "-I", str(tmp_path / "program.py"), folder, json.dumps(texts)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout.splitlines()[-1]) == list(expected)
    assert sys.executable != str(python)


def test_a_planted_worse_model_is_always_refused_and_a_better_one_always_promoted(t5_version, record_property):
    from batch_assets.engines.transformers_engine import TransformersEngine

    settings, client, _ = t5_version
    task = task_of(settings)
    papers = [
        Document(paper.id, " ".join(paper.get_all_sentences(["abstract"])), paper.summaries["outcome"], "aclsum/train")
        for paper in ACLSum("train").documents
    ]
    good = find_run(client, settings)
    # The same weights, but output is limited to five tokens.
    _, planted = log(settings.model_copy(update={"min_length": 1, "max_length": 5}))

    def scored(run):
        load = lambda: TransformersEngine(run_model(run, settings), 2)  # noqa: E731
        return results_on(client, run.run_id, task, papers, load, print)

    try:
        whole, short = scored(good), scored(planted.run)
    finally:
        client.delete_run(planted.run.run_id)
    draw = random.Random(0)
    refused = promoted = 0
    for _ in range(_DRAWS):
        places = draw.sample(range(len(papers)), _DOCUMENTS)
        some_whole, some_short = [whole[place] for place in places], [short[place] for place in places]
        refused += not decide(settings, task, some_short, some_whole).is_promoted
        promoted += decide(settings, task, some_whole, some_short).is_promoted
    record_property("worse refused, better promoted, of 100", f"{refused}, {promoted}")
    assert (refused, promoted) == (_DRAWS, _DRAWS)

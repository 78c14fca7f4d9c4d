import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from batch_assets.errors import BatchAssetsError
from batch_assets.models.checkpoint_sources import checkpoint_source
from batch_assets.models.model_runs import MODEL_URI_TAG, TASK_TAG, WANTED_TAG, find_run, newest_run
from batch_assets.models.registry import RegisteredModel, predict
from batch_assets.models.tracking import connect, experiment_id
from batch_assets_tests.conftest import log, settings_for


def test_a_run_records_everything_needed_to_use_its_version(t5_version):
    import mlflow

    _, client, version = t5_version
    run = client.get_run(version.run_id)
    assert run.data.params["checkpoint"] == "small-t5"
    assert (run.data.params["min_length"], run.data.params["max_length"]) == ("20", "40")
    assert run.data.params["do_sample"] == "False"
    assert [item.dataset.name for item in run.inputs.dataset_inputs] == ["aclsum/test", "val"]
    model = mlflow.models.get_model_info(run.data.tags[MODEL_URI_TAG])
    assert model.signature.inputs.to_dict() == [{"type": "string", "required": True}]
    assert model.signature.outputs.to_dict() == [{"type": "string", "required": True}]
    folder = mlflow.artifacts.download_artifacts(version.uri)
    names = {str(path.relative_to(folder)) for path in sorted(Path(folder).rglob("*"))}
    assert {"model_card.md", "requirements.txt", "input_example.json"} <= names
    assert any(name.endswith(".safetensors") for name in names)
    assert not any(name.endswith((".bin", ".pt", ".pkl")) for name in names)
    requirements = (Path(folder) / "requirements.txt").read_text()
    assert all("==" in line for line in requirements.split())


def test_the_logged_t5_keeps_its_prefix(t5_version):
    import mlflow

    _, _, version = t5_version
    assert mlflow.transformers.load_model(version.uri).prefix == "summarize: "


def test_the_small_t5_repeats_the_start_of_a_document(t5_version, documents):
    _, _, version = t5_version
    for text in [row["document"] for row in documents[:5]]:
        first = text.split()[0]
        assert first.lower()[:3] in predict(version, [text])[0].lower()


def test_a_model_is_logged_and_registered_again_only_after_it_changed(t5_version, t5_folder):
    settings, client, version = t5_version
    model = RegisteredModel.of(client, settings)
    _, again = log(settings)
    assert not again.is_new
    known, is_new = model.register(again.run, {})
    assert (known.number, known.run_id, is_new) == (version.number, version.run_id, False)
    longer = settings.model_copy(update={"max_length": 50})
    _, changed = log(longer)
    assert changed.is_new
    newer, is_new = model.register(changed.run, {})
    assert is_new
    assert newer.number == version.number + 1
    assert model.champion().number == version.number
    assert model.promote(newer).number == version.number
    assert model.with_alias("previous").number == version.number
    model.promote(version)


def test_version_numbers_are_compared_as_numbers(t5_version):
    import mlflow

    _, client, version = t5_version
    name = "main.default.many"
    uri = client.get_run(version.run_id).data.tags[MODEL_URI_TAG]
    for _ in range(10):
        mlflow.register_model(uri, name)
    assert [found.number for found in RegisteredModel(client, name).versions()] == list(range(10, 0, -1))


def test_runs_are_selected_by_age_or_by_metric_and_unfinished_runs_are_ignored(t5_version):
    settings, client, _ = t5_version
    experiment = experiment_id(client, settings)
    made = []

    def run(status, rouge1, model="models:/m-x"):
        created = client.create_run(experiment)
        client.set_tag(created.info.run_id, "batch_assets.digest", "d")
        client.set_tag(created.info.run_id, TASK_TAG, settings.task)
        client.set_tag(created.info.run_id, WANTED_TAG, f"{10**14 + len(made):015d}")
        made.append(created.info.run_id)
        if model:
            client.set_tag(created.info.run_id, MODEL_URI_TAG, model)
        client.log_metric(created.info.run_id, "score", rouge1)
        client.set_terminated(created.info.run_id, status)
        return created.info.run_id

    best = run("FINISHED", 0.5)
    newest = run("FINISHED", 0.4)
    failed = run("FAILED", 0.9)
    killed = run("FINISHED", 0.8, model=None)
    assert newest_run(client, settings).run_id == newest
    assert find_run(client, settings.model_copy(update={"select_by": "score"})).run_id == best
    with pytest.raises(BatchAssetsError, match="metric nothing"):
        find_run(client, settings.model_copy(update={"select_by": "nothing"}))
    assert made == [best, newest, failed, killed]
    for run_id in made:
        client.delete_run(run_id)


def test_a_logged_model_predicts_without_importing_this_package(llama_version, documents):
    settings, _, version = llama_version
    program = f"""
import sys
from pathlib import Path
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "batch_assets":
            raise ImportError(name)
sys.meta_path.insert(0, Refuse())
import json, mlflow, pandas
mlflow.set_tracking_uri({settings.tracking_uri!r})
model = mlflow.pyfunc.load_model({version.uri!r})
text = {documents[0]["document"]!r}
print(json.dumps([model.predict(text), model.predict([text, text]), list(model.predict(pandas.Series([text])))]))
"""
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    one, several, series = json.loads(run.stdout.splitlines()[-1])
    summary = one if isinstance(one, str) else one[0]
    assert len(summary.split()) > 5
    assert several == [summary, summary]
    assert series == [summary]


def broken(folder, tmp_path, remove=(), config=None):
    copy = tmp_path / "broken"
    shutil.copytree(folder, copy)
    for name in remove:
        for path in copy.glob(name):
            path.unlink()
    if config:
        content = json.loads((copy / "config.json").read_text())
        (copy / "config.json").write_text(json.dumps({**content, **config}))
    return copy


@pytest.mark.parametrize(
    ("remove", "config", "message"),
    [
        (["tokenizer*", "special_tokens*"], None, "no usable tokenizer"),
        (["*.safetensors"], None, "safetensors"),
        (["config.json"], None, "config.json"),
        ([], {"auto_map": {"AutoModel": "evil.Model"}}, "its own code"),
    ],
)
def test_an_unusable_model_folder_is_refused_before_anything_is_created(
    t5_folder, tmp_path, home, remove, config, message
):
    folder = broken(t5_folder, tmp_path, remove, config)
    with pytest.raises(BatchAssetsError, match=message):
        checkpoint_source(settings_for(home, model=str(folder))).check()
    assert not home.exists()


def test_a_damaged_tokenizer_is_detected_without_transformers(t5_folder, tmp_path, home):
    folder = broken(t5_folder, tmp_path)
    settings = settings_for(home, model=str(folder))
    checkpoint_source(settings).check(quickly=True)
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(BatchAssetsError, match="no usable tokenizer"):
        checkpoint_source(settings).check(quickly=True)


def test_an_unreachable_hub_model_suggests_the_embedded_model(home):
    with pytest.raises(BatchAssetsError, match="BATCH_ASSETS_MODEL=smollm2"):
        checkpoint_source(settings_for(home, model="t5-small")).check()


def test_corrupt_weights_leave_no_finished_run(t5_folder, tmp_path, home):
    folder = broken(t5_folder, tmp_path)
    (folder / "model.safetensors").write_bytes(b"not weights")
    settings = settings_for(home, model=str(folder))
    with pytest.raises(BatchAssetsError, match="can't be loaded"):
        log(settings)
    with pytest.raises(BatchAssetsError, match="no finished run"):
        newest_run(connect(settings), settings)

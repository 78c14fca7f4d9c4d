import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from batch_assets.errors import BatchAssetsError
from batch_assets.inference.engines import load_engine
from batch_assets.inference.transformers_engine import TransformersEngine
from batch_assets.models.checkpoint import check_checkpoint, load_checkpoint
from batch_assets.models.engines import generation_difference
from batch_assets.models.logged import log_checkpoint
from batch_assets.models.registry import (
    champion,
    predict,
    prepare_engine,
    promote,
    register,
    scoring_model,
    versions,
    with_alias,
)
from batch_assets.models.runs import MODEL_URI_TAG, WANTED_TAG, find_run, newest_run
from batch_assets.models.tracking import connect, experiment_id
from batch_assets.sources.aclsum import ACLSumDataset
from batch_assets_tests.conftest import settings_for


def log(settings, example="Some text to summarize."):
    client = connect(settings)
    dataset = ACLSumDataset("test", 25)
    return client, log_checkpoint(client, settings, load_checkpoint(settings), dataset, example, lambda line: None)


@pytest.fixture(scope="module")
def texts(documents):
    return [row["document"] for row in documents[:5]]


@pytest.fixture(scope="module")
def logged_t5(tmp_path_factory, t5_folder, documents):
    """A registered champion made from the small T5: settings, client, version."""
    settings = settings_for(tmp_path_factory.mktemp("t5") / "home", model=str(t5_folder))
    client, logged = log(settings, documents[0]["document"])
    version, _ = register(client, settings.registered_model, logged.run, {"task": "summarization"})
    promote(client, version)
    return settings, client, version


@pytest.fixture(scope="module")
def logged_smollm2(tmp_path_factory, smollm2_checkpoints, documents):
    """A registered version of the embedded model: settings, client, version."""
    home = tmp_path_factory.mktemp("smollm2") / "home"
    home.mkdir()
    (home / "checkpoints").symlink_to(smollm2_checkpoints)
    settings = settings_for(home, max_length=20)
    client, logged = log(settings, documents[0]["document"])
    version, _ = register(client, settings.registered_model, logged.run, {})
    return settings, client, version


@pytest.fixture
def t5_version(logged_t5):
    # MLflow has one store a process; the last test may have used another one.
    connect(logged_t5[0])
    return logged_t5


@pytest.fixture
def smollm2_version(logged_smollm2):
    connect(logged_smollm2[0])
    return logged_smollm2


def test_a_run_has_all_that_a_user_of_the_version_needs(t5_version):
    import mlflow

    _, client, version = t5_version
    run = client.get_run(version.run_id)
    assert run.data.params["checkpoint"] == "small-t5"
    assert (run.data.params["min_length"], run.data.params["max_length"]) == ("20", "40")
    assert run.data.params["do_sample"] == "False"
    assert [item.dataset.name for item in run.inputs.dataset_inputs] == ["aclsum/test"]
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


def test_the_logged_t5_still_knows_its_prefix(t5_version):
    import mlflow

    _, _, version = t5_version
    assert mlflow.transformers.load_model(version.uri).prefix == "summarize: "


@pytest.mark.parametrize("fixture", ["t5_version", "smollm2_version"])
def test_the_engine_writes_what_pyfunc_predicts_row_by_row(request, fixture, texts):
    settings, client, version = request.getfixturevalue(fixture)
    model = scoring_model(client, version, settings)
    generations = TransformersEngine(model, 2).generate(texts)
    assert [generation.text for generation in generations] == [predict(version, [text])[0] for text in texts]
    limit = model.parameters.get("max_new_tokens") or model.parameters["max_length"]
    for generation in generations:
        assert generation.error_message is None
        assert generation.output_tokens <= limit
        assert generation.finish_reason == ("length" if generation.output_tokens == limit else "stop")


def test_ctranslate2_writes_what_pyfunc_predicts_row_by_row(t5_version, documents):
    settings, client, version = t5_version
    lines: list[str] = []
    prepare_engine(client, version, settings, lines.append)
    prepare_engine(client, version, settings, lines.append)
    assert lines == ["converted for CTranslate2"]
    model = scoring_model(client, version, settings)
    assert (model.engine, model.engine_reason) == ("ctranslate2", "the fastest with the reference's output")
    texts = [row["document"] for row in documents[:20]]
    generations = load_engine(model, 2).generate(texts)
    reference = TransformersEngine(dataclasses.replace(model, engine="transformers"), 2).generate(texts)
    assert generations == reference
    assert [generation.text for generation in generations[:5]] == [predict(version, [text])[0] for text in texts[:5]]
    assert {generation.finish_reason for generation in generations} <= {"stop", "length"}


def test_ctranslate2_cuts_and_marks_long_input_as_the_reference_does(t5_version, texts):
    settings, client, version = t5_version
    prepare_engine(client, version, settings, lambda line: None)
    model = scoring_model(client, version, settings)
    documents = [" ".join(texts) * 12, "", "\U0001f642", texts[0]]
    reference = TransformersEngine(dataclasses.replace(model, engine="transformers"), 2).generate(documents)
    assert load_engine(model, 1).generate(documents) == reference
    assert [generation.input_truncated for generation in reference] == [True, False, False, False]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"engine": "transformers"}, "named by BATCH_ASSETS_ENGINE"),
        ({"dtype": "bfloat16"}, "BATCH_ASSETS_DTYPE is bfloat16"),
        ({"device_map": "cuda"}, "goes to a GPU"),
    ],
)
def test_auto_takes_the_reference_where_ctranslate2_would_not_write_the_same(t5_version, changes, reason):
    settings, client, version = t5_version
    prepare_engine(client, version, settings, lambda line: None)
    model = scoring_model(client, version, settings.model_copy(update=changes))
    assert model.engine == "transformers"
    assert reason in model.engine_reason


def test_ctranslate2_is_refused_by_name_for_a_decoder_only_model(smollm2_version):
    settings, client, version = smollm2_version
    assert scoring_model(client, version, settings).engine == "transformers"
    with pytest.raises(BatchAssetsError, match="the model is no encoder-decoder"):
        scoring_model(client, version, settings.model_copy(update={"engine": "ctranslate2"}))


@pytest.mark.parametrize(
    ("change", "refusal"),
    [
        ({"early_stopping": False}, "early_stopping is not true"),
        ({"renormalize_logits": None}, "renormalize_logits is not true"),
        ({"repetition_penalty": 1.2}, "its generation sets repetition_penalty"),
        ({"do_sample": True}, "it samples"),
        ({"num_beams": 1, "renormalize_logits": None}, None),
    ],
)
def test_a_generation_that_ctranslate2_would_do_otherwise_is_not_converted(t5_version, change, refusal):
    import mlflow

    _, _, version = t5_version
    pipeline = mlflow.transformers.load_model(version.uri)
    wanted, _ = pipeline.model._prepare_generation_config(
        pipeline.generation_config, **{"renormalize_logits": True, "max_new_tokens": None, **change}
    )
    found = generation_difference(wanted)
    assert found is None if refusal is None else refusal in found


def test_the_small_t5_says_something(t5_version, texts):
    _, _, version = t5_version
    for text in texts:
        first = text.split()[0]
        assert first.lower()[:3] in predict(version, [text])[0].lower()


def test_input_that_is_too_long_is_cut_and_marked(t5_version, smollm2_version, texts):
    for settings, client, version in (t5_version, smollm2_version):
        connect(settings)
        long = " ".join(texts) * 12
        short, cut = TransformersEngine(scoring_model(client, version, settings), 2).generate([texts[0], long])
        assert not short.input_truncated
        assert cut.input_truncated
        assert cut.text


def test_a_row_that_fails_keeps_its_error_and_its_neighbours_their_text(t5_version, texts):
    settings, client, version = t5_version
    engine = TransformersEngine(scoring_model(client, version, settings), 2)
    alone = engine.generate([texts[0]])[0].text
    generate = engine._pipeline.model.generate
    poison = engine._tokenizer("summarize: poison").input_ids

    def fail_on_poison(input_ids, **options):
        if any(row[: len(poison)] == poison for row in input_ids.tolist()):
            raise RuntimeError("bad row")
        return generate(input_ids=input_ids, **options)

    engine._pipeline.model.generate = fail_on_poison
    good, bad, empty = engine.generate([texts[0], "poison", ""])
    assert good.text == alone
    assert (bad.text, bad.error_message) == (None, "RuntimeError: bad row")
    assert empty.error_message is None


def test_sampling_says_the_same_again_whatever_the_neighbours(t5_folder, tmp_path, texts):
    settings = settings_for(tmp_path / "home", model=str(t5_folder), do_sample=True, seed=3)
    client, logged = log(settings)
    version, _ = register(client, settings.registered_model, logged.run, {})
    # The version samples, also where settings don't say so any more, as after a rollback.
    now = settings.model_copy(update={"do_sample": False})
    prepare_engine(client, version, now, lambda line: None)
    chosen = scoring_model(client, version, now)
    assert (chosen.engine, "it samples" in chosen.engine_reason) == ("transformers", True)
    engine = TransformersEngine(scoring_model(client, version, settings), 2)
    first = [generation.text for generation in engine.generate(texts)]
    again = [generation.text for generation in engine.generate(list(reversed(texts)))]
    assert first == list(reversed(again))
    other = TransformersEngine(scoring_model(client, version, settings.model_copy(update={"seed": 4})), 2)
    assert [generation.text for generation in other.generate(texts)] != first


def test_an_unchanged_model_is_neither_logged_nor_registered_twice_and_a_changed_one_is(t5_version, t5_folder):
    settings, client, version = t5_version
    _, again = log(settings)
    assert not again.is_new
    assert register(client, settings.registered_model, again.run, {}) == (version, False)
    longer = settings.model_copy(update={"max_length": 50})
    _, changed = log(longer)
    assert changed.is_new
    newer, is_new = register(client, settings.registered_model, changed.run, {})
    assert is_new
    assert newer.number == version.number + 1
    assert champion(client, settings).number == version.number
    assert promote(client, newer).number == version.number
    assert with_alias(client, settings.registered_model, "previous").number == version.number
    promote(client, version)


def test_version_numbers_are_compared_as_numbers(t5_version):
    import mlflow

    _, client, version = t5_version
    name = "main.default.many"
    uri = client.get_run(version.run_id).data.tags[MODEL_URI_TAG]
    for _ in range(10):
        mlflow.register_model(uri, name)
    assert [found.number for found in versions(client, name)] == list(range(10, 0, -1))


def test_runs_are_found_by_newest_and_by_best_metric_and_unfinished_ones_never(t5_version):
    settings, client, _ = t5_version
    experiment = experiment_id(client, settings)
    made = []

    def run(status, rouge1, model="models:/m-x"):
        created = client.create_run(experiment)
        client.set_tag(created.info.run_id, "batch_assets.digest", "d")
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


def test_a_logged_model_predicts_with_nothing_of_ours_imported(smollm2_version, documents):
    settings, _, version = smollm2_version
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
        (["tokenizer*", "special_tokens*"], None, "no tokenizer"),
        (["*.safetensors"], None, "safetensors"),
        (["config.json"], None, "config.json"),
        ([], {"auto_map": {"AutoModel": "evil.Model"}}, "code of its own"),
    ],
)
def test_a_model_folder_that_cannot_be_used_is_refused_before_anything_is_done(
    t5_folder, tmp_path, home, remove, config, message
):
    folder = broken(t5_folder, tmp_path, remove, config)
    with pytest.raises(BatchAssetsError, match=message):
        check_checkpoint(settings_for(home, model=str(folder)))
    assert not home.exists()


def test_a_model_of_the_hub_that_cannot_be_reached_names_the_embedded_one(home):
    with pytest.raises(BatchAssetsError, match="BATCH_ASSETS_MODEL=smollm2"):
        check_checkpoint(settings_for(home, model="t5-small"))


def test_corrupt_weights_leave_no_run_with_a_model(t5_folder, tmp_path, home):
    folder = broken(t5_folder, tmp_path)
    (folder / "model.safetensors").write_bytes(b"not weights")
    settings = settings_for(home, model=str(folder))
    with pytest.raises(BatchAssetsError, match="can't be loaded"):
        log(settings)
    with pytest.raises(BatchAssetsError, match="no finished run"):
        newest_run(connect(settings), settings)

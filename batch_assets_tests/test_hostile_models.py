"""A model's own code never runs, whatever its folder contains and whichever command loads it first."""

import ast
import inspect
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from batch_assets.cli import main
from batch_assets.engines.catalog import load_engine
from batch_assets.engines.contract import ScoringModel
from batch_assets.engines.model_files import MODEL_TYPES, TOKENIZERS, check_mlflow_model, check_model_folder
from batch_assets.errors import BatchAssetsError
from batch_assets.models.checkpoint_sources import checkpoint_source
from batch_assets.models.model_runs import DIGEST_TAG
from batch_assets.models.tracking import connect
from batch_assets.scoring.model_artifacts import Artifact
from batch_assets_tests import hostile_models
from batch_assets_tests.conftest import settings_for

PACKAGE = Path(__file__).parent.parent / "batch_assets"


def named(cases):
    return [pytest.param(*case, id=case[0].__name__) for case in cases.items()]


@pytest.fixture
def trace(tmp_path) -> Path:
    """The file that a model's code creates when it runs."""
    return tmp_path / "code-ran"


@pytest.fixture
def modules(tmp_path, monkeypatch):
    """Make transformers store model code here instead of in the user's cache."""
    import transformers.dynamic_module_utils as dynamic

    monkeypatch.setattr(dynamic, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr("sys.path", [str(tmp_path / "modules"), *__import__("sys").path])


def invoke(home: Path, *arguments: str, **settings: str):
    environment = {"BATCH_ASSETS_HOME": str(home), **{f"BATCH_ASSETS_{key}": value for key, value in settings.items()}}
    return CliRunner(env=environment).invoke(main, list(arguments))


@pytest.mark.parametrize(("make_hostile", "message"), named(hostile_models.CHECKPOINTS))
def test_every_command_refuses_a_hostile_checkpoint_before_its_code_runs(
    t5_folder, tmp_path, home, trace, make_hostile, message
):
    folder = shutil.copytree(t5_folder, tmp_path / "hostile")
    make_hostile(folder, trace)
    examined = invoke(home, "doctor", "--json", MODEL=str(folder))
    problems = [one for one in json.loads(examined.stdout)["findings"] if one["level"] == "problem"]
    assert any(one["what"] == "model" and re.search(message, one["found"]) for one in problems), problems
    ran = invoke(home, "run", MODEL=str(folder))
    assert ran.exit_code == 2, ran.output
    assert re.search(message, ran.output), ran.output
    with pytest.raises(BatchAssetsError, match=message):
        checkpoint_source(settings_for(home, model=str(folder))).load()
    assert not trace.exists()


def test_the_hostile_checkpoints_run_their_code_when_nothing_checks_them(t5_folder, tmp_path, trace, modules):
    from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

    nested = shutil.copytree(t5_folder, tmp_path / "nested")
    hostile_models.nested_configuration(nested, trace)
    try:
        AutoTokenizer.from_pretrained(nested, trust_remote_code=False)
    except Exception as error:
        assert trace.exists(), error
    trace.unlink()

    generating = shutil.copytree(t5_folder, tmp_path / "generating")
    hostile_models.custom_generate(generating, trace)
    AutoModelForSeq2SeqLM.from_pretrained(generating, trust_remote_code=False)
    assert trace.exists()


@pytest.fixture(scope="session")
def logged_folder(logged_t5) -> Path:
    """The folder of a valid logged model."""
    import mlflow

    settings, _, version = logged_t5
    connect(settings)
    return Path(mlflow.artifacts.download_artifacts(version.uri)).resolve()


def hostile_version(logged_folder: Path, folder: Path, trace: Path, make_hostile) -> Path:
    shutil.copytree(logged_folder, folder)
    make_hostile(folder, trace)
    return folder


def test_the_hostile_versions_run_their_code_when_nothing_checks_them(logged_folder, tmp_path, trace, modules):
    import mlflow

    for make_hostile in (
        hostile_models.pickled_python_model,
        hostile_models.loader_of_its_own,
        hostile_models.unknown_model_class,
        hostile_models.unknown_tokenizer_class,
        hostile_models.code_in_the_parameters,
    ):
        folder = hostile_version(logged_folder, tmp_path / make_hostile.__name__, trace, make_hostile)
        try:
            mlflow.pyfunc.load_model(str(folder)).predict("Some text.")
        except Exception as error:
            assert trace.exists(), (make_hostile.__name__, error)
        assert trace.exists(), make_hostile.__name__
        trace.unlink()


@pytest.mark.parametrize(("make_hostile", "message"), named(hostile_models.VERSIONS))
def test_a_worker_refuses_a_hostile_version_it_downloaded(
    logged_folder, tmp_path, monkeypatch, trace, make_hostile, message
):
    folder = hostile_version(logged_folder, tmp_path / "hostile", trace, make_hostile)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    fetched = Artifact.of(str(folder), folder.as_uri()).fetch()
    with pytest.raises(BatchAssetsError, match=message):
        load_engine(scoring(fetched), 1)
    assert not trace.exists()


def scoring(path: str) -> ScoringModel:
    parameters = {"max_length": 20}
    return ScoringModel("m", 1, "d", path, parameters, None, engine="transformers", dtype="float32", seed=0)


@pytest.fixture(scope="module")
def registry_of_others(logged_folder, tmp_path_factory):
    """The settings of a home with hostile versions in its registry, and the file that their code creates."""
    folder = tmp_path_factory.mktemp("registry")
    settings, trace = settings_for(folder / "home"), folder / "code-ran"
    client = connect(settings)
    experiment = client.get_experiment_by_name(settings.experiment).experiment_id
    client.create_registered_model(settings.registered_model)
    for make_hostile in hostile_models.VERSIONS:
        run = client.create_run(experiment)
        made = hostile_version(logged_folder, folder / make_hostile.__name__, trace, make_hostile)
        client.log_artifacts(run.info.run_id, str(made), "model")
        source = f"{run.info.artifact_uri}/model"
        client.create_model_version(settings.registered_model, source, run.info.run_id, tags={DIGEST_TAG: "d"})
    return settings, trace


@pytest.mark.parametrize(("make_hostile", "message"), named(hostile_models.VERSIONS))
def test_promote_and_try_refuse_a_hostile_version_registered_by_another_client(
    registry_of_others, make_hostile, message
):
    settings, trace = registry_of_others
    client, name = connect(settings), settings.registered_model
    number = str(list(hostile_models.VERSIONS).index(make_hostile) + 1)
    promoted = invoke(settings.home, "promote", number)
    assert promoted.exit_code == 2, promoted.output
    assert re.search(message, promoted.output), promoted.output
    assert client.get_registered_model(name).aliases.get("champion") != number

    client.set_registered_model_alias(name, "champion", number)
    tried = invoke(settings.home, "try", "Some text.")
    assert tried.exit_code == 2, tried.output
    assert re.search(message, tried.output), tried.output
    assert not trace.exists()


def test_versions_registered_by_another_client_are_listed_without_loading_them(registry_of_others):
    settings, trace = registry_of_others
    listed = invoke(settings.home, "models", "--json")
    assert len(listed.stdout.splitlines()) == len(hostile_models.VERSIONS)
    assert not trace.exists()


def test_the_stock_spark_udf_refuses_a_hostile_version(logged_folder, tmp_path, trace):
    from batch_assets.scoring.spark_udf import score_with_spark_udf

    make_hostile = hostile_models.pickled_python_model
    folder = hostile_version(logged_folder, tmp_path / "hostile", trace, make_hostile)
    with pytest.raises(BatchAssetsError, match=hostile_models.VERSIONS[make_hostile]):
        score_with_spark_udf(None, None, replace(scoring(str(folder)), engine="mlflow"), None)
    assert not trace.exists()


def test_a_vocabulary_may_contain_any_token(t5_folder, tmp_path):
    folder = shutil.copytree(t5_folder, tmp_path / "model")
    tokens = {"auto_map": 7, "trust_remote_code": 8, "model_type": 9}
    content = json.loads((folder / "tokenizer.json").read_text())
    content["model"]["vocab"] |= tokens
    (folder / "tokenizer.json").write_text(json.dumps(content))
    (folder / "vocab.json").write_text(json.dumps(tokens))
    check_model_folder(folder)
    (folder / "vocab.json").write_text(json.dumps({**tokens, "auto_map": {"AutoModel": "evil.Model"}}))
    with pytest.raises(BatchAssetsError, match=r"vocab\.json has the key auto_map"):
        check_model_folder(folder)


def test_models_logged_by_this_package_are_accepted(logged_folder, llama_version):
    import mlflow

    check_mlflow_model(logged_folder)
    check_mlflow_model(Path(mlflow.artifacts.download_artifacts(llama_version[2].uri)))


def test_no_supported_model_type_has_a_configuration_that_loads_another():
    from transformers import CONFIG_MAPPING
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
    )

    known = {**MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, **MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES}
    for kind, architectures in MODEL_TYPES.items():
        assert known[kind] == architectures[0]
        configuration = CONFIG_MAPPING[kind]
        assert not configuration.sub_configs, kind
        code = inspect.getsource(configuration)
        assert not re.search(r"AutoConfig|CONFIG_MAPPING|trust_remote_code|^[^>]*from_pretrained\(", code, re.M), kind


def test_every_supported_tokenizer_belongs_to_transformers_and_unpickles_nothing():
    import transformers

    for name in TOKENIZERS:
        found = [one for one in (name, f"{name}Fast") if hasattr(transformers, one)]
        assert found, name
        for one in found:
            # Classes that need a missing package are placeholders without code.
            module = Path(inspect.getfile(transformers)).parent / Path(
                *getattr(transformers, one).__module__.split(".")[1:]
            )
            code = module.with_suffix(".py").read_text()
            assert not re.search(
                r"pickle\.load\(|torch\.load\(|^[^>]*AutoTokenizer\.from_pretrained\(\w+_path", code, re.M
            ), one


# Functions that load files written moments earlier by themselves or by an installed dependency.
OWN_FILES = {"smollm2.py:_convert", "openvino_engine.py:_export", "ctranslate2_engine.py:convert"}
# Functions that receive a Checkpoint, which is checked when it is created.
CHECKED_BEFORE = {"checkpoint.py:check_tokenizer", "transformers_pipeline.py:build_pipeline"}


def test_no_function_loads_an_unchecked_model():
    loads = {"from_pretrained", "load_model", "spark_udf", "TransformersConverter"}
    checks = {"check_mlflow_model", "check_model_folder", "_fetch"}
    found = set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.FunctionDef):
                continue
            functions = [call.func for call in ast.walk(node) if isinstance(call, ast.Call)]
            called = {one.attr if isinstance(one, ast.Attribute) else ast.unparse(one) for one in functions}
            makes_pipeline = "transformers.pipeline" in map(ast.unparse, functions)
            if (makes_pipeline or called & loads) and not called & checks:
                found.add(f"{path.name}:{node.name}")
    assert found == OWN_FILES | CHECKED_BEFORE

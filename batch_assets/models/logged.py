"""Log a checkpoint as an MLflow model, with everything that users of the version need."""

import hashlib
import importlib.metadata
import json
import platform
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from batch_assets.isolation import isolated
from batch_assets.mlflow_client import MlflowClient
from batch_assets.models.checkpoint import Checkpoint
from batch_assets.models.model_runs import (
    DIGEST_TAG,
    IDENTITY_TAG,
    MODEL_URI_TAG,
    TASK_TAG,
    WANTED_TAG,
    ModelRun,
    search_runs,
)
from batch_assets.models.samples import keep_samples
from batch_assets.models.tracking import connect
from batch_assets.models.transformers_pipeline import build_pipeline, generation_parameters, prompt_template
from batch_assets.settings import Settings
from batch_assets.sources.dataset import Dataset
from batch_assets.tasks.configured_task import task_of
from batch_assets.tasks.task import Task

# Name of the sample that is logged with a run.
EXAMPLE = "example"

# What the process that logs a model yields.
_MESSAGE, _RUN = "message", "run"

_REQUIRED = ("mlflow", "transformers", "torch", "accelerate", "pandas")


@dataclass(frozen=True)
class LoggedModel:
    """A run with a logged model."""

    run: ModelRun
    is_new: bool
    parameters: dict[str, Any]


@dataclass(frozen=True)
class _Inputs:
    """The data set to score: its name, its URI, and a digest of its parts."""

    name: str
    uri: str
    digest: str

    def as_mlflow_dataset(self) -> Any:
        """The data set as an input of an MLflow run."""
        from mlflow.data.code_dataset_source import CodeDatasetSource
        from mlflow.data.http_dataset_source import HTTPDatasetSource
        from mlflow.data.meta_dataset import MetaDataset

        is_page = self.uri.startswith("https://")
        source = HTTPDatasetSource(self.uri) if is_page else CodeDatasetSource(tags={"uri": self.uri})
        return MetaDataset(source, name=self.name, digest=self.digest)


def requirements() -> list[str]:
    """Packages that are needed to load the model, pinned to the versions installed here."""
    # A local version such as 2.13.0+cpu can't be installed from an index.
    return [f"{name}=={importlib.metadata.version(name).split('+')[0]}" for name in _REQUIRED]


def log_checkpoint(
    client: MlflowClient,
    settings: Settings,
    checkpoint: Checkpoint,
    dataset: Dataset,
    example: str,
    report: Callable[[str], None],
) -> LoggedModel:
    """Log the checkpoint as a model with the transformers flavor, unless a run has the same model already.

    Another process loads and logs it: if that dies, this one reports it.

    Args:
        client: MLflow client.
        settings: lengths, prompt, experiment.
        checkpoint: the checkpoint to log.
        dataset: the data set to score; logged as an input of the run.
        example: a document to score once.
        report: called with each progress message.

    Raises:
        BatchAssetsError: the checkpoint can't be loaded, or it killed its process.
    """
    parameters = generation_parameters(checkpoint, settings)
    pins = requirements()
    weights = checkpoint.digest()
    identity = _sha256([weights, settings.task, settings.prompt, parameters, settings.logged_dtype, pins])
    known = search_runs(client, settings, f"tags.`{IDENTITY_TAG}` = '{identity}'", [])
    if known and not settings.new_model:
        client.set_tag(known[0].run_id, WANTED_TAG, _milliseconds())
        report(f"run {known[0].run_id} already has this model")
        return LoggedModel(known[0], False, parameters)

    digest = _sha256([part.provenance for part in dataset.parts()])[:32]
    inputs = _Inputs(dataset.name, dataset.uri, digest)
    run_id = ""
    for what, text in isolated(_log, settings, checkpoint, parameters, example, inputs, weights, identity):
        if what == _RUN:
            run_id = text
        else:
            report(text)
    logged = search_runs(client, settings, f"attributes.run_id = '{run_id}'", [])
    return LoggedModel(logged[0], True, parameters)


def _log(
    settings: Settings,
    checkpoint: Checkpoint,
    parameters: dict[str, Any],
    example: str,
    inputs: _Inputs,
    weights: str,
    identity: str,
) -> Iterator[tuple[str, str]]:
    """Load the checkpoint, let it answer one document, and log it; yields progress messages and the id of the run."""
    import mlflow
    from huggingface_hub import ModelCard

    client, task = connect(settings), task_of(settings)
    yield _MESSAGE, f"loading {checkpoint.name} from {checkpoint.folder}"
    pipeline = build_pipeline(checkpoint, settings)
    template = prompt_template(pipeline, settings)
    request = example if template is None else template.format(prompt=example)
    output = pipeline(request, **parameters, **({} if template is None else {"return_full_text": False}))
    (text,) = output[0].values()
    yield _MESSAGE, "logging the model to MLflow"
    mlflow.set_experiment(settings.experiment)
    with mlflow.start_run(run_name=checkpoint.name) as run:
        mlflow.log_params(
            {
                "checkpoint": checkpoint.name,
                "origin": checkpoint.origin,
                "pipeline": checkpoint.pipeline_of(task),
                "device": str(pipeline.device),
                "dtype": settings.logged_dtype,
                "seed": settings.seed,
                **({"prompt": settings.prompt} if template else {}),
                **parameters,
            }
        )
        mlflow.log_input(inputs.as_mlflow_dataset(), context="inference")
        # Document text leaves the lake only if samples may be shown.
        shown = {"input_example": example} if settings.samples else {}
        if settings.samples:
            keep_samples(client, run.info.run_id, EXAMPLE, [{"document": example, task.output_column: text}])
        info = mlflow.transformers.log_model(
            transformers_model=pipeline,
            name="model",
            task=checkpoint.pipeline_of(task),
            model_config=dict(parameters),
            prompt_template=template,
            signature=task.signature(example, text),
            pip_requirements=requirements(),
            model_card=ModelCard(_model_card(checkpoint, task)),
            metadata={"checkpoint": checkpoint.name, "origin": checkpoint.origin, "digest": weights},
            **shown,
        )
        mlflow.set_tags(
            {
                DIGEST_TAG: _sha256([weights, template]),
                IDENTITY_TAG: identity,
                TASK_TAG: settings.task,
                **_versions(),
                "batch_assets.checkpoint": checkpoint.name,
                WANTED_TAG: _milliseconds(),
                # Set last: a run without it was killed before its model was complete.
                MODEL_URI_TAG: info.model_uri,
            }
        )
    yield _RUN, run.info.run_id


def _milliseconds() -> str:
    return f"{time.time_ns() // 1_000_000:015d}"


def _sha256(parts: list[Any]) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _versions() -> dict[str, str]:
    """Library versions, and the git commit if this package runs from a checkout."""
    versions = {f"version.{name}": importlib.metadata.version(name) for name in (*_REQUIRED, "batch_assets")}
    versions["version.python"] = platform.python_version()
    package = Path(__file__).parent.parent
    if shutil.which("git") is None:
        return versions
    command = ["git", "rev-parse", "--show-toplevel", "HEAD"]
    lines = subprocess.run(command, cwd=package, capture_output=True, text=True, check=False).stdout.split("\n")
    # An installed package may be inside the checkout of another project.
    if len(lines) > 1 and Path(lines[0]) == package.parent:
        versions["batch_assets.git_commit"] = lines[1]
    return versions


def _model_card(checkpoint: Checkpoint, task: Task) -> str:
    card = checkpoint.folder / "README.md"
    if card.is_file():
        return card.read_text()
    config = checkpoint.config
    facts = {
        "Origin": checkpoint.origin,
        "Architecture": ", ".join(config.get("architectures") or ["unknown"]),
        "Pipeline": checkpoint.pipeline_of(task),
        "Vocabulary": config.get("vocab_size"),
    }
    lines = "\n".join(f"- {name}: {value}" for name, value in facts.items())
    return f"---\npipeline_tag: {checkpoint.pipeline_of(task)}\n---\n\n# {checkpoint.name}\n\n{lines}\n"

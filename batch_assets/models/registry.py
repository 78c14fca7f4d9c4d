"""The registry: versions, their aliases, and the models that workers load."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from batch_assets.engines.catalog import REFERENCE
from batch_assets.engines.choice import choose, preparation, prepare, runs_on_gpu
from batch_assets.engines.contract import Score, ScoringModel
from batch_assets.engines.encoding import markup_in
from batch_assets.engines.model_files import check_mlflow_model
from batch_assets.errors import BatchAssetsError
from batch_assets.isolation import isolated
from batch_assets.machine import cores
from batch_assets.mlflow_client import MlflowClient, ModelVersion
from batch_assets.mlflow_client import RegisteredModel as MlflowModel
from batch_assets.models.evaluation import text_digests
from batch_assets.models.model_runs import DIGEST_TAG, ModelRun
from batch_assets.models.tracking import resolve_artifact_uri
from batch_assets.settings import Settings
from batch_assets.sources.records import Document
from batch_assets.tasks.configured_task import task_of

# On two cores, batches of 8 and of 24 documents of 300 tokens were equally fast (1.2 and 1.0 documents per second), so
# a few thousand tokens keep memory low and progress smooth. A GPU needs larger batches.
_CPU_BATCH_TOKENS, _GPU_BATCH_TOKENS = 4096, 32_768

CHAMPION, PREVIOUS, CHALLENGER = "champion", "previous", "challenger"
# On the registered model while the champion changes: the numbers of the old one, if any, and of the new one, and
# whether it is a rollback.
_PROMOTION_TAG, _ROLLBACK = "batch_assets.promotion", "rollback"


@dataclass(frozen=True)
class Version:
    """A registered version. MLflow's version numbers are strings, here they are integers."""

    name: str
    number: int
    run_id: str
    tags: dict[str, str]

    @property
    def uri(self) -> str:
        """Address for ``mlflow.pyfunc.load_model``."""
        return f"models:/{self.name}/{self.number}"


@dataclass(frozen=True)
class RegisteredModel:
    """A model in the registry, which need not have a version yet."""

    client: MlflowClient
    name: str

    @classmethod
    def of(cls, client: MlflowClient, settings: Settings) -> "RegisteredModel":
        """The registered model of a pipeline."""
        return cls(client, settings.registered_model)

    def aliases(self) -> dict[int, list[str]]:
        """Sorted aliases by version number."""
        found: dict[int, list[str]] = {}
        for alias, number in sorted(self._aliases().items()):
            found.setdefault(int(number), []).append(alias)
        return found

    def versions(self) -> list[Version]:
        """All versions, highest number first."""
        found = self.client.search_model_versions(f"name = '{self.name}'")
        return sorted((_version(version) for version in found), key=lambda version: version.number, reverse=True)

    def version(self, number: int) -> Version:
        """The version with a number.

        Raises:
            BatchAssetsError: the version does not exist.
        """
        by_number = {version.number: version for version in self.versions()}
        if number not in by_number:
            existing = ", ".join(map(str, sorted(by_number))) or "none"
            raise BatchAssetsError(f"{self.name} has no version {number}; its versions: {existing}")
        return by_number[number]

    def with_alias(self, alias: str) -> Version | None:
        """The version with an alias, or None."""
        number = self._aliases().get(alias)
        return None if number is None else _version(self.client.get_model_version(self.name, number))

    def champion(self) -> Version:
        """The version with the alias champion.

        Raises:
            BatchAssetsError: no version has the alias.
        """
        found = self.with_alias(CHAMPION)
        if found is None:
            raise BatchAssetsError(f"no version of {self.name} has the alias {CHAMPION}: materialize champion_model")
        return found

    def register(self, run: ModelRun, tags: dict[str, str]) -> tuple[Version, bool]:
        """Register a run's model as a new version, or return its existing version.

        Args:
            run: run with the logged model.
            tags: tags for the version; an existing version gets those that it lacks.

        Returns:
            The version, and whether it is new.
        """
        import mlflow

        tags = {**tags, DIGEST_TAG: run.digest, "batch_assets.run_id": run.run_id}
        for version in self.versions():
            if version.run_id == run.run_id:
                # It may have been registered by hand, without tags.
                self.tag(version, {key: tags[key] for key in tags.keys() - version.tags.keys()})
                if version.number not in self.aliases():  # the process that registered it may have been killed
                    self.client.set_registered_model_alias(self.name, CHALLENGER, str(version.number))
                return version, False
        created = mlflow.register_model(run.model_uri, self.name, tags=tags)
        self.client.set_registered_model_alias(self.name, CHALLENGER, created.version)
        return _version(self.client.get_model_version(self.name, created.version)), True

    def promote(self, version: Version, *, is_rollback: bool = False) -> Version | None:
        """Move the alias champion to a version; the old champion gets the alias ``previous``.

        Only one promotion of a model may run at a time. If the process is killed in between, ``finish_promotion``
        completes the promotion, or undoes it if the champion is still the old one.

        Returns:
            The old champion, or None if it was this version or there was none.

        Raises:
            BatchAssetsError: another process moved the alias at the same time.
        """
        self.finish_promotion()
        old = self.with_alias(CHAMPION)
        if old is not None and old.number == version.number:
            return None
        numbers = f"{'' if old is None else old.number} {version.number}"
        change = f"{numbers} {_ROLLBACK}" if is_rollback else numbers
        self.client.set_registered_model_tag(self.name, _PROMOTION_TAG, change)
        self.client.set_registered_model_alias(self.name, CHAMPION, str(version.number))
        self.finish_promotion()
        now = self.with_alias(CHAMPION)
        if now is None or now.number != version.number:
            raise BatchAssetsError(
                f"the alias {CHAMPION} of {self.name} was moved by another process while version {version.number} was "
                "promoted: check which version has it, and promote again if necessary"
            )
        return old

    def finish_promotion(self) -> bool:
        """Complete a promotion that has moved the champion, or forget one that has not; do nothing without one.

        Returns:
            Whether it completed a rollback.
        """
        registered = self._registered()
        change = None if registered is None else registered.tags.get(_PROMOTION_TAG)
        if registered is None or change is None:
            return False
        old, new, *kind = change.split(" ")
        aliases = {alias: str(number) for alias, number in registered.aliases.items()}
        is_moved = aliases.get(CHAMPION) == new
        if is_moved:
            if old:
                self.client.set_registered_model_alias(self.name, PREVIOUS, old)
            if aliases.get(CHALLENGER) == new:
                self.client.delete_registered_model_alias(self.name, CHALLENGER)
        self.client.delete_registered_model_tag(self.name, _PROMOTION_TAG)
        return is_moved and kind == [_ROLLBACK]

    def tag(self, version: Version, tags: Mapping[str, str]) -> None:
        """Add tags to a version."""
        for key, value in tags.items():
            self.client.set_model_version_tag(self.name, str(version.number), key, value)

    def _aliases(self) -> Mapping[str, str]:
        registered = self._registered()
        return {} if registered is None else registered.aliases

    def _registered(self) -> MlflowModel | None:
        """MLflow's registered model, None before its first version."""
        from mlflow.exceptions import MlflowException

        try:
            return self.client.get_registered_model(self.name)
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return None
            raise


def _version(version: ModelVersion) -> Version:
    return Version(version.name, int(version.version), version.run_id, dict(version.tags))


def predict(version: Version, documents: list[str]) -> list[str]:
    """Score a few documents on this machine, as any user of the registry would.

    Raises:
        BatchAssetsError: the version could run code, its model is not supported, or it killed its process.
    """
    return list(isolated(_predict, _fetch(version.uri), documents))


def _predict(folder: Path, documents: list[str]) -> Iterator[str]:
    import mlflow
    import torch

    check_mlflow_model(folder)
    torch.set_num_threads(cores())
    for text in mlflow.pyfunc.load_model(str(folder)).predict(documents):
        yield str(text)


def digest_of(client: MlflowClient, version: Version) -> str | None:
    """The digest of a version's model, or None if this package did not log it."""
    digest: str | None = version.tags.get(DIGEST_TAG)
    if digest is None and version.run_id:
        digest = client.get_run(version.run_id).data.tags.get(DIGEST_TAG)
    return digest


def scoring_model(client: MlflowClient, version: Version, settings: Settings) -> ScoringModel:
    """Download a version and describe it for the workers.

    Raises:
        BatchAssetsError: this package did not log the version's model.
    """
    digest = digest_of(client, version)
    if digest is None:
        raise BatchAssetsError(
            f"version {version.number} of {version.name} has no tag {DIGEST_TAG}, so it was not logged by "
            "logged_model: move the alias champion to a version that was"
        )
    model = _scoring_model(version.uri, version.name, version.number, digest, settings)
    kept = client.get_model_version_download_uri(version.name, str(version.number))
    choice = choose(client, version.run_id, model, settings)
    return replace(
        model,
        engine=choice.engine,
        engine_reason=choice.reason,
        engine_path=choice.path,
        uri=resolve_artifact_uri(kept),
        engine_uri=resolve_artifact_uri(choice.uri),
        dtype=settings.dtype if choice.path else settings.logged_dtype,
    )


def prepare_engine(
    client: MlflowClient,
    version: Version,
    settings: Settings,
    documents: Sequence[Document],
    report: Callable[[str], None],
) -> str | None:
    """Convert a version for the engine that will score with it, and store the result with its run.

    An existing conversion is reused.

    Args:
        client: MLflow client.
        version: the version; a tag on it says how the conversion went.
        settings: engine and precision.
        documents: held-out documents on which the engine is compared with the reference.
        report: called with each progress message.

    Returns:
        How the conversion went; None if there is nothing to convert.
    """
    model = _scoring_model(version.uri, version.name, version.number, "", settings)
    task = task_of(settings)

    def main_score(document: str, reference: str, text: str) -> float:
        return task.scores(document, reference, text)[task.main_score]

    score = Score(task.main_score, main_score)
    written = text_digests(client, version.run_id)
    prepare(client, version.run_id, model, settings, documents, written, score, report)
    outcome = preparation(client, version.run_id, model, settings)
    if outcome is None:
        return None
    client.set_model_version_tag(version.name, str(version.number), f"engine.{outcome[0]}", outcome[1])
    return outcome[1]


def run_model(run: ModelRun, settings: Settings) -> ScoringModel:
    """Download a logged model that is not registered yet and describe it for the reference engine."""
    return _scoring_model(run.model_uri, run.model_id, 0, run.digest, settings)


def _fetch(uri: str) -> Path:
    """Download a logged model, and check its folder before anything loads it."""
    import mlflow

    folder = Path(mlflow.artifacts.download_artifacts(artifact_uri=uri)).resolve()
    check_mlflow_model(folder)
    return folder


def _scoring_model(uri: str, name: str, number: int, digest: str, settings: Settings) -> ScoringModel:
    """Download a model and describe it for the reference engine."""
    import mlflow

    path = _fetch(uri)
    model = mlflow.models.Model.load(str(path))
    flavor = model.flavors["python_function"]
    template = (model.metadata or {}).get("prompt_template")
    parameters = {key: value for key, value in (flavor.get("config") or {}).items() if key != "return_full_text"}
    task = task_of(settings)
    return ScoringModel(
        name=name,
        version=number,
        digest=digest,
        path=str(path),
        parameters=json.loads(json.dumps(parameters)),
        template=template,
        engine=REFERENCE.name,
        dtype=settings.logged_dtype,
        seed=settings.seed,
        markup=markup_in(path / "components" / "tokenizer", template),
        device_map=settings.device_map,
        read=task.read if task.reads_answers else None,
        rules=task.rules,
        batch_tokens=settings.batch_tokens or (_GPU_BATCH_TOKENS if runs_on_gpu(settings) else _CPU_BATCH_TOKENS),
    )

"""The pipelines of a deployment: the default one, and one for each file in the folder of pipelines."""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeAlias

from batch_assets.errors import BatchAssetsError
from batch_assets.lake.contracts import PipelineTables
from batch_assets.lake.lake import Lake
from batch_assets.pipelines.pipeline import (
    PipelineError,
    borrowers_among,
    default_pipeline_settings,
    owner_in,
    settings_of,
)
from batch_assets.pipelines.pipeline_files import attributes_in, files_in, located
from batch_assets.settings import DEFAULT_PIPELINE, IN_PIPELINE_FILES, Settings, load_settings
from batch_assets.tasks.output_tables import tables_of

_Resolver: TypeAlias = Callable[[Mapping[str, Any]], Mapping[str, Any]]

# The field to change when two pipelines collide.
_LANDING = "landing folder"
_WITHOUT_FILE = "the default pipeline"
_FIELD_OF = {"name": "name", "model": "model.name", "table": "output.table", _LANDING: "source.landing"}


@dataclass(frozen=True)
class BrokenPipeline:
    """An invalid pipeline file, and what is wrong with it; ``name`` is the pipeline's, or the file's if it has none."""

    name: str
    file: Path
    message: str


@dataclass(frozen=True)
class Deployment:
    """The settings of all valid pipelines, and the invalid files.

    ``default`` has the settings of the deployment, even if the file of the default pipeline is invalid.
    ``files`` has the file of each valid pipeline that has one.
    """

    default: Settings
    pipelines: Sequence[Settings]
    problems: Sequence[BrokenPipeline]
    files: Mapping[str, Path] = field(default_factory=dict)

    @property
    def named(self) -> list[tuple[Settings, str]]:
        """The settings of the valid pipelines, and how messages call each: by its file, if it has one."""
        return [(one, str(self.files.get(one.pipeline, _WITHOUT_FILE))) for one in self.pipelines]

    def pipeline(self, name: str) -> Settings:
        """The settings of a pipeline.

        Raises:
            BatchAssetsError: the pipeline does not exist, or its file is invalid.
        """
        for problem in self.problems:
            if problem.name == name:
                raise BatchAssetsError(problem.message)
        found = {settings.pipeline: settings for settings in self.pipelines}
        if name not in found:
            raise BatchAssetsError(f"unknown pipeline {name}: use {' or '.join(found)}")
        return found[name]


def load_deployment() -> Deployment:
    """Read the environment and the files of the pipelines, each by itself.

    Raises:
        BatchAssetsError: a variable of the environment is not valid.
    """
    default = load_settings()
    return _read(default, files_in(default.pipelines), default.pipelines.parent)


def deployment_of(files: Sequence[Path], resolve: _Resolver) -> Deployment:
    """Read some files of pipelines, wherever they are; relative paths in them start in the current folder.

    Args:
        files: the files.
        resolve: returns the fields of a file outside the folder of pipelines with the values of their templates.

    Raises:
        BatchAssetsError: a variable of the environment is not valid.
    """
    default = load_settings()
    ours = {file.resolve() for file in files_in(default.pipelines)}

    def attributes_of(file: Path) -> Mapping[str, Any]:
        attributes = attributes_in(file)
        return attributes if file.resolve() in ours else resolve(attributes)

    found = _read(default, files, Path.cwd(), attributes_of)
    return replace(found, pipelines=[one for one in found.pipelines if not one.is_default])


def _read(
    deployment: Settings,
    files: Sequence[Path],
    root: Path,
    attributes_of: Callable[[Path], Mapping[str, Any]] = attributes_in,
) -> Deployment:
    problems: list[BrokenPipeline] = []
    taken = _Places()
    owners: dict[str, Settings | str] = {}

    def read(file: Path, attributes: Mapping[str, Any]) -> Settings | None:
        try:
            if attributes["name"] == DEFAULT_PIPELINE:
                settings = default_pipeline_settings(attributes, deployment, os.environ, root)
            else:
                settings = settings_of(attributes, deployment, root, owners)
            taken.take(settings, str(file))
        except PipelineError as error:
            refuse(str(attributes["name"]), file, located(file, error))
            return None
        if settings.shared_model is None:
            owners[settings.pipeline] = settings
        return settings

    def refuse(name: str, file: Path, message: str) -> None:
        problems.append(BrokenPipeline(name, file, message))
        owners.setdefault(name, "its file is not valid; fix it first")

    written: dict[Path, Mapping[str, Any]] = {}
    for file in files:
        try:
            written[file] = {"name": None, **attributes_of(file)}
        except BatchAssetsError as error:
            refuse(file.stem, file, str(error))
    owners |= borrowers_among(written.values())
    # The default pipeline first: it keeps its places whatever other files say. Owners of models before their users.
    ordered = sorted(
        written.items(), key=lambda item: (item[1]["name"] != DEFAULT_PIPELINE, owner_in(item[1]) is not None)
    )
    found: list[Settings] = []
    if not any(attributes["name"] == DEFAULT_PIPELINE for attributes in written.values()):
        taken.take(deployment, _WITHOUT_FILE)
        found.append(deployment)
        owners[DEFAULT_PIPELINE] = deployment
    file_of: dict[str, Path] = {}
    for file, attributes in ordered:
        settings = read(file, attributes)
        if settings is not None:
            found.append(settings)
            file_of[settings.pipeline] = file
    return _with_upstream(Deployment(deployment, found, problems, file_of))


def _with_upstream(deployment: Deployment) -> Deployment:
    """Tell pipelines that read the output of another one where it is; those whose upstream is missing are invalid."""
    known = {settings.pipeline: settings for settings in deployment.pipelines}
    problems = list(deployment.problems)
    complete = []
    for settings in deployment.pipelines:
        try:
            complete.append(chained(settings, known))
        except PipelineError as error:
            file = deployment.files[settings.pipeline]
            problems.append(BrokenPipeline(settings.pipeline, file, located(file, error)))
    return replace(deployment, pipelines=complete, problems=problems)


def chained(settings: Settings, others: Mapping[str, Settings]) -> Settings:
    """The settings of a pipeline with the table of its source pipeline, if it has one.

    Args:
        settings: the pipeline.
        others: all pipelines, by name.

    Raises:
        PipelineError: the source pipeline does not exist, or the pipelines form a circle.
    """
    field = IN_PIPELINE_FILES["source_pipeline"]
    names = [settings.pipeline]
    while (upstream := others.get(names[-1])) is not None and upstream.source_pipeline is not None:
        if upstream.source_pipeline not in others:
            break
        if upstream.source_pipeline in names:
            raise PipelineError(f"{field}: {' reads '.join([*names, upstream.source_pipeline])}", field)
        names.append(upstream.source_pipeline)
    if settings.source_pipeline is None:
        return settings
    upstream = others.get(settings.source_pipeline)
    if upstream is None:
        known = ", ".join(name for name in others if name != settings.pipeline)
        raise PipelineError(f"{field}: unknown or invalid pipeline {settings.source_pipeline} (known: {known})", field)
    output = _pipeline_tables(chained(upstream, others)).scored
    location = Lake.of(upstream).table_uri(output)
    return settings.model_copy(update={"upstream_table": location, "text": settings.text or output.output_column})


def settings_together(
    pipelines: Sequence[Mapping[str, Any]], deployment: Settings, root: Path | None = None
) -> list[Settings]:
    """The settings of pipelines with these fields, in the same order; one may use the model or the output of another.

    Raises:
        PipelineError: a field is not valid, or two pipelines would write to the same place.
    """
    owners = borrowers_among(pipelines)
    found: dict[int, Settings] = {}
    for number in sorted(range(len(pipelines)), key=lambda number: owner_in(pipelines[number]) is not None):
        found[number] = settings = settings_of(pipelines[number], deployment, root or Path.cwd(), owners)
        owners.setdefault(settings.pipeline, settings)
    refuse_collisions((one, f"the pipeline {one.pipeline}") for one in found.values())
    known = {one.pipeline: one for one in found.values()}
    return [chained(found[number], known) for number in range(len(pipelines))]


def refuse_collisions(pipelines: Iterable[tuple[Settings, str]]) -> None:
    """Refuse pipelines that would write to the same place.

    Args:
        pipelines: the settings of each pipeline, and how messages call it.

    Raises:
        PipelineError: two of them have a name, a table, a model or a landing folder in common.
    """
    taken = _Places()
    for settings, called in pipelines:
        try:
            taken.take(settings, called)
        except PipelineError as error:
            raise PipelineError(f"{called}: {error}", error.path) from error


class _Places:
    """What pipelines write to; each must have its own, and names are compared regardless of case."""

    def __init__(self) -> None:
        self._taken: dict[tuple[str, str], str] = {}

    def take(self, settings: Settings, called: str) -> None:
        """Add the places of a pipeline; ``called`` is how messages about the next ones call it.

        Raises:
            PipelineError: another pipeline has one of the places, or this one would use a table twice.
        """
        own = _places(settings)
        again = [place for place in own if own.count(place) > 1]
        if again:
            raise PipelineError(f"{_FIELD_OF[again[0][0]]}: it has another table {again[0][1]}", _FIELD_OF[again[0][0]])
        for kind, place in own:
            whose = self._owner_of(kind, place)
            if whose is not None:
                raise PipelineError(f"its {kind} {place} is also that of {whose}", _FIELD_OF[kind])
        self._taken |= dict.fromkeys(own, called)

    def _owner_of(self, kind: str, place: str) -> str | None:
        """Who has a place, or a landing folder above or below it."""
        if kind != _LANDING:
            return self._taken.get((kind, place))
        for (other_kind, other), whose in self._taken.items():
            if other_kind == _LANDING and (f"{place}/".startswith(f"{other}/") or f"{other}/".startswith(f"{place}/")):
                return whose
        return None


def _places(settings: Settings) -> list[tuple[str, str]]:
    """Everything that a pipeline writes to, each with its kind."""
    lake = Lake.of(settings)
    places = [("name", settings.pipeline.lower())]
    if settings.shared_model is None:
        places.append(("model", settings.registered_model.lower()))
    places += [("table", lake.full_name(table).lower()) for table in _pipeline_tables(settings).all]
    if settings.is_landing:
        places.append((_LANDING, settings.landing_folder.rstrip("/").lower()))
    return places


def _pipeline_tables(settings: Settings) -> PipelineTables:
    """The tables of a pipeline.

    Raises:
        PipelineError: its task or its columns are not valid.
    """
    try:
        return tables_of(settings)
    except BatchAssetsError as error:
        raise PipelineError(str(error), "task") from error

"""The pipelines of a deployment: the default one, and one for each file in the folder of pipelines."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from batch_assets.errors import BatchAssetsError
from batch_assets.lake.contracts import Table
from batch_assets.lake.lake import Lake
from batch_assets.pipelines.pipeline import (
    PipelineError,
    borrowers_among,
    default_pipeline_settings,
    owner_in,
    settings_of,
)
from batch_assets.pipelines.pipeline_files import attributes_in, files_in, located
from batch_assets.settings import DEFAULT_PIPELINE, Settings, load_settings
from batch_assets.tasks.output_tables import tables_of

# The field to change when two pipelines collide.
_LANDING = "landing folder"
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


def deployment_of(files: Sequence[Path]) -> Deployment:
    """Read some files of pipelines, wherever they are; relative paths in them start in the current folder.

    Raises:
        BatchAssetsError: a variable of the environment is not valid.
    """
    found = _read(load_settings(), files, Path.cwd())
    return replace(found, pipelines=[one for one in found.pipelines if not one.is_default])


def _read(deployment: Settings, files: Sequence[Path], root: Path) -> Deployment:
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
            written[file] = {"name": None, **attributes_in(file)}
        except BatchAssetsError as error:
            refuse(file.stem, file, str(error))
    owners |= borrowers_among(written.values())
    # The default pipeline first: it keeps its places whatever other files say. Owners of models before their users.
    ordered = sorted(
        written.items(), key=lambda item: (item[1]["name"] != DEFAULT_PIPELINE, owner_in(item[1]) is not None)
    )
    found: list[Settings] = []
    if not any(attributes["name"] == DEFAULT_PIPELINE for attributes in written.values()):
        taken.take(deployment, "the default pipeline")
        found.append(deployment)
        owners[DEFAULT_PIPELINE] = deployment
    file_of: dict[str, Path] = {}
    for file, attributes in ordered:
        settings = read(file, attributes)
        if settings is not None:
            found.append(settings)
            file_of[settings.pipeline] = file
    return Deployment(deployment, found, problems, file_of)


def settings_together(
    pipelines: Sequence[Mapping[str, Any]], deployment: Settings, root: Path | None = None
) -> list[Settings]:
    """The settings of pipelines with these fields, in the same order; one may use the model of another.

    Raises:
        PipelineError: a field is not valid, or two pipelines would write to the same place.
    """
    owners = borrowers_among(pipelines)
    found: dict[int, Settings] = {}
    for number in sorted(range(len(pipelines)), key=lambda number: owner_in(pipelines[number]) is not None):
        found[number] = settings = settings_of(pipelines[number], deployment, root or Path.cwd(), owners)
        owners.setdefault(settings.pipeline, settings)
    together = [found[number] for number in range(len(pipelines))]
    refuse_collisions(together)
    return together


def refuse_collisions(pipelines: Sequence[Settings]) -> None:
    """Refuse pipelines that would write to the same place.

    Raises:
        PipelineError: two of them have a name, a table, a model or a landing folder in common.
    """
    taken = _Places()
    for settings in pipelines:
        taken.take(settings, f"the pipeline {settings.pipeline}")


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
    places += [("table", lake.full_name(table).lower()) for table in _tables(settings)]
    if settings.is_landing:
        places.append((_LANDING, settings.landing_folder.rstrip("/").lower()))
    return places


def _tables(settings: Settings) -> tuple[Table, ...]:
    """The tables of a pipeline.

    Raises:
        PipelineError: its task or its columns are not valid.
    """
    try:
        return tables_of(settings).all
    except BatchAssetsError as error:
        raise PipelineError(str(error), "task") from error

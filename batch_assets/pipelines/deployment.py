"""The pipelines of a deployment: the default one, and one for each file in the folder of pipelines."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from batch_assets.errors import BatchAssetsError
from batch_assets.lake.contracts import Table
from batch_assets.lake.lake import Lake
from batch_assets.pipelines.pipeline import PipelineError, default_pipeline_settings, settings_of
from batch_assets.pipelines.pipeline_files import attributes_in, files_in, located
from batch_assets.settings import DEFAULT_PIPELINE, Settings, load_settings
from batch_assets.tasks.output_tables import tables_of

# The field to change when two pipelines collide.
_FIELD_OF = {"name": "name", "model": "model.name", "table": "output.table", "landing": "source.landing"}


@dataclass(frozen=True)
class BrokenPipeline:
    """A file that is no valid pipeline: its name without the ending, and what is wrong with it."""

    name: str
    message: str


@dataclass(frozen=True)
class Deployment:
    """The settings of all valid pipelines, the default one first, and the files that are not valid."""

    pipelines: Sequence[Settings]
    problems: Sequence[BrokenPipeline]

    def pipeline(self, name: str) -> Settings:
        """The settings of a pipeline.

        Raises:
            BatchAssetsError: there is no such pipeline, or its file is not valid.
        """
        found = {settings.pipeline: settings for settings in self.pipelines}
        if name in found:
            return found[name]
        for problem in self.problems:
            if problem.name == name:
                raise BatchAssetsError(problem.message)
        raise BatchAssetsError(f"there is no pipeline {name}; the pipelines: {', '.join(found)}")


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
    return Deployment([one for one in found.pipelines if not one.is_default], found.problems)


def _read(default: Settings, files: Sequence[Path], root: Path) -> Deployment:
    problems: list[BrokenPipeline] = []
    others: list[Settings] = []
    taken = _Places()
    taken.take(default, "the default pipeline")
    for file in files:
        try:
            attributes = attributes_in(file)
            if attributes.get("name") == DEFAULT_PIPELINE:
                default = load_settings(**default_pipeline_settings(attributes, os.environ, root))
                continue
            settings = settings_of(attributes, default, root)
            taken.take(settings, str(file))
        except PipelineError as error:
            problems.append(BrokenPipeline(file.stem, located(file, error)))
        except BatchAssetsError as error:
            problems.append(BrokenPipeline(file.stem, str(error)))
        else:
            others.append(settings)
    return Deployment([default, *others], problems)


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
            PipelineError: another pipeline has one of the places.
        """
        own = _places(settings)
        for place, title in own.items():
            if place in self._taken:
                whose = self._taken[place]
                raise PipelineError(f"its {title} {place[1]} is also that of {whose}", _FIELD_OF[place[0]])
        self._taken |= dict.fromkeys(own, called)


def _places(settings: Settings) -> dict[tuple[str, str], str]:
    """Everything that a pipeline writes to, with what it is."""
    lake = Lake.of(settings)
    places = {("name", settings.pipeline.lower()): "name", ("model", settings.registered_model.lower()): "model"}
    places |= {("table", lake.full_name(table).lower()): "table" for table in _tables(settings)}
    if settings.is_landing:
        places["landing", settings.landing_folder.rstrip("/").lower()] = "landing folder"
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

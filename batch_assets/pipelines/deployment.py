"""The pipelines of a deployment: the default one, and one for each file in the folder of pipelines."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from batch_assets.errors import BatchAssetsError
from batch_assets.lake.lake import Lake
from batch_assets.pipelines.pipeline import PipelineError, default_pipeline_settings, settings_of
from batch_assets.pipelines.pipeline_files import attributes_in, files_in, located
from batch_assets.settings import DEFAULT_PIPELINE, Settings, load_settings
from batch_assets.tasks.output_tables import tables_of


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
    root = default.pipelines.parent
    problems: list[BrokenPipeline] = []
    others: dict[Path, Settings] = {}
    for file in files_in(default.pipelines):
        try:
            try:
                attributes = attributes_in(file)
                if attributes.get("name") == DEFAULT_PIPELINE:
                    default = load_settings(**default_pipeline_settings(attributes, os.environ, root))
                    continue
                settings = settings_of(attributes, default, root)
                tables_of(settings)
            except PipelineError as error:
                raise BatchAssetsError(located(file, error)) from error
            collision = next(collisions(settings, [(str(one), other) for one, other in others.items()], default), None)
            if collision is not None:
                raise BatchAssetsError(f"{file}: {collision}")
        except BatchAssetsError as error:
            problems.append(BrokenPipeline(file.stem, str(error)))
            continue
        others[file] = settings
    return Deployment([default, *others.values()], problems)


def refuse_collisions(pipelines: Sequence[Settings]) -> None:
    """Refuse pipelines that would write to the same place.

    Raises:
        BatchAssetsError: two of them have a name, a table, a model or a landing folder in common.
    """
    for place, settings in enumerate(pipelines):
        before = [(f"the pipeline {other.pipeline}", other) for other in pipelines[:place]]
        for collision in collisions(settings, before, None):
            raise BatchAssetsError(f"the pipeline {settings.pipeline}: {collision}")


def collisions(settings: Settings, others: Sequence[tuple[str, Settings]], default: Settings | None) -> Iterator[str]:
    """What a pipeline has in common with others, where each must have its own, regardless of case.

    Args:
        settings: the pipeline.
        others: the other pipelines, each with what it is called.
        default: the default pipeline, unless it is among the others.
    """
    own = _places(settings)
    known = [*([] if default is None else [("the default pipeline", default)]), *others]
    for called, other in known:
        for place, title in _places(other).items():
            if place in own:
                yield f"its {title} {place[1]} is also that of {called}"


def _places(settings: Settings) -> dict[tuple[str, str], str]:
    """Everything that a pipeline writes to, with what it is."""
    lake = Lake.of(settings)
    places = {("name", settings.pipeline.lower()): "name", ("model", settings.registered_model.lower()): "model"}
    places |= {("table", lake.full_name(table).lower()): "table" for table in tables_of(settings).all}
    if settings.is_landing:
        places["landing", settings.landing_folder.rstrip("/").lower()] = "landing folder"
    return places

"""The Dagster component of a pipeline, for projects that load their definitions with ``dg``.

https://docs.dagster.io/guides/build/components
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import dagster as dg
from pydantic import BaseModel, ConfigDict, create_model

from batch_assets.errors import BatchAssetsError
from batch_assets.pipeline_definitions import PipelineParts, combined, shared_resources
from batch_assets.pipelines.deployment import chained, load_deployment, refuse_collisions
from batch_assets.pipelines.pipeline import SECTIONS, borrowers_among, owner_in, settings_of
from batch_assets.pipelines.starter import starter
from batch_assets.settings import IN_PIPELINE_FILES, Settings, load_settings

# Templates of Dagster, such as {{ env.TOKEN }}, are off in these sections: a secret must not reach a prompt.
_VERBATIM = {"columns", "task"}


def _attributes() -> type[BaseModel]:
    """The model of a component's attributes. Settings validate what is in the sections."""
    plain = {path for path in IN_PIPELINE_FILES.values() if "." not in path}
    kinds: dict[str, Any] = {
        section: (str | None if section in plain else Mapping[str, Any] | None, None) for section in SECTIONS
    }
    kinds |= {"name": (str, ...), "source": (Mapping[str, Any], ...)}
    return create_model("InferencePipelineAttributes", __config__=ConfigDict(extra="forbid"), **kinds)


def resolve_templates(attributes: Mapping[str, Any], context: dg.ResolutionContext) -> dict[str, Any]:
    """The attributes with the values of their templates, except in the sections that are verbatim."""
    return {
        section: content if section in _VERBATIM else context.resolve_value(content)
        for section, content in attributes.items()
    }


class _PipelineScaffolder(dg.Scaffolder):
    """Writes a commented file to start from."""

    def scaffold(self, request: Any) -> None:
        """Write ``defs.yaml``, whose pipeline is named after its folder."""
        target = Path(request.target_path)
        target.mkdir(parents=True, exist_ok=True)
        (target / "defs.yaml").write_text(starter(target.name), encoding="utf-8")


@dg.scaffold_with(_PipelineScaffolder)
class InferencePipeline(dg.Component):
    """One text source through one model into governed tables; docs/pipelines.md describes the attributes."""

    def __init__(self, attributes: Mapping[str, Any], root: Path, file: Path | None = None) -> None:
        self._attributes = attributes
        self._root = root
        self._file = file

    @classmethod
    def get_model_cls(cls) -> type[BaseModel]:
        """The model of the attributes."""
        return _attributes()

    @classmethod
    def load(cls, attributes: BaseModel | None, context: dg.ComponentLoadContext) -> "InferencePipeline":
        """Create the component from its attributes."""
        given = {} if attributes is None else attributes.model_dump(exclude_unset=True)
        written = context.resolution_context.source_position_tree
        file = None if written is None else Path(written.position.filename)
        return cls(resolve_templates(given, context.resolution_context), Path(context.project_root), file)

    def build_defs(self, context: dg.ComponentLoadContext) -> dg.Definitions:
        """Build the definitions of the pipeline, with the resources that all pipelines of the project share.

        Raises:
            BatchAssetsError: a field, or a setting of the deployment, is not valid, or two pipelines of the project or
                of the folder of pipelines collide.
        """
        deployment = load_settings()
        # A component that is built by itself, as in a test, is not in the tree of its context.
        components: Sequence[InferencePipeline] = []
        if context.component_loc != context.component_tree.load_context.component_loc:
            components = context.component_tree.get_all_components(InferencePipeline)
        is_first = components[:1] == [self]
        source = self._attributes.get("source")
        is_chained = isinstance(source, Mapping) and "pipeline" in source
        owners: dict[str, Settings | str] = {}
        known: list[tuple[Settings, str]] = []
        if is_first or is_chained or owner_in(self._attributes) is not None:
            known = _known(components, deployment, owners)
        if is_first:  # the first one compares all
            refuse_collisions(known)
        settings = settings_of(self._attributes, deployment, self._root, owners)
        settings = chained(settings, {other.pipeline: other for other, _ in known})
        resources = dg.Definitions(resources=shared_resources(deployment))
        return dg.Definitions.merge(combined([PipelineParts.of(settings)]), resources)


def _known(
    components: Sequence[InferencePipeline], deployment: Settings, owners: dict[str, Settings | str]
) -> list[tuple[Settings, str]]:
    """The pipelines of the project and of the folder of this deployment, each with what messages call it.

    Args:
        components: the components of the project.
        deployment: the settings of the deployment.
        owners: gets those of the project whose models others may use, and why the others can't be used.
    """
    owners |= borrowers_among(component._attributes for component in components)
    ours: list[tuple[Settings, str]] = []
    for component in sorted(components, key=lambda component: owner_in(component._attributes) is not None):
        try:
            settings = settings_of(component._attributes, deployment, component._root, owners)
        except BatchAssetsError as error:  # an invalid one is refused by itself
            owners.setdefault(str(component._attributes.get("name")), f"it is not valid ({error})")
            continue
        owners.setdefault(settings.pipeline, settings)
        ours.append((settings, str(component._file or f"the component {settings.pipeline}")))
    files = {component._file.resolve() for component in components if component._file is not None}
    has_default = any(settings.is_default for settings, _ in ours)
    theirs = [
        (settings, called)
        for settings, called in load_deployment().named
        if Path(called).resolve() not in files and not (settings.is_default and has_default)
    ]
    return [*theirs, *ours]

"""The Dagster component of a pipeline, for projects that load their definitions with ``dg``.

https://docs.dagster.io/guides/build/components
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import dagster as dg
from pydantic import BaseModel, ConfigDict, create_model

from batch_assets.pipeline_definitions import PipelineParts, combined, shared_resources
from batch_assets.pipelines.pipeline import SECTIONS, ModelOwners, PipelineError, borrowers_among, owner_in, settings_of
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

    def __init__(self, attributes: Mapping[str, Any], root: Path) -> None:
        self._attributes = attributes
        self._root = root

    @classmethod
    def get_model_cls(cls) -> type[BaseModel]:
        """The model of the attributes."""
        return _attributes()

    @classmethod
    def load(cls, attributes: BaseModel | None, context: dg.ComponentLoadContext) -> "InferencePipeline":
        """Create the component from its attributes."""
        given = {} if attributes is None else attributes.model_dump(exclude_unset=True)
        resolved = {
            section: content if section in _VERBATIM else context.resolution_context.resolve_value(content)
            for section, content in given.items()
        }
        return cls(resolved, Path(context.project_root))

    def build_defs(self, context: dg.ComponentLoadContext) -> dg.Definitions:
        """Build the definitions of the pipeline, with the resources that all pipelines of the project share.

        Raises:
            BatchAssetsError: a field, or a setting of the deployment, is not valid.
        """
        deployment = load_settings()
        settings = settings_of(self._attributes, deployment, self._root, self._owners(context, deployment))
        resources = dg.Definitions(resources=shared_resources(deployment))
        return dg.Definitions.merge(combined([PipelineParts.of(settings)]), resources)

    def _owners(self, context: dg.ComponentLoadContext, deployment: Settings) -> ModelOwners:
        """The other pipelines of the project, whose models this one may use."""
        if owner_in(self._attributes) is None:
            return {}
        others = [one for one in context.component_tree.get_all_components(InferencePipeline) if one is not self]
        owners = borrowers_among(one._attributes for one in others)
        for other in others:
            name = str(other._attributes.get("name"))
            try:
                owners.setdefault(name, settings_of(other._attributes, deployment, other._root, owners))
            except PipelineError as error:
                owners.setdefault(name, f"it is not valid ({error})")
        return owners

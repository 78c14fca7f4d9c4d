"""A Dagster asset graph for governed batch inference on a lakehouse.

``Pipeline``, ``build_pipeline`` and the Dagster component ``InferencePipeline`` are imported when they are first used,
because they import Dagster.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from batch_assets.component import InferencePipeline
    from batch_assets.pipeline_definitions import build_pipeline, build_pipelines
    from batch_assets.pipelines.pipeline import Pipeline

_HOMES = {
    "InferencePipeline": "batch_assets.component",
    "Pipeline": "batch_assets.pipelines.pipeline",
    "build_pipeline": "batch_assets.pipeline_definitions",
    "build_pipelines": "batch_assets.pipeline_definitions",
}

__all__ = ["InferencePipeline", "Pipeline", "build_pipeline", "build_pipelines"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return [*globals(), *_HOMES]

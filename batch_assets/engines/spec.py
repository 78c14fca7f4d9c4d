"""The declaration of an engine: its name and package, what it refuses, how to convert and load models."""

import importlib.metadata
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from batch_assets.engines.contract import Engine, ScoringModel
from batch_assets.engines.conversion import Conversion


def accept_every_model(model: ScoringModel) -> str | None:
    """Accept every model."""
    return None


@dataclass(frozen=True)
class EngineSpec:
    """One engine: the ``SPEC`` of its module.

    Args:
        name: value of BATCH_ASSETS_ENGINE.
        package: distribution that runs the model; its version is part of the name of a conversion.
        load: creates the engine from a model and a number of CPU threads.
        refuses: returns why the engine can't run a model with any settings; None if it can.
        convert: writes the engine's files for a model into a folder; None if the engine reads what MLflow logged.
        repeats_samples: whether the same seed gives a row the same sampled text.
        auto_order: position among the engines that ``auto`` tries, in ascending order; None if ``auto`` skips it.
        extra: extra of batch_assets that installs the package, if a plain installation doesn't.
    """

    name: str
    package: str
    load: Callable[[ScoringModel, int], Engine]
    refuses: Callable[[ScoringModel], str | None] = accept_every_model
    convert: Callable[[ScoringModel, Path], Conversion] | None = None
    repeats_samples: bool = False
    auto_order: int | None = None
    extra: str | None = None

    def __post_init__(self) -> None:
        if self.auto_order is not None and self.convert is None:
            raise ValueError(f"the engine {self.name}: auto uses only engines whose conversion is compared")

    @property
    def is_installed(self) -> bool:
        """Whether the engine's package can be imported."""
        return importlib.util.find_spec(self.package.replace("-", "_")) is not None

    @property
    def installation(self) -> str:
        """Command that installs the engine's package."""
        return f"pip install 'batch_assets[{self.extra}]'" if self.extra else f"pip install {self.package}"

    def artifact(self, dtype: str) -> str:
        """Artifact path of the converted model in its run. Formats may differ between versions of the package."""
        return f"engines/{self.name}-{importlib.metadata.version(self.package)}-{dtype}"

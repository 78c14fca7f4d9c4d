"""All engines by name. Each module ``engines/<name>_engine.py`` defines the ``SPEC`` of one engine."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from importlib import import_module
from pathlib import Path

from batch_assets.engines.contract import Completion, Engine, ScoringModel
from batch_assets.engines.conversion import Conversion
from batch_assets.engines.spec import EngineSpec
from batch_assets.isolation import isolated
from batch_assets.machine import cores
from batch_assets.settings import ENGINE_NAMES

ENGINES: dict[str, EngineSpec] = {
    name: import_module(f"batch_assets.engines.{name}_engine").SPEC for name in ENGINE_NAMES
}

# The reference runs every model, and the output of the others is compared with its output.
REFERENCE = ENGINES["transformers"]
# Runs in MLflow's Spark UDF instead of this package's workers.
MLFLOW = ENGINES["mlflow"]
# In the order in which ``auto`` tries them.
FASTER_ENGINES = sorted(
    (spec for spec in ENGINES.values() if spec.auto_order is not None), key=lambda spec: spec.auto_order or 0
)


def load_engine(model: ScoringModel, threads: int) -> Engine:
    """Load the engine that a model names, with this many CPU threads."""
    return ENGINES[model.engine].load(model, threads)


class IsolatedEngine:
    """The engine that a model names, in another process with all cores: if that dies, this one reports it."""

    def __init__(self, model: ScoringModel) -> None:
        # What reads answers may be defined in a module that only this process knows.
        self._model = replace(model, read=None)

    def stream(self, documents: Sequence[str], batch_tokens: int | None = None) -> Iterator[tuple[int, Completion]]:
        """Generate one text for each document. An error affects only its row.

        Raises:
            BatchAssetsError: the process died, or the model is not supported.
        """
        return isolated(_stream, self._model, list(documents), batch_tokens)


def _stream(
    model: ScoringModel, documents: Sequence[str], batch_tokens: int | None
) -> Iterator[tuple[int, Completion]]:
    return load_engine(model, cores()).stream(documents, batch_tokens)


def convert(model: ScoringModel, folder: Path) -> Conversion:
    """Write the files of the engine that a model names into a folder, in another process.

    Raises:
        BatchAssetsError: the process died.
    """
    (conversion,) = isolated(_convert, replace(model, read=None), folder)
    return conversion


def _convert(model: ScoringModel, folder: Path) -> Iterator[Conversion]:
    specified = ENGINES[model.engine].convert
    assert specified is not None
    yield specified(model, folder)

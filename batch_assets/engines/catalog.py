"""All engines by name. Each module ``engines/<name>_engine.py`` defines the ``SPEC`` of one engine."""

from importlib import import_module

from batch_assets.engines.contract import Engine, ScoringModel
from batch_assets.engines.spec import EngineSpec
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

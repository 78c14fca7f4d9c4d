"""Engines by their names."""

import importlib.util

from batch_assets.inference.contract import Engine, ScoringModel

TRANSFORMERS, CTRANSLATE2, OPENVINO = "transformers", "ctranslate2", "openvino"
# Not an engine of this package's workers: mlflow.pyfunc.spark_udf as it is.
MLFLOW = "mlflow"


def is_installed(engine: str) -> bool:
    """Whether the packages of an engine are there; only OpenVINO's are an extra."""
    return engine != OPENVINO or importlib.util.find_spec("openvino_genai") is not None


def load_engine(model: ScoringModel, threads: int) -> Engine:
    """Load the engine that a model names.

    Args:
        model: the version.
        threads: CPU threads to use.
    """
    if model.engine == CTRANSLATE2:
        from batch_assets.inference.ctranslate2_engine import CTranslate2Engine

        return CTranslate2Engine(model, threads)
    if model.engine == OPENVINO:
        from batch_assets.inference.openvino_engine import OpenVINOEngine

        return OpenVINOEngine(model, threads)
    from batch_assets.inference.transformers_engine import TransformersEngine

    return TransformersEngine(model, threads)

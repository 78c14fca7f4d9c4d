"""Engines by their names."""

from batch_assets.inference.contract import Engine, ScoringModel


def load_engine(model: ScoringModel, threads: int) -> Engine:
    """Load the engine that a model names.

    Args:
        model: the version.
        threads: CPU threads to use.
    """
    if model.engine == "ctranslate2":
        from batch_assets.inference.ctranslate2_engine import CTranslate2Engine

        return CTranslate2Engine(model, threads)
    from batch_assets.inference.transformers_engine import TransformersEngine

    return TransformersEngine(model, threads)

"""The baseline engine: MLflow's stock ``mlflow.pyfunc.spark_udf``.

``scoring.spark_udf`` runs it on Spark. Outside Spark, MLflow's pipeline gives the same output as the reference engine.
"""

from batch_assets.engines.spec import EngineSpec
from batch_assets.engines.transformers_engine import TransformersEngine

SPEC = EngineSpec("mlflow", package="mlflow", load=TransformersEngine)

"""From a checkpoint to a registered version with an alias: pipelines, MLflow runs, the registry."""

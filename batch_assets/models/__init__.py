"""Models: checkpoints, tasks, MLflow runs, evaluation, the registry and promotion."""

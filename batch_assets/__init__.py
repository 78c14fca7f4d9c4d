"""A Dagster asset graph for governed batch inference on a lakehouse."""

"""Scoring: the Spark scorer, its workers and the store of finished completions."""

"""Scoring: the row contract, engines, finished completions and the Spark scorer."""

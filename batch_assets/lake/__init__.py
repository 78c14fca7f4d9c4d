"""Delta tables: schemas, snapshots, commits, upkeep, and the Spark data source ``deltars``."""

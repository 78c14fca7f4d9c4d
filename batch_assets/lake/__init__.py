"""Delta tables: names and schemas, snapshots and commits, and the Spark data source over them."""

"""The partitions definition that every table shares."""

import dagster as dg

BATCHES = dg.DynamicPartitionsDefinition(name="batch_assets/batch")

"""The Spark Python data source ``deltars``: reads and writes Delta tables with delta-rs, without JVM jars.

docs/deltars.md lists its options.
"""

from batch_assets.lake.deltars.frames import read_batch, read_table, stage_frame
from batch_assets.lake.deltars.source import register_deltars

__all__ = ["read_batch", "read_table", "register_deltars", "stage_frame"]

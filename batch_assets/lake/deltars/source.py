"""The data source as Spark sees it: its name, its options, a reader and a writer."""

from functools import cached_property

import pyarrow as pa
from pyspark.sql import SparkSession
from pyspark.sql.datasource import DataSource
from pyspark.sql.pandas.types import from_arrow_schema
from pyspark.sql.types import StructType

from batch_assets.errors import BatchAssetsError
from batch_assets.lake.deltars.options import Options
from batch_assets.lake.deltars.reader import DeltarsReader
from batch_assets.lake.deltars.writer import DeltarsWriter, plan_write
from batch_assets.lake.snapshot import Snapshot


def register_deltars(spark: SparkSession) -> None:
    """Make ``deltars`` known to a session, and let its filters leave out files."""
    # Spark refuses data sources that take filters where this is off, as it is by default.
    spark.conf.set("spark.sql.python.filterPushdown.enabled", "true")
    spark.dataSource.register(DeltarsDataSource)


class DeltarsDataSource(DataSource):
    """Reads and writes Delta tables; the driver plans and commits, the rows stay on the executors."""

    @classmethod
    def name(cls) -> str:
        """Name for ``format``."""
        return "deltars"

    @cached_property
    def _options(self) -> Options:
        return Options(self.options)

    def _table(self) -> Snapshot:
        return Snapshot.open(self._options.uri, self._options.storage, self._options.number("versionAsOf"))

    def schema(self) -> StructType:
        """Columns of the table, or those that the option ``columns`` names."""
        table = self._table()
        names = self._options.names("columns") or table.schema.names
        unknown = [name for name in names if name not in table.schema.names]
        if unknown:
            raise BatchAssetsError(
                f"{table.uri} has no column {', '.join(unknown)}: it has {', '.join(table.schema.names)}"
            )
        return from_arrow_schema(pa.schema([table.schema.field(name) for name in names]))

    def reader(self, schema: StructType) -> DeltarsReader:
        """The reader of one query."""
        return DeltarsReader(self._table(), schema)

    def writer(self, schema: StructType, overwrite: bool) -> DeltarsWriter:
        """The writer of one job; what can be refused before a file is written is refused here."""
        return plan_write(self._options, schema, overwrite)

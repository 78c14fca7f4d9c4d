"""The data source as Spark sees it: its name, its options, a reader and a writer."""

from functools import cached_property

import pyarrow as pa
from pyspark.sql import SparkSession
from pyspark.sql.datasource import DataSource
from pyspark.sql.pandas.types import from_arrow_schema
from pyspark.sql.types import StructType

from batch_assets.errors import BatchAssetsError
from batch_assets.lake.deltars.options import READING, WRITING, Options
from batch_assets.lake.deltars.reader import DeltarsReader
from batch_assets.lake.deltars.writer import DeltarsWriter, plan_write
from batch_assets.lake.snapshot import Snapshot


def register_deltars(spark: SparkSession) -> None:
    """Make ``deltars`` known to a session."""
    spark.dataSource.register(DeltarsDataSource)


class DeltarsDataSource(DataSource):
    """Reads and writes Delta tables; the driver plans and commits, the rows stay on the executors."""

    @classmethod
    def name(cls) -> str:
        """Name for ``format``."""
        return "deltars"

    # Set when the schema is read, so that all that a data frame reads is of one version: Spark keeps this object.
    _version: int | None = None

    @cached_property
    def _reading(self) -> Options:
        return Options(self.options, READING)

    def _table(self) -> Snapshot:
        options = self._reading
        version = options.number("versionAsOf") if self._version is None else self._version
        return Snapshot.open(options.uri, options.storage, version)

    def schema(self) -> StructType:
        """Columns of the table, or those that the option ``columns`` names."""
        table = self._table()
        self._version = table.version
        names = self._reading.names("columns") or table.schema.names
        unknown = [name for name in names if name not in table.schema.names]
        if unknown:
            raise BatchAssetsError(
                f"{table.uri} has no column {', '.join(unknown)}: it has {', '.join(table.schema.names)}"
            )
        return from_arrow_schema(pa.schema([table.schema.field(name) for name in names]))

    def reader(self, schema: StructType) -> DeltarsReader:
        """The reader of one query."""
        return DeltarsReader(self._table(), schema, self._reading.text("filesWhere"))

    def writer(self, schema: StructType, overwrite: bool) -> DeltarsWriter:
        """The writer of one job; what can be refused before a file is written is refused here."""
        return plan_write(Options(self.options, WRITING), schema, overwrite)

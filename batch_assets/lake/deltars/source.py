"""The Spark data source ``deltars``: its name, schema, reader and writer."""

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
    """Register ``deltars`` with a Spark session."""
    spark.dataSource.register(DeltarsDataSource)


class DeltarsDataSource(DataSource):
    """Reads and writes Delta tables. The driver plans and commits; rows stay on the executors."""

    @classmethod
    def name(cls) -> str:
        """Return the name to pass to ``format``."""
        return "deltars"

    # Set when the schema is read. Spark keeps this object, so a data frame always reads the same version.
    _version: int | None = None

    @cached_property
    def _reading(self) -> Options:
        return Options(self.options, READING)

    def _table(self) -> Snapshot:
        options = self._reading
        version = options.number("versionAsOf") if self._version is None else self._version
        return Snapshot.open(options.uri, options.storage, version)

    def schema(self) -> StructType:
        """Return the columns of the table, or those named by the option ``columns``."""
        table = self._table()
        self._version = table.version
        names = self._reading.names("columns") or table.schema.names
        unknown = [name for name in names if name not in table.schema.names]
        if unknown:
            raise BatchAssetsError(
                f"the table at {table.uri} has no column {', '.join(unknown)}: it has {', '.join(table.schema.names)}"
            )
        return from_arrow_schema(pa.schema([table.schema.field(name) for name in names]))

    def reader(self, schema: StructType) -> DeltarsReader:
        """Return the reader for one query."""
        return DeltarsReader(self._table(), schema, self._reading.partition())

    def writer(self, schema: StructType, overwrite: bool) -> DeltarsWriter:
        """Return the writer for one job, or refuse an invalid write before a file is written."""
        return plan_write(Options(self.options, WRITING), schema, overwrite)

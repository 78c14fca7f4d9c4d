"""The contract of every table: its columns, their types and their meaning.

The Delta schema, the Spark schema, the column schema shown in Dagster and the checks are derived from it.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import pyarrow as pa

ColumnType = Literal["string", "long", "double", "boolean", "timestamp"]

_ARROW: dict[str, pa.DataType] = {
    "string": pa.string(),
    "long": pa.int64(),
    "double": pa.float64(),
    "boolean": pa.bool_(),
    "timestamp": pa.timestamp("us", tz="UTC"),
}

PARTITION = "batch"

# Fields of a completion.
_NOT_OF_THE_ANSWER = {"model", "model_version", "completed_at"}
_SUMMED = {"input_tokens", "output_tokens"}


@dataclass(frozen=True)
class Column:
    """One column of a table; ``holds`` is the field of a completion that it stores, if any."""

    name: str
    type: ColumnType
    description: str
    nullable: bool = True
    holds: str | None = None


@dataclass(frozen=True)
class Table:
    """One table of the lake, partitioned by batch."""

    name: str
    description: str
    columns: tuple[Column, ...]

    @cached_property
    def arrow_schema(self) -> pa.Schema:
        """All columns, including the partition column."""
        return pa.schema([pa.field(c.name, _ARROW[c.type], nullable=c.nullable) for c in self.columns])

    @cached_property
    def file_schema(self) -> pa.Schema:
        """The columns stored in data files: all except the partition column."""
        return pa.schema([field for field in self.arrow_schema if field.name != PARTITION])

    @property
    def spark_ddl(self) -> str:
        """The schema in Spark's syntax; Spark and Delta use the same names for these types."""
        return ", ".join(f"{column.name} {column.type}" for column in self.columns)

    @property
    def completion_fields(self) -> dict[str, str]:
        """Columns that store a field of a completion, with that field."""
        return {column.name: column.holds for column in self.columns if column.holds is not None}

    @property
    def answer_columns(self) -> list[str]:
        """Columns whose values come from the answer to a document, rather than from the model or the time."""
        return [name for name, field in self.completion_fields.items() if field not in _NOT_OF_THE_ANSWER]

    @property
    def summed_columns(self) -> tuple[str, ...]:
        """Columns whose sums commits record, so that no one has to read the rows for them."""
        return tuple(name for name, field in self.completion_fields.items() if field in _SUMMED)

    @property
    def column_names(self) -> list[str]:
        """Names of all columns, in order."""
        return [column.name for column in self.columns]


_ID = Column("id", "string", "Identifier of the document, unique within its batch", nullable=False)
_BATCH = Column(PARTITION, "string", "Batch of the row; the partition column", nullable=False)

PROD_DATA = Table(
    "m4_1_prod_data",
    "Documents to summarize, with a reference summary if there is one",
    (
        _ID,
        Column("document", "string", "Text of the document"),
        Column("summary", "string", "Ground-truth summary"),
        _BATCH,
        Column("source", "string", "File or data set that the row came from"),
        Column("landed_at", "timestamp", "When the row was written to this table"),
    ),
)

PROD_DATA_REJECTED = Table(
    "m4_1_prod_data_rejected",
    "Records that were rejected instead of becoming rows of m4_1_prod_data, with the reason",
    (
        _BATCH,
        Column("source", "string", "File or data set that the record came from"),
        Column("position", "long", "Position of the record in its source, from 0"),
        Column("reason", "string", "Why the record was rejected"),
        Column("raw", "string", "The original record, cut to 10,000 characters"),
        Column("rejected_at", "timestamp", "When the record was rejected"),
    ),
)

BATCH_INFERENCE = Table(
    "m4_1_batch_inference",
    "One row per document with its summary or error, scored on Spark with the champion",
    (
        *PROD_DATA.columns,
        Column("generated_summary", "string", "Summary written by the model", holds="text"),
        Column(
            "error_message",
            "string",
            "Why there is no summary; set exactly when generated_summary is null",
            holds="error_message",
        ),
        Column("finish_reason", "string", "stop, or length if the summary was cut", holds="finish_reason"),
        Column("input_tokens", "long", "Tokens in the request, counted by the model's tokenizer", holds="input_tokens"),
        Column("output_tokens", "long", "Number of generated tokens", holds="output_tokens"),
        Column(
            "input_truncated",
            "boolean",
            "Whether the document was cut to the model's maximum input length",
            holds="input_truncated",
        ),
        Column("model_name", "string", "Registered model that wrote the summary", holds="model"),
        Column("model_version", "long", "Version of the registered model", holds="model_version"),
        Column(
            "request_hash",
            "string",
            "SHA-256 of model, engine, parameters and rendered request; null if the document has no text",
            holds="request_hash",
        ),
        Column("scored_at", "timestamp", "When the summary was written", holds="completed_at"),
    ),
)

AI_QUERY_INFERENCE = Table(
    "ai_query_inference",
    "Summaries written by ai_query in SQL, for the first rows of each batch",
    (
        _ID,
        _BATCH,
        Column("generated_summary", "string", "Summary returned by the endpoint", holds="text"),
        Column(
            "error_message",
            "string",
            "Why there is no summary; set exactly when generated_summary is null",
            holds="error_message",
        ),
        Column("endpoint", "string", "Name of the endpoint that was called"),
        Column("model", "string", "Model name reported by the endpoint", holds="model"),
        Column("prompt_tokens", "long", "Tokens in the request, counted by the endpoint", holds="input_tokens"),
        Column("completion_tokens", "long", "Tokens in the answer, counted by the endpoint", holds="output_tokens"),
        Column("finish_reason", "string", "stop, or length if the answer was cut", holds="finish_reason"),
        Column(
            "request_hash",
            "string",
            "SHA-256 of endpoint, model, parameters and request; null if the document has no text",
            holds="request_hash",
        ),
        Column("created_at", "timestamp", "When the answer arrived", holds="completed_at"),
    ),
)

SUMMARY_QUALITY = Table(
    "summary_quality",
    "Quality of the summaries of each batch, table and model version",
    (
        _BATCH,
        Column("table_name", "string", "Table that contains the summaries", nullable=False),
        Column("model_name", "string", "Registered model, or model of the endpoint", nullable=False),
        Column("model_version", "string", "Version of the registered model; empty for an endpoint"),
        Column("documents", "long", "Documents with text; no count includes documents without text"),
        Column("summaries", "long", "Documents with a summary"),
        Column("errors", "long", "Documents that failed"),
        Column("empty", "long", "Summaries without text"),
        Column("cut", "long", "Summaries that ended at the length limit"),
        Column("truncated", "long", "Documents known to have been cut to the model's maximum input length"),
        Column("references", "long", "Summaries with a ground truth to compare to"),
        Column("rouge1", "double", "Mean ROUGE-1 F-measure"),
        Column("rouge2", "double", "Mean ROUGE-2 F-measure"),
        Column("rougeL", "double", "Mean ROUGE-L F-measure"),
        Column("rougeLsum", "double", "Mean ROUGE-Lsum F-measure"),
        Column("lead_rouge1", "double", "Mean ROUGE-1 of the document's first three sentences"),
        Column("words", "double", "Mean length of a summary in words"),
        Column("compression", "double", "Mean ratio of document words to summary words"),
        Column("coverage", "double", "Mean extractive fragment coverage"),
        Column("density", "double", "Mean extractive fragment density"),
        Column("novel_bigrams", "double", "Mean share of bigrams that do not occur in the document"),
        Column("repetition", "double", "Mean share of trigrams that repeat an earlier one"),
        Column("words_histogram", "string", "JSON: summaries by length in words, in bins of quality/histograms.py"),
        Column("compression_histogram", "string", "JSON: summaries by compression, in bins of quality/histograms.py"),
        Column("coverage_histogram", "string", "JSON: summaries by coverage, in bins of quality/histograms.py"),
        Column("best", "string", "JSON: ids of the summaries closest to their ground truth, with ROUGE-1"),
        Column("worst", "string", "JSON: ids of the summaries farthest from their ground truth, with ROUGE-1"),
        Column("measured_at", "timestamp", "When the quality was measured"),
    ),
)

TABLES = (PROD_DATA, PROD_DATA_REJECTED, BATCH_INFERENCE, AI_QUERY_INFERENCE, SUMMARY_QUALITY)

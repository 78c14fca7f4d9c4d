"""The contract of every table: columns, types, meaning.

The Delta schema, the column schema shown in Dagster and the checks all come from here.
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


@dataclass(frozen=True)
class Column:
    """One column of a table."""

    name: str
    type: ColumnType
    description: str
    nullable: bool = True


@dataclass(frozen=True)
class Table:
    """One table of the lake, partitioned by batch."""

    name: str
    description: str
    columns: tuple[Column, ...]

    @cached_property
    def arrow_schema(self) -> pa.Schema:
        """All columns, the partition column among them."""
        return pa.schema([pa.field(c.name, _ARROW[c.type], nullable=c.nullable) for c in self.columns])

    @cached_property
    def file_schema(self) -> pa.Schema:
        """The columns that data files hold: all but the partition column."""
        return pa.schema([field for field in self.arrow_schema if field.name != PARTITION])

    @property
    def spark_ddl(self) -> str:
        """The schema as Spark writes it; Spark knows these types by the same names as Delta."""
        return ", ".join(f"{column.name} {column.type}" for column in self.columns)

    @property
    def column_names(self) -> list[str]:
        """Names of all columns, in order."""
        return [column.name for column in self.columns]


_ID = Column("id", "string", "Identifier of the document, unique within its batch", nullable=False)
_BATCH = Column(PARTITION, "string", "Batch that the row belongs to; the partition column", nullable=False)

PROD_DATA = Table(
    "m4_1_prod_data",
    "Documents to summarize, with the summary a person wrote where there is one",
    (
        _ID,
        Column("document", "string", "The text"),
        Column("summary", "string", "Ground-truth summary"),
        _BATCH,
        Column("source", "string", "File or data set that the row came from"),
        Column("landed_at", "timestamp", "When the row was written here"),
    ),
)

PROD_DATA_REJECTED = Table(
    "m4_1_prod_data_rejected",
    "Records that could not become rows of m4_1_prod_data, with the reason",
    (
        _BATCH,
        Column("source", "string", "File or data set that the record came from"),
        Column("position", "long", "Position of the record in its source, from 0"),
        Column("reason", "string", "Why the record was set aside"),
        Column("raw", "string", "The record as it was found, cut to 10,000 characters"),
        Column("rejected_at", "timestamp", "When the record was set aside"),
    ),
)

BATCH_INFERENCE = Table(
    "m4_1_batch_inference",
    "One summary for every document, scored on Spark with the champion",
    (
        *PROD_DATA.columns,
        Column("generated_summary", "string", "What the model wrote"),
        Column("error_message", "string", "Why there is no summary; set exactly where generated_summary is null"),
        Column("finish_reason", "string", "stop, or length where the summary was cut"),
        Column("input_tokens", "long", "Tokens of the request by the model's own tokenizer"),
        Column("output_tokens", "long", "Tokens that were generated"),
        Column("input_truncated", "boolean", "Whether the document was cut to what the model takes"),
        Column("model_name", "string", "Registered model that wrote the summary"),
        Column("model_version", "long", "Its version"),
        Column(
            "request_hash",
            "string",
            "SHA-256 of model, engine, parameters and rendered request; null for a document without text",
        ),
        Column("scored_at", "timestamp", "When the summary was written"),
    ),
)

AI_QUERY_INFERENCE = Table(
    "ai_query_inference",
    "Summaries written by SQL: ai_query over the first rows of each batch",
    (
        _ID,
        _BATCH,
        Column("generated_summary", "string", "What the endpoint answered"),
        Column("error_message", "string", "Why there is no answer; set exactly where generated_summary is null"),
        Column("endpoint", "string", "Name of the endpoint that was asked"),
        Column("model", "string", "Model that the endpoint says it used"),
        Column("prompt_tokens", "long", "Tokens of the request by the endpoint's count"),
        Column("completion_tokens", "long", "Tokens of the answer by the endpoint's count"),
        Column("finish_reason", "string", "stop, or length where the answer was cut"),
        Column(
            "request_hash",
            "string",
            "SHA-256 of endpoint, model, parameters and request; null for a document without text",
        ),
        Column("created_at", "timestamp", "When the answer came"),
    ),
)

SUMMARY_QUALITY = Table(
    "summary_quality",
    "Quality of the summaries of each batch, table and model version",
    (
        _BATCH,
        Column("table_name", "string", "Table that holds the summaries", nullable=False),
        Column("model_name", "string", "Registered model, or model of the endpoint", nullable=False),
        Column("model_version", "string", "Version of the registered model; empty for an endpoint"),
        Column("documents", "long", "Documents with text; those without appear in no count"),
        Column("summaries", "long", "Documents with a summary"),
        Column("errors", "long", "Documents that failed"),
        Column("empty", "long", "Summaries without text"),
        Column("cut", "long", "Summaries that ended at the length limit"),
        Column("truncated", "long", "Documents that were cut to what the model takes, as far as that is known"),
        Column("references", "long", "Summaries that have a ground truth to be compared with"),
        Column("rouge1", "double", "Mean ROUGE-1 F-measure"),
        Column("rouge2", "double", "Mean ROUGE-2 F-measure"),
        Column("rougeL", "double", "Mean ROUGE-L F-measure"),
        Column("rougeLsum", "double", "Mean ROUGE-Lsum F-measure"),
        Column("lead_rouge1", "double", "Mean ROUGE-1 of the document's first three sentences"),
        Column("words", "double", "Mean length of a summary in words"),
        Column("compression", "double", "Mean of words of the document over words of the summary"),
        Column("coverage", "double", "Mean extractive fragment coverage"),
        Column("density", "double", "Mean extractive fragment density"),
        Column("novel_bigrams", "double", "Mean share of bigrams that the document does not have"),
        Column("repetition", "double", "Mean share of trigrams that repeat an earlier one"),
        Column("words_histogram", "string", "JSON: summaries by length in words, in the bins of quality/histograms.py"),
        Column("compression_histogram", "string", "JSON: summaries by compression, likewise"),
        Column("coverage_histogram", "string", "JSON: summaries by coverage, likewise"),
        Column("best", "string", "JSON: ids of the summaries nearest to their ground truth, with ROUGE-1"),
        Column("worst", "string", "JSON: ids of those farthest from it"),
        Column("measured_at", "timestamp", "When this was measured"),
    ),
)

TABLES = (PROD_DATA, PROD_DATA_REJECTED, BATCH_INFERENCE, AI_QUERY_INFERENCE, SUMMARY_QUALITY)

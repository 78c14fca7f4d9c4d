"""The contract of every table: its columns, their types and their meaning.

The Delta schema, the Spark schema, the column schema shown in Dagster and the checks are derived from it.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import pyarrow as pa

from batch_assets.lake.column_types import arrow_type, spark_ddl
from batch_assets.names import check_name

PARTITION = "batch"

# Fields of a completion.
_NOT_OF_THE_ANSWER = {"model", "model_version", "completed_at"}
_SUMMED = {"input_tokens", "output_tokens"}
_TALLIED = ("error_class", "attempts")


@dataclass(frozen=True)
class Column:
    """One column of a table; ``type`` is a type of Spark, which Delta calls the same.

    ``holds`` is the field of a completion that it stores, if any; ``is_reference`` marks the answer that a person gave.
    ``copied_from`` names the column of the source that it copies; it has that column's type if the source is a table.
    """

    name: str
    type: str
    description: str
    nullable: bool = True
    holds: str | None = None
    is_reference: bool = False
    copied_from: str | None = None


@dataclass(frozen=True)
class Table:
    """One table of the lake, partitioned by batch.

    ``owner`` is its pipeline, None for the default one. ``identity`` says what must never change about the pipeline, in
    the first table that it writes. ``source`` is the folder or URI of the table that is read in place, if any.
    """

    name: str
    description: str
    columns: tuple[Column, ...]
    owner: str | None = None
    identity: str | None = None
    source: str | None = None

    def with_types_of(self, schema: pa.Schema) -> "Table":
        """This table, with the types that the columns copied from a table have in a schema with the same names."""
        if self.source is None:
            return self
        return replace(
            self,
            columns=tuple(
                replace(column, type=spark_ddl(schema.field(column.name).type))
                if column.copied_from is not None and column.name in schema.names
                else column
                for column in self.columns
            ),
        )

    @cached_property
    def arrow_schema(self) -> pa.Schema:
        """All columns, including the partition column."""
        return pa.schema([pa.field(c.name, arrow_type(c.type), nullable=c.nullable) for c in self.columns])

    @cached_property
    def file_schema(self) -> pa.Schema:
        """The columns stored in data files: all except the partition column."""
        return pa.schema([field for field in self.arrow_schema if field.name != PARTITION])

    @property
    def spark_ddl(self) -> str:
        """The schema in Spark's syntax."""
        return ", ".join(f"{column.name} {column.type}" for column in self.columns)

    @property
    def output_column(self) -> str:
        """The column that stores the model's answer."""
        return next(column.name for column in self.columns if column.holds == "text")

    @property
    def output_type(self) -> str:
        """The type of the model's answer, in Spark's syntax."""
        return next(column.type for column in self.columns if column.holds == "text")

    @property
    def has_typed_output(self) -> bool:
        """Whether answers are stored as a struct rather than as text."""
        return self.output_type != "string"

    @property
    def reference_column(self) -> str:
        """The column that stores the answer that a person gave."""
        return next(column.name for column in self.columns if column.is_reference)

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
    def tallied_columns(self) -> tuple[str, ...]:
        """Columns whose combinations of values are counted in commits, if any of them is set."""
        return tuple(name for name, field in self.completion_fields.items() if field in _TALLIED)

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
        Column("summary", "string", "Ground-truth summary", is_reference=True),
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

_ERROR_COLUMNS = (
    Column(
        "error_class",
        "string",
        "What caused the error: document, model or service; null without text, and in rows of earlier releases",
        holds="error_class",
    ),
    Column(
        "attempts",
        "long",
        "How often the request ended in a service error; null without such an error",
        holds="attempts",
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
        *_ERROR_COLUMNS,
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
        *_ERROR_COLUMNS,
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

# What other pipelines call columns whose names say that they are about summaries.
_OTHER_NAMES = {"summary": "reference", "summaries": "answers"}
# The columns of SUMMARY_QUALITY before and after those that depend on the task.
_QUALITY_COUNTS, _QUALITY_EXAMPLES = 11, 3


@dataclass(frozen=True)
class PipelineTables:
    """The tables of one pipeline; ``answered`` is the one that ``ai_query`` writes, None without an endpoint.

    If the documents are in a table of another writer, ``documents`` says how they are read, and nothing is rejected.
    """

    documents: Table
    rejected: Table
    scored: Table
    answered: Table | None
    quality: Table

    @property
    def all(self) -> tuple[Table, ...]:
        """The tables, in the order in which a run writes them."""
        landed = () if self.documents.source is not None else (self.documents, self.rejected)
        return tuple(table for table in (*landed, self.scored, self.answered, self.quality) if table is not None)

    @property
    def of_answers(self) -> tuple[Table, ...]:
        """The tables with answers."""
        return (self.scored,) if self.answered is None else (self.scored, self.answered)


DEFAULT_TABLES = PipelineTables(PROD_DATA, PROD_DATA_REJECTED, BATCH_INFERENCE, AI_QUERY_INFERENCE, SUMMARY_QUALITY)
TABLES = DEFAULT_TABLES.all


def pipeline_tables(
    name: str,
    output: Column,
    words: tuple[str, str],
    carried: Sequence[str] = (),
    figures: Sequence[Column] = (),
    output_table: str | None = None,
    *,
    has_endpoint: bool = False,
    identity: str | None = None,
    source: str | None = None,
    id_column: str = "id",
) -> PipelineTables:
    """The tables of a pipeline other than the default one.

    Args:
        name: name of the pipeline, which the names of its tables begin with.
        output: the column of the answers.
        words: what an answer and several of them are called, for the descriptions.
        carried: columns that are copied from the source, as text unless the source is a table.
        figures: the columns of the quality table that depend on the task.
        output_table: name of the table of the answers, if it is not ``<name>_predictions``.
        has_endpoint: whether ``ai_query`` writes answers too.
        identity: what must never change about the pipeline.
        source: folder or URI of the table that is read in place, if any.
        id_column: the column of that table with the ids.

    Raises:
        ValueError: two columns of a table have the same name, or a name is not valid.
    """
    one, many = words
    known = {
        "generated_summary": output.name,
        "m4_1_prod_data": f"{name}_documents",
        "Ground-truth summary": "Answer that a person gave",
        "reference summary": "reference",
        "Summaries": many.capitalize(),
        "summaries": many,
        "Summary": one.capitalize(),
        "summary": one,
        "summarize": "score",
    }
    pattern = re.compile("|".join(known))

    def worded(text: str) -> str:
        return pattern.sub(lambda found: known[found[0]], text)

    def ours(columns: Iterable[Column]) -> list[Column]:
        return [replace(_renamed(column, output), description=worded(column.description)) for column in columns]

    def table(like: Table, suffix: str, columns: Iterable[Column]) -> Table:
        found = tuple(columns)
        names = [check_name(column.name).lower() for column in found]
        again = sorted({column for column in names if names.count(column) > 1})
        if again:
            raise ValueError(f"the table {name}_{suffix} would have two columns {', '.join(again)}")
        return Table(f"{name}_{suffix}", worded(like.description), found, owner=name)

    extra = [Column(column, "string", "Copied from the source", copied_from=column) for column in carried]
    originals, answers = PROD_DATA.columns, BATCH_INFERENCE.columns[len(PROD_DATA.columns) :]
    by_endpoint = ours(AI_QUERY_INFERENCE.columns)
    if source is None:
        documents = table(PROD_DATA, "documents", [*ours(originals[:3]), *extra, *ours(originals[3:])])
    else:
        identifier = replace(_ID, description="Identifier of the row", nullable=True, copied_from=id_column)
        documents = table(PROD_DATA, "documents", [identifier, *ours(originals[1:3]), *extra, _BATCH])
        by_endpoint[0] = identifier
    scored = table(BATCH_INFERENCE, "predictions", [*documents.columns, *ours(answers)])
    if source is not None:
        scored = replace(scored, identity=identity)
    quality = SUMMARY_QUALITY.columns
    measures = [*ours(quality[:_QUALITY_COUNTS]), *figures, *ours(quality[-_QUALITY_EXAMPLES:])]
    scored = scored if output_table is None else replace(scored, name=check_name(output_table))
    answered = table(AI_QUERY_INFERENCE, "ai_query", by_endpoint) if has_endpoint else None
    return PipelineTables(
        replace(documents, identity=identity, source=source),
        table(PROD_DATA_REJECTED, "rejected", ours(PROD_DATA_REJECTED.columns)),
        replace(scored, source=source),
        None if answered is None else replace(answered, source=source),
        table(SUMMARY_QUALITY, "quality", measures),
    )


def _renamed(column: Column, output: Column) -> Column:
    """A column of the default pipeline's tables as another pipeline calls it."""
    if column.holds == "text":
        return replace(column, name=output.name, type=output.type)
    return replace(column, name=_OTHER_NAMES.get(column.name, column.name))

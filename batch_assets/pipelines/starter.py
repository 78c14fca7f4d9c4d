"""A commented file to start a pipeline from."""

from batch_assets.pipelines.pipeline_files import COMPONENT

SCHEMA_FILE = "pipeline.schema.json"

_SCHEMA_LINE = f"# yaml-language-server: $schema={SCHEMA_FILE}\n"
# Each line, and what it is for.
_LINES = (
    ("type: {component}", ""),
    ("attributes:", ""),
    ("  name: {name}", "prefix of assets, jobs and tables; name of the registered model"),
    ("  source:", "exactly one of dataset, landing, table, url and pipeline"),
    ("    dataset: data/{name}/*.jsonl", "files (JSON Lines, CSV, Parquet), or a data set of the Hugging Face hub"),
    ("    # config: plain_text", "configuration and split of a hub data set"),
    ("    # split: test", ""),
    ("    # landing: landing/{name}", "a folder or bucket whose new files become batches"),
    ("    # table: support.{name}", "a Delta table of the lake, read in place; url: any other Delta table"),
    ("    # batch_by: opened_on", "its column whose values are the batches, or commit"),
    ("    # pipeline: translated", "the output of another pipeline"),
    ("  columns:", ""),
    ("    id: id", "without this column, ids are derived from the content"),
    ('    text: "{{subject}}\\n\\n{{body}}"', "one column, or a template with several"),
    ("    reference: category", "the answer by a person, if there is one"),
    ("    carry: []", "columns to copy to the output"),
    ("  task:", ""),
    ("    kind: classification", "summarization, classification, extraction, generation, or module:Class"),
    ('    labels: ["billing", "bug", "question"]', ""),
    ('    # schema: "name STRING, amount DOUBLE"', "for extraction"),
    ('    # prompt: "Write a title.\\n\\n{{document}}"', "for generation"),
    ("  model:", ""),
    ("    checkpoint: smollm2", "or a local folder, or a model of the hub"),
    ("    # pipeline: other", "instead of a checkpoint: use the champion of another pipeline"),
    ("    rescore: none", "which batches a new champion makes stale: none, latest or all"),
    ("  # ai_query: {{endpoint: smollm2, limit: 10}}", "a second set of answers, by SQL"),
    ("  evaluation:", "documents with references that models are evaluated on"),
    ("    dataset: data/{name}-held-out.jsonl", ""),
    ("    rows: 25", ""),
    ("  # output: {{table: {name}_predictions, column: label}}", ""),
    ("  # checks: {{error_rate: 0.05, drift: 0.25}}", ""),
    ('  schedule: "0 2 * * *"', "when stale batches are scored, in UTC"),
)
_COMMENTS_AT = 46


def starter(name: str, *, has_schema: bool = False) -> str:
    """The file of a new pipeline with this name.

    Args:
        name: name of the pipeline.
        has_schema: whether the JSON schema for editors is beside it.
    """
    lines = [_SCHEMA_LINE] if has_schema else []
    lines.append("# Every field: docs/reference/settings.md. Check this file: batch-assets check\n")
    for line, comment in _LINES:
        content = line.format(name=name, component=COMPONENT)
        lines.append(f"{content:<{_COMMENTS_AT}} # {comment}\n" if comment else f"{content}\n")
    return "".join(lines)

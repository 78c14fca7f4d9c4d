"""A commented file to start a pipeline from."""

from batch_assets.pipelines.pipeline_files import COMPONENT

SCHEMA_FILE = "pipeline.schema.json"

_TEMPLATE = """\
# yaml-language-server: $schema={schema}
# Every field: docs/reference/settings.md. Check this file: batch-assets check
type: {component}
attributes:
  name: {name}                    # prefix of assets, jobs and tables; name of the registered model
  source:                         # exactly one of dataset and landing
    dataset: data/{name}/*.jsonl  # files (JSON Lines, CSV, Parquet), or a data set of the Hugging Face hub
    # config: plain_text          # configuration and split of a hub data set
    # split: test
    # landing: landing/{name}     # a folder or bucket whose new files become batches
  columns:
    id: id                        # without this column, ids are derived from the content
    text: "{{subject}}\\n\\n{{body}}" # one column, or a template with several
    reference: category           # the answer by a person, if there is one
    carry: []                     # columns to copy to the output
  task:
    kind: classification          # summarization, classification, extraction, generation, or module:Class
    labels: ["billing", "bug", "question"]
    # schema: "name STRING, amount DOUBLE"          # for extraction
    # prompt: "Write a title.\\n\\n{{document}}"      # for generation
  model:
    checkpoint: smollm2           # or a local folder, or a model of the hub
    rescore: none                 # which batches a new champion makes stale: none, latest, all
  # ai_query:                     # a second set of answers, by SQL
  #   endpoint: smollm2
  #   limit: 10
  evaluation:
    dataset: data/{name}-held-out.jsonl   # documents with references that the model is evaluated on
    rows: 25
  # output: {{table: {name}_predictions, column: label}}
  # checks: {{error_rate: 0.05, drift: 0.25}}
  schedule: "0 2 * * *"           # when stale batches are scored, in UTC
"""


def starter(name: str) -> str:
    """The file of a new pipeline with this name."""
    return _TEMPLATE.format(name=name, component=COMPONENT, schema=SCHEMA_FILE)

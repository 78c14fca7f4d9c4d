"""Every setting of a deployment and of its pipelines, in one place."""

import difflib
import os
import pkgutil
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, Field, ValidationError, ValidationInfo, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from batch_assets.errors import BatchAssetsError
from batch_assets.names import check_name
from batch_assets.text import label_key
from batch_assets.text_template import TextTemplate

PREFIX = "BATCH_ASSETS_"

# Each engine is a module in the folder engines.
ENGINE_NAMES = tuple(
    sorted(
        module.name.removesuffix("_engine")
        for module in pkgutil.iter_modules([str(Path(__file__).with_name("engines"))])
        if module.name.endswith("_engine")
    )
)

EMBEDDED_MODEL = "smollm2"
EMBEDDED_DATASET = "aclsum"
EMBEDDED_ENDPOINT = "smollm2"

SUMMARIZATION, CLASSIFICATION, EXTRACTION, GENERATION = TASKS = (
    "summarization",
    "classification",
    "extraction",
    "generation",
)

# The pipeline that ships, which the environment configures.
DEFAULT_PIPELINE = "summaries"

# Partitions, groups and assets beside those of a pipeline have or will have these names.
_RESERVED_NAMES = {
    *("batch", "data", "external", "model", "chat_endpoints", "invalid_pipelines"),
    *("grounding", "shadow", "long_documents", "source_tables"),
}
_FEWEST_LABELS = 2
_TABLE_PARTS = 3

# The default pipeline has the tables of the talk, so the environment doesn't set what other tables would need.
_ONLY_IN_FILES = {
    *("pipeline", "written_source", "labels", "answer_schema", "output_table", "output_column", "carry"),
    *("source_table", "source_url", "source_pipeline", "upstream_table"),
    *("source_asset", "batch_by", "every", "max_batches", "shared_model"),
}
# Fields that name a source; a pipeline has exactly one of them.
SOURCES = ("dataset", "landing", "source_table", "source_url", "source_pipeline")
# The value of batch_by that makes one batch of what a commit appended.
COMMIT = "commit"

# Settings of a pipeline, with their place in its file. All others belong to the deployment.
IN_PIPELINE_FILES = {
    "pipeline": "name",
    "dataset": "source.dataset",
    "dataset_config": "source.config",
    "split": "source.split",
    "limit": "source.limit",
    "batch_rows": "source.batch_rows",
    "landing": "source.landing",
    "landed_files": "source.landed_files",
    "source_table": "source.table",
    "source_url": "source.url",
    "source_pipeline": "source.pipeline",
    "source_asset": "source.asset_key",
    "batch_by": "source.batch_by",
    "every": "source.every",
    "max_batches": "source.max_batches",
    "id_column": "columns.id",
    "text": "columns.text",
    "reference": "columns.reference",
    "carry": "columns.carry",
    "task": "task.kind",
    "labels": "task.labels",
    "answer_schema": "task.schema",
    "prompt": "task.prompt",
    "model": "model.checkpoint",
    "shared_model": "model.pipeline",
    "model_name": "model.name",
    "min_length": "model.min_length",
    "max_length": "model.max_length",
    "do_sample": "model.do_sample",
    "seed": "model.seed",
    "device_map": "model.device_map",
    "dtype": "model.dtype",
    "engine": "model.engine",
    "batch_tokens": "model.batch_tokens",
    "select_by": "model.select_by",
    "select_tag": "model.select_tag",
    "promotion_margin": "model.promotion_margin",
    "beat_baseline": "model.beat_baseline",
    "rescore": "model.rescore",
    "endpoint": "ai_query.endpoint",
    "ai_query_limit": "ai_query.limit",
    "evaluation_dataset": "evaluation.dataset",
    "evaluation_split": "evaluation.split",
    "evaluation_rows": "evaluation.rows",
    "output_table": "output.table",
    "output_column": "output.column",
    "error_rate": "checks.error_rate",
    "empty_rate": "checks.empty_rate",
    "cut_rate": "checks.cut_rate",
    "truncated_rate": "checks.truncated_rate",
    "repetition": "checks.repetition",
    "drift": "checks.drift",
    "fresh_hours": "checks.fresh_hours",
    "error_attempts": "error_attempts",
    "schedule": "schedule",
    "owners": "owners",
}

# What the owner of a shared model decides: with another value, its versions would give other answers, or be other
# versions.
DECIDED_BY_OWNER = (
    *("model", "model_name", "min_length", "max_length", "do_sample", "seed", "dtype"),
    *("select_by", "select_tag", "promotion_margin", "beat_baseline"),
    *("evaluation_dataset", "evaluation_split", "evaluation_rows"),
)
# A pipeline that uses a shared model may write these again, with the owner's values.
TASK_FIELDS = ("task", "labels", "answer_schema", "prompt")
# It has the owner's values for these, unless its file sets them.
SET_BY_OWNER = ("engine", "device_map", "batch_tokens")

# The scheme of an address, such as jdbc: or s3://
_ADDRESS = re.compile(r"[a-z][a-z0-9+.-]+:", re.IGNORECASE)
_SECRET_PARAMETER = re.compile(
    r"([?&;][^=&;\s]*(?:pass|pwd|token|secret|key|odbc_connect)[^=&;\s]*=)[^&;\s]*", re.IGNORECASE
)


def check_pipeline_name(name: str) -> None:
    """Check the name of a pipeline.

    Raises:
        ValueError: the name is not 1 to 50 characters of ``a-z0-9_``, a letter first, or is reserved.
    """
    if not re.fullmatch(r"[a-z][a-z0-9_]{0,49}", name):
        raise ValueError("use 1 to 50 characters of a-z, 0-9 and _, a letter first")
    if name in _RESERVED_NAMES:
        raise ValueError("this name is reserved")


def _as_list(value: object) -> list[object]:
    return list(value) if isinstance(value, list) else []


def _absolute(path: Path) -> Path:
    try:
        return path.expanduser().resolve()
    except RuntimeError as error:  # ~user, where this machine has no such user
        raise ValueError(str(error)) from error


class Settings(BaseSettings):
    """The settings of one pipeline and of its deployment; docs/reference/settings.md lists them.

    The environment sets those of the deployment and of the default pipeline, files set those of other pipelines.
    ``IN_PIPELINE_FILES`` says where in a file a setting is.
    """

    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True, populate_by_name=True)

    home: Path = Field(Path(".batch_assets"), description="Folder for the deployment's state.")
    lake: str | None = Field(None, description="Folder or URI of the lake; default <home>/lake.")
    catalog: str = Field("main", description="First part of table and model names.")
    schema_name: str = Field(
        "default",
        validation_alias=f"{PREFIX}SCHEMA",
        description="Second part of table and model names.",
    )

    pipelines: Path = Field(Path("pipelines"), description="Folder with one YAML file per pipeline.")
    pipeline: str = Field(DEFAULT_PIPELINE, description="Name of the pipeline.")

    written_source: str | None = Field(None, description="The source as the pipeline's file names it.")
    dataset: str | None = Field(
        EMBEDDED_DATASET,
        description="Documents to score: aclsum, a Hugging Face hub data set, or a local file, folder or glob.",
    )
    dataset_config: str | None = Field(None, description="Configuration of a hub data set to score.")
    split: str = Field("test", description="Split of a hub data set to score.")
    limit: int | None = Field(None, ge=1, description="Read at most this many records of the data set.")
    batch_rows: int | None = Field(
        None,
        ge=1,
        description="Maximum rows per batch; default 25 for aclsum, 10,000 for what a table batched by commit had at "
        "first, otherwise 1,000.",
    )
    source_table: str | None = Field(
        None, description="Delta table of the lake to read in place: table, schema.table or catalog.schema.table."
    )
    source_url: str | None = Field(None, description="Folder or URI of a Delta table to read in place.")
    source_pipeline: str | None = Field(None, description="Pipeline whose output is the source, batch for batch.")
    upstream_table: str | None = Field(None, description="Folder or URI of the output of the source pipeline.")
    source_asset: str | None = Field(
        None, description="Key of the asset that writes the table to read in place, such as support/tickets."
    )
    batch_by: str | None = Field(
        None,
        description="Column whose values are the batches of a table that is read in place, or commit: what a commit "
        "appended is a batch.",
    )
    every: Literal["day", "hour"] | None = Field(
        None, description="How much time a batch spans if batch_by is a timestamp (UTC)."
    )
    max_batches: int = Field(
        10_000, ge=1, description="Refuse a table that is read in place if it has more batches than this."
    )
    id_column: str = Field("id", description="Column with the id of a record.")
    text: str = Field(
        "document",
        description="The text of a record: the name of a column, or a template with several, {subject}: {body}.",
    )
    reference: str | None = Field("summary", description="Column with the answer that a person gave, if there is one.")
    carry: tuple[str, ...] = Field((), description="Columns to copy to the output table, as text; a JSON list.")

    evaluation_dataset: str | None = Field(
        None,
        description="Held-out documents with reference answers; default: the validation split of a hub data set or of "
        "aclsum.",
    )
    evaluation_split: str | None = Field(
        None, description="Split of a hub data set to evaluate on; default validation, or test if that is scored."
    )
    evaluation_rows: int = Field(25, ge=1, description="Number of held-out documents to evaluate a model on.")

    model: str = Field(EMBEDDED_MODEL, description="Model: smollm2, a Hugging Face hub model, or a local folder.")
    shared_model: str | None = Field(
        None,
        description="Pipeline whose champion scores the documents, instead of a checkpoint; that pipeline decides the "
        "task, the lengths, the precision and the promotion.",
    )
    task: str = Field(SUMMARIZATION, description=f"Task: {', '.join(TASKS)}, or module:Class for your own task.")
    labels: tuple[tuple[str, str | None], ...] | None = Field(
        None,
        description="Labels of a classification: a list, or a mapping to descriptions for the prompt.",
    )
    answer_schema: str | None = Field(
        None, description="What an extraction returns: fields in Spark's syntax, such as name STRING, amount DOUBLE."
    )
    prompt: str | None = Field(
        None, description="Prompt for a decoder-only model; {document} stands for the text. Default: the task's prompt."
    )
    min_length: int | None = Field(
        None,
        ge=0,
        description="Minimum answer length in tokens; default: the task's, 20 for a summary by an encoder-decoder.",
    )
    max_length: int | None = Field(
        None,
        ge=1,
        description="Maximum answer length in tokens; default: the task's, for a summary 40 by an encoder-decoder, "
        "otherwise 60.",
    )
    do_sample: bool = Field(False, description="Sample tokens instead of always taking the most likely one.")
    seed: int = Field(0, ge=0, description="Seed for sampling.")
    device_map: str = Field("auto", description="Device for the model: auto, cpu, cuda, cuda:0 and so on, or mps.")
    dtype: Literal["float32", "bfloat16", "float16", "int8"] = Field(
        "float32",
        description="Precision of the model; int8 scores with 8-bit weights on CPU but logs the model in float32.",
    )
    output_table: str | None = Field(None, description="Table of the answers; default <pipeline>_predictions.")
    output_column: str | None = Field(None, description="Column of the answers; default: the task's.")
    experiment: str = Field("batch_assets", min_length=1, description="Name of the MLflow experiment.")
    model_name: str = Field("summarizer", description="Third part of the registered model's name.")
    select_by: str = Field(
        "newest", description="Which run to register: newest, or the best by a logged metric such as rouge1."
    )
    select_tag: str | None = Field(None, description="Register only runs with this tag, written as key=value.")
    promotion_margin: float = Field(
        0.02, ge=0, description="How far a candidate's main score may be below the champion's."
    )
    error_rate: float = Field(
        0.05,
        ge=0,
        le=1,
        description="Maximum share of documents that may fail, in a batch and in a candidate's evaluation.",
    )
    beat_baseline: bool = Field(False, description="Promote only candidates that beat the task's baseline.")
    error_attempts: int = Field(
        5,
        ge=1,
        description="How often the request of a row may end in a service error, such as a time-out, before the row is "
        "left as failed.",
    )
    retry_errors: bool = Field(False, description="Request all failed rows again, as batch-assets rescore --errors.")
    new_model: bool = Field(False, description="Log a new model even if nothing has changed.")

    spark_master: str = Field("local[*,4]", min_length=1, description="Spark master to run on.")
    spark_remote: str | None = Field(
        None, description="Spark Connect server, sc://host:port, to use instead of a Spark master."
    )
    spark_environment: str | None = Field(
        None, description="Packed Python environment (from make package) that a Spark cluster sends to its workers."
    )
    engine: str = Field(
        "auto",
        description=f"Engine that runs the model: {', '.join(ENGINE_NAMES)}; auto picks the fastest that writes the "
        "same text as transformers.",
    )
    batch_tokens: int | None = Field(
        None,
        ge=1,
        description="Maximum padded input tokens per forward pass; default 4,096 on CPU, 32,768 on a GPU.",
    )
    batches_per_run: int = Field(20, ge=1, description="Maximum batches in one run of a backfill.")
    rescore: Literal["none", "latest", "all"] = Field("none", description="Which batches a new champion makes stale.")

    empty_rate: float = Field(0.01, ge=0, le=1, description="Warn above this share of empty answers in a batch.")
    cut_rate: float = Field(
        0.5, ge=0, le=1, description="Warn above this share of answers in a batch that stop at the length limit."
    )
    truncated_rate: float = Field(
        0.2, ge=0, le=1, description="Warn above this share of documents in a batch that were truncated for the model."
    )
    repetition: float = Field(0.2, ge=0, le=1, description="Warn above this share of repeated trigrams in answers.")
    drift: float = Field(
        0.25, gt=0, description="Warn above this population stability index of a batch against earlier batches."
    )
    fresh_hours: float = Field(24, gt=0, description="Warn if a batch waits more hours than this for its answers.")

    vacuum_hours: int = Field(
        168, ge=1, description="Hours that upkeep keeps unneeded data files; must be longer than your longest run."
    )

    endpoints: Path | None = Field(None, description="TOML file with the endpoints for ai_query.")
    endpoint: str | None = Field(EMBEDDED_ENDPOINT, description="Endpoint that ai_query_inference calls.")
    ai_query_limit: int = Field(10, ge=0, description="Maximum rows of each batch to send to ai_query; 0 = all.")

    landing: str | None = Field(None, description="Folder or URI to watch for new files; default <home>/landing.")
    landed_files: Literal["archive", "leave"] = Field(
        "archive", description="Whether to move landed files to <landing>/.taken (archive) or keep them (leave)."
    )
    settle_seconds: float = Field(
        10, ge=0, description="Seconds without a change after which a file in the landing folder is complete."
    )
    schedule: str | None = Field("0 2 * * *", description="When to score stale batches: a cron expression, in UTC.")
    sensor_seconds: int = Field(15, ge=1, description="Seconds between two evaluations of a sensor.")
    sensors: bool = Field(True, description="Turn on sensors and schedules when Dagster first loads them.")
    alert: str | None = Field(
        None, description="Command or http(s) URL to notify when a run has failed and has no retries left."
    )

    owners: str = Field(
        "team:batch-inference", description="Owners of the assets: team:name or email addresses, separated by commas."
    )
    debug: bool = Field(False, description="Print the traceback of an error that a command reports in one line.")
    samples: int = Field(3, ge=0, description="Rows of text to show in metadata and artifacts; 0 = none.")
    ui_port: int = Field(3000, ge=1, le=65535, description="Port of the Dagster UI.")
    mlflow_port: int = Field(5000, ge=1, le=65535, description="Port of the MLflow UI.")
    mlflow_ui: str | None = Field(
        None, description="URL of the MLflow UI in links, if browsers can't use the URL of the tracking server."
    )

    mlflow_tracking_uri: str | None = Field(
        None,
        validation_alias="MLFLOW_TRACKING_URI",
        description="MLflow tracking store; default SQLite under <home>/mlflow.",
    )
    mlflow_registry_uri: str | None = Field(
        None, validation_alias="MLFLOW_REGISTRY_URI", description="MLflow model registry; default the tracking store."
    )

    @field_validator("home")
    @classmethod
    def _home(cls, home: Path) -> Path:
        return _absolute(home)

    @field_validator("pipelines")
    @classmethod
    def _folder(cls, folder: Path) -> Path:
        return _absolute(folder)

    @field_validator("catalog", "schema_name", "model_name", "output_table", "output_column")
    @classmethod
    def _names(cls, name: str | None) -> str | None:
        return None if name is None else check_name(name)

    @field_validator("dataset", "evaluation_dataset", "model")
    @classmethod
    def _no_address(cls, name: str | None, info: ValidationInfo) -> str | None:
        if name is not None and _ADDRESS.match(name) and not Path(name).exists():
            message = "an address can't be used: name a local file or folder, or one on the hub"
            if info.field_name != "model":
                message += "; in a pipeline's file, source.url is for a Delta table and source.landing for a bucket"
            raise ValueError(message)
        return name

    @field_validator("source_table")
    @classmethod
    def _table(cls, name: str | None) -> str | None:
        parts = [] if name is None else name.split(".")
        if len(parts) > _TABLE_PARTS:
            raise ValueError("use table, schema.table or catalog.schema.table")
        for part in parts:
            check_name(part)
        return name

    @field_validator("source_asset")
    @classmethod
    def _asset_key(cls, key: str | None) -> str | None:
        if key is not None and not all(part.strip() for part in key.split("/")):
            raise ValueError("use the key of an asset, such as support/tickets")
        return key

    @field_validator("source_url")
    @classmethod
    def _url(cls, url: str | None) -> str | None:
        if url is not None and "://" in url and redacted(url) != url:
            raise ValueError("remove the credentials: set them in the environment")
        return url

    @field_validator("pipeline")
    @classmethod
    def _pipeline_name(cls, name: str) -> str:
        check_pipeline_name(name)
        return name

    @field_validator("labels", mode="before")
    @classmethod
    def _labels(cls, labels: object) -> object:
        if labels is None or isinstance(labels, tuple):
            return labels
        described = labels.items() if isinstance(labels, dict) else ((label, None) for label in _as_list(labels))
        found = tuple(described)
        if len(found) < _FEWEST_LABELS or not all(isinstance(label, str) and label.strip() for label, _ in found):
            raise ValueError("use a list of at least two texts in quotation marks, or a mapping to descriptions")
        if len({label_key(label) for label, _ in found}) < len(found):
            raise ValueError(
                "two labels differ at most in case, or in blanks, quotation marks or full stops at the ends"
            )
        return found

    @field_validator("text")
    @classmethod
    def _text(cls, text: str) -> str:
        if text:  # otherwise it is the answer of the source pipeline
            TextTemplate(text)
        return text

    @field_validator("schedule")
    @classmethod
    def _schedule(cls, schedule: str | None) -> str | None:
        # Dagster checks the rest.
        if schedule is not None and not re.fullmatch(
            r"@(hourly|daily|weekly|monthly)|[\w*/,-]+( [\w*/,-]+){4}", schedule
        ):
            raise ValueError("use a cron expression such as 0 2 * * *")
        return schedule

    @field_validator("owners")
    @classmethod
    def _owners(cls, owners: str) -> str:
        for owner in owners.split(","):
            if not re.fullmatch(r"team:[\w-]+|[^@\s]+@[^@\s.]+(\.[^@\s.]+)+", owner.strip()):
                raise ValueError(f"{owner.strip()!r} is neither team:name nor an email address")
        return owners

    @field_validator("lake")
    @classmethod
    def _lake(cls, lake: str | None) -> str | None:
        if lake is None or "://" in lake:
            return lake
        if "%" in lake:
            raise ValueError("the path of a lake folder must not contain %")
        return str(_absolute(Path(lake)))

    @field_validator("engine")
    @classmethod
    def _engine(cls, engine: str) -> str:
        if engine not in ("auto", *ENGINE_NAMES):
            raise ValueError(f"use auto, {', '.join(ENGINE_NAMES)}")
        return engine

    @field_validator("device_map")
    @classmethod
    def _device(cls, device: str) -> str:
        if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", device):
            raise ValueError("use auto, cpu, cuda, cuda:0 and so on, or mps")
        return device

    @field_validator("spark_master")
    @classmethod
    def _master(cls, master: str) -> str:
        if not re.fullmatch(r"local(\[(\d+|\*)(,\d+)?\])?|yarn|(spark|k8s)://.+", master):
            raise ValueError("use local[*,4], spark://host:port, k8s://host:port or yarn")
        return master

    @field_validator("spark_remote")
    @classmethod
    def _remote(cls, remote: str | None) -> str | None:
        if remote is not None and not re.fullmatch(r"sc://[^/\s]+(/.*)?", remote):
            raise ValueError("use sc://host:port")
        return remote

    @field_validator("mlflow_ui")
    @classmethod
    def _page(cls, address: str | None) -> str | None:
        if address is not None and not re.fullmatch(r"https?://[^\s@]+", address):
            raise ValueError("use an http or https address without credentials")
        return address

    @field_validator("select_by")
    @classmethod
    def _metric(cls, name: str) -> str:
        if not re.fullmatch(r"[\w. /-]+", name):
            raise ValueError("use newest, or the name of a logged metric")
        return name

    @field_validator("task")
    @classmethod
    def _task(cls, task: str) -> str:
        if task not in TASKS and not re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", task):
            raise ValueError(f"use {', '.join(TASKS)}, or module:Class")
        return task

    @field_validator("select_tag")
    @classmethod
    def _tag(cls, tag: str | None) -> str | None:
        if tag is not None and not re.fullmatch(r"[\w./ -]+=[^'\"\\\\]*", tag):
            raise ValueError("use key=value, without quotation marks")
        return tag

    @field_validator("prompt")
    @classmethod
    def _prompt(cls, prompt: str | None) -> str | None:
        if prompt is not None and prompt.count("{document}") != 1:
            raise ValueError("the prompt must contain {document} exactly once")
        return prompt

    @model_validator(mode="after")
    def _together(self) -> "Settings":
        if self.min_length is not None and self.max_length is not None and self.min_length > self.max_length:
            raise ValueError(f"MIN_LENGTH ({self.min_length}) is greater than MAX_LENGTH ({self.max_length})")
        if self.dtype == "int8" and self.engine in ("mlflow", "transformers"):
            raise ValueError(f"DTYPE int8 needs the engine ctranslate2 or openvino, not {self.engine}")
        if self.spark_environment and (self.spark_remote or self.spark_master.startswith("local")):
            raise ValueError("SPARK_ENVIRONMENT needs a SPARK_MASTER that is a cluster")
        if self.is_default and self.task in (CLASSIFICATION, EXTRACTION):
            raise ValueError(
                f"the tables of the default pipeline are for texts: write a file in {self.pipelines} for the task "
                f"{self.task}, see docs/pipelines.md"
            )
        if (self.task == CLASSIFICATION) != (self.labels is not None):
            raise ValueError(f"LABELS and the task {CLASSIFICATION} need each other")
        if (self.task == EXTRACTION) != (self.answer_schema is not None):
            raise ValueError(f"ANSWER_SCHEMA and the task {EXTRACTION} need each other")
        if self.task == GENERATION and self.prompt is None:
            raise ValueError(f"the task {GENERATION} needs a PROMPT")
        if not self.text and self.source_pipeline is None:
            raise ValueError("TEXT is empty: name a column")
        if self.text and self.reference in TextTemplate(self.text).columns:
            raise ValueError(f"the model must not see the reference: remove {{{self.reference}}} from TEXT")
        if self.is_table and self.batch_by is None:
            raise ValueError("a table that is read in place needs BATCH_BY: a column, or commit")
        if self.batch_by is not None and not self.is_table:
            raise ValueError("BATCH_BY is only for a table that is read in place")
        if self.every is not None and self.batch_by in (None, COMMIT):
            raise ValueError("EVERY is only for a table that is read in place and batched by a timestamp")
        if self.source_asset is not None and not self.is_table:
            raise ValueError("SOURCE_ASSET is only for a table that is read in place")
        if self.ui_port == self.mlflow_port:
            raise ValueError(f"UI_PORT and MLFLOW_PORT are both {self.ui_port}")
        return self

    @property
    def lake_uri(self) -> str:
        """Folder or URI of the lake."""
        return self.lake or str(self.home / "lake")

    @property
    def is_default(self) -> bool:
        """Whether these are the settings of the default pipeline, whose names have no prefix."""
        return self.pipeline == DEFAULT_PIPELINE

    @property
    def is_landing(self) -> bool:
        """Whether files that are dropped into a folder become batches of this pipeline."""
        return self.is_default or self.landing is not None

    @property
    def is_table(self) -> bool:
        """Whether the source is a Delta table of another writer."""
        return self.source_table is not None or self.source_url is not None

    @property
    def is_in_place(self) -> bool:
        """Whether the documents are read from a table that this pipeline does not write."""
        return self.is_table or self.source_pipeline is not None

    @property
    def landing_folder(self) -> str:
        """Folder or URI where new files are dropped."""
        if self.landing is None:
            return str(self.home / "landing")
        return self.landing if "://" in self.landing else str(_absolute(Path(self.landing)))

    @property
    def _embedded_store(self) -> str:
        return f"sqlite:///{self.home / 'mlflow' / 'mlflow.db'}"

    @property
    def tracking_uri(self) -> str:
        """MLflow's tracking store; SQLite under the home folder unless MLFLOW_TRACKING_URI is set."""
        return self.mlflow_tracking_uri or self._embedded_store

    @property
    def registry_uri(self) -> str:
        """MLflow's model registry."""
        return self.mlflow_registry_uri or self.tracking_uri

    @property
    def has_embedded_store(self) -> bool:
        """Whether the tracking store is the one under the home folder."""
        return self.tracking_uri == self._embedded_store

    @property
    def artifact_root(self) -> Path:
        """Folder where MLflow keeps artifacts if the tracking store is the one under the home folder."""
        return self.home / "mlflow" / "artifacts"

    @property
    def has_tracking_server(self) -> bool:
        """Whether the tracking store is a server, which has its own UI."""
        return self.tracking_uri.startswith(("http://", "https://"))

    @property
    def mlflow_pages(self) -> str:
        """URL of the MLflow UI for links in metadata."""
        if self.mlflow_ui is not None:
            return self.mlflow_ui.rstrip("/")
        return redacted(self.tracking_uri.rstrip("/")) if self.has_tracking_server else self.local_mlflow_ui

    @property
    def local_mlflow_ui(self) -> str:
        """URL of the MLflow UI that ``batch-assets ui`` serves."""
        return f"http://127.0.0.1:{self.mlflow_port}"

    @property
    def registry_pages(self) -> str | None:
        """URL of the MLflow UI that shows the registry; None if the registry has no known UI."""
        if self.registry_uri == self.tracking_uri:
            return self.mlflow_pages
        is_server = self.registry_uri.startswith(("http://", "https://"))
        return redacted(self.registry_uri.rstrip("/")) if is_server else None

    @property
    def registered_model(self) -> str:
        """Three-part name of the registered model."""
        return f"{self.catalog}.{self.schema_name}.{self.model_name}"

    @property
    def model_owner(self) -> str:
        """Name of the pipeline that logs and promotes the model: this one, unless it uses a shared model."""
        return self.shared_model or self.pipeline

    @property
    def champion_asset(self) -> str:
        """What messages call the asset of the champion."""
        return "champion_model" if self.model_owner == DEFAULT_PIPELINE else f"{self.model_owner}/champion_model"

    @property
    def logged_dtype(self) -> str:
        """Precision for logging and evaluating a model."""
        return "float32" if self.dtype == "int8" else self.dtype

    @property
    def report_file(self) -> Path:
        """The newest quality report; earlier reports are in the same folder."""
        folder = self.home / "reports"
        return (folder if self.is_default else folder / self.pipeline) / "quality_report.html"

    @property
    def dagster_home(self) -> Path:
        """Dagster's storage of runs, events and partitions."""
        return self.home / "dagster"


class _WithoutEnvironment(Settings):
    """Settings whose values are all given."""

    def __init__(self, **values: Any) -> None:
        # Not that of BaseSettings, which looks for the sources of each setting and reads the environment.
        BaseModel.__init__(self, **values)


def complete_settings(values: Mapping[str, Any]) -> Settings:
    """Settings from values for all of them; the environment is not read.

    Raises:
        ValidationError: a value is not valid.
    """
    return _WithoutEnvironment(**values)


def variables() -> dict[str, str]:
    """Environment variables of all settings, by field name."""
    return {
        name: str(field.validation_alias or f"{PREFIX}{name.upper()}")
        for name, field in Settings.model_fields.items()
        if name not in _ONLY_IN_FILES
    }


def named(settings: Settings, field: str) -> str:
    """What to call a setting in a message: its variable, or its place in the pipeline's file."""
    pipeline = settings.model_owner if field in (*DECIDED_BY_OWNER, *TASK_FIELDS) else settings.pipeline
    if field not in IN_PIPELINE_FILES or (pipeline == DEFAULT_PIPELINE and field not in _ONLY_IN_FILES):
        return variables()[field]
    return f"{IN_PIPELINE_FILES[field]} of the pipeline {pipeline}"


def load_settings() -> Settings:
    """Read the settings from the environment.

    Raises:
        BatchAssetsError: a BATCH_ASSETS_* variable is unknown, or a value is invalid.
    """
    names = variables()
    for variable in names.values():
        if variable in os.environ and not os.environ[variable].strip():
            raise BatchAssetsError(f"{variable}={os.environ[variable]!r} is invalid: set a value or unset it.")
    for variable in sorted(os.environ):
        if variable.startswith(PREFIX) and variable not in names.values():
            near = difflib.get_close_matches(variable, list(names.values()), n=1)
            hint = f" Did you mean {near[0]}?" if near else " See docs/reference/settings.md."
            raise BatchAssetsError(f"Unknown setting {variable}.{hint}")
    try:
        return Settings()
    except ValidationError as error:
        first = error.errors()[0]
        message = first["msg"].removeprefix("Value error, ")
        if not first["loc"]:
            raise BatchAssetsError(f"The {PREFIX}* settings conflict: {message}.") from error
        location = str(first["loc"][0])
        variable = names.get(location, location)
        value = redacted(os.environ.get(variable, ""))
        raise BatchAssetsError(f"{variable}={value!r} is invalid: {message}.") from error


def redacted(uri: str) -> str:
    """Remove user names, passwords and secret parameters from the addresses in a text, so that it can be shown.

    A Spark Connect address loses all its parameters. A password may contain any character except a space, so everything
    before the last @ of an address is removed.
    """
    without_parameters = re.sub(r"(?<=\bsc://)([^;\s]*);\S*", r"\1", uri)
    return _SECRET_PARAMETER.sub(r"\1***", re.sub(r"(?<=://)\S*@", "", without_parameters))

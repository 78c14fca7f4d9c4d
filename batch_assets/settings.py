"""Every BATCH_ASSETS_* variable, in one place."""

import difflib
import os
import pkgutil
import re
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from batch_assets.errors import BatchAssetsError
from batch_assets.names import check_name

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

SUMMARIZATION = "summarization"

_SECRET_PARAMETER = re.compile(
    r"([?&;][^=&;\s]*(?:pass|pwd|token|secret|key|odbc_connect)[^=&;\s]*=)[^&;\s]*", re.IGNORECASE
)


def _absolute(path: Path) -> Path:
    try:
        return path.expanduser().resolve()
    except RuntimeError as error:  # ~user, where this machine has no such user
        raise ValueError(str(error)) from error


class Settings(BaseSettings):
    """The settings of one deployment, read from the environment; docs/reference/settings.md lists them."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True, populate_by_name=True)

    home: Path = Field(Path(".batch_assets"), description="Folder for the deployment's state.")
    lake: str | None = Field(None, description="Folder or URI of the lake; default <home>/lake.")
    catalog: str = Field("main", description="First part of table and model names.")
    schema_name: str = Field(
        "default",
        validation_alias=f"{PREFIX}SCHEMA",
        description="Second part of table and model names.",
    )

    dataset: str = Field(
        EMBEDDED_DATASET,
        description="Documents to score: aclsum, a Hugging Face hub data set, or a local file, folder or glob.",
    )
    split: str = Field("test", description="Split of a hub data set to score.")
    limit: int | None = Field(None, ge=1, description="Read at most this many records of the data set.")
    batch_rows: int | None = Field(
        None, ge=1, description="Maximum rows per batch; default 25 for aclsum, otherwise 1,000."
    )
    evaluation_dataset: str | None = Field(
        None,
        description="Held-out documents with summaries; default: the validation split of a hub data set or of aclsum.",
    )
    evaluation_rows: int = Field(25, ge=1, description="Number of held-out documents to evaluate a model on.")

    model: str = Field(EMBEDDED_MODEL, description="Model: smollm2, a Hugging Face hub model, or a local folder.")
    task: str = Field(SUMMARIZATION, description="Task: summarization, or module:Class for your own task.")
    prompt: str | None = Field(
        None, description="Prompt for a decoder-only model; {document} stands for the text. Default: the task's prompt."
    )
    min_length: int | None = Field(
        None, ge=0, description="Minimum summary length in tokens; default 20 for an encoder-decoder, otherwise none."
    )
    max_length: int | None = Field(
        None, ge=1, description="Maximum summary length in tokens; default 40 for an encoder-decoder, otherwise 60."
    )
    do_sample: bool = Field(False, description="Sample tokens instead of always taking the most likely one.")
    seed: int = Field(0, ge=0, description="Seed for sampling.")
    device_map: str = Field("auto", description="Device for the model: auto, cpu, cuda, cuda:0 and so on, or mps.")
    dtype: Literal["float32", "bfloat16", "float16", "int8"] = Field(
        "float32",
        description="Precision of the model; int8 scores with 8-bit weights on CPU but logs the model in float32.",
    )
    experiment: str = Field("batch_assets", min_length=1, description="Name of the MLflow experiment.")
    model_name: str = Field("summarizer", description="Third part of the registered model's name.")
    select_by: str = Field(
        "newest", description="Which run to register: newest, or the best by a logged metric such as rouge1."
    )
    select_tag: str | None = Field(None, description="Register only runs with this tag, written as key=value.")
    promotion_margin: float = Field(
        0.02, ge=0, description="How far a candidate's main score (ROUGE-1) may be below the champion's."
    )
    error_rate: float = Field(
        0.05,
        ge=0,
        le=1,
        description="Maximum share of documents that may fail, in a batch and in a candidate's evaluation.",
    )
    beat_baseline: bool = Field(False, description="Promote only candidates that beat the document's first sentences.")
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

    empty_rate: float = Field(0.01, ge=0, le=1, description="Warn above this share of empty summaries in a batch.")
    cut_rate: float = Field(
        0.5, ge=0, le=1, description="Warn above this share of summaries in a batch that stop at the length limit."
    )
    truncated_rate: float = Field(
        0.2, ge=0, le=1, description="Warn above this share of documents in a batch that were truncated for the model."
    )
    repetition: float = Field(0.2, ge=0, le=1, description="Warn above this share of repeated trigrams in summaries.")
    drift: float = Field(
        0.25, gt=0, description="Warn above this population stability index of a batch against earlier batches."
    )
    fresh_hours: float = Field(24, gt=0, description="Warn if a batch waits more hours than this for its summaries.")

    vacuum_hours: int = Field(
        168, ge=1, description="Hours that upkeep keeps unneeded data files; must be longer than your longest run."
    )

    endpoints: Path | None = Field(None, description="TOML file with the endpoints for ai_query.")
    endpoint: str = Field(EMBEDDED_ENDPOINT, description="Endpoint that ai_query_inference calls.")
    ai_query_limit: int = Field(10, ge=0, description="Maximum rows of each batch to send to ai_query; 0 = all.")

    landing: str | None = Field(None, description="Folder or URI to watch for new files; default <home>/landing.")
    landed_files: Literal["archive", "leave"] = Field(
        "archive", description="Whether to move landed files to <landing>/.taken (archive) or keep them (leave)."
    )
    settle_seconds: float = Field(
        10, ge=0, description="Seconds without a change after which a file in the landing folder is complete."
    )
    sensor_seconds: int = Field(15, ge=1, description="Seconds between two evaluations of a sensor.")
    sensors: bool = Field(True, description="Turn on sensors and schedules when Dagster first loads them.")
    alert: str | None = Field(
        None, description="Command or http(s) URL to notify when a run has failed and has no retries left."
    )

    owners: str = Field(
        "team:batch-inference", description="Owners of the assets: team:name or email addresses, separated by commas."
    )
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

    @field_validator("catalog", "schema_name", "model_name")
    @classmethod
    def _names(cls, name: str) -> str:
        return check_name(name)

    @field_validator("owners")
    @classmethod
    def _owners(cls, owners: str) -> str:
        for owner in owners.split(","):
            if not re.fullmatch(r"team:[\w-]+|[^@\s]+@[^@\s]+", owner.strip()):
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
        if task != SUMMARIZATION and not re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", task):
            raise ValueError("use summarization, or module:Class")
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
        if self.ui_port == self.mlflow_port:
            raise ValueError(f"UI_PORT and MLFLOW_PORT are both {self.ui_port}")
        return self

    @property
    def lake_uri(self) -> str:
        """Folder or URI of the lake."""
        return self.lake or str(self.home / "lake")

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
    def logged_dtype(self) -> str:
        """Precision for logging and evaluating a model."""
        return "float32" if self.dtype == "int8" else self.dtype

    @property
    def report_file(self) -> Path:
        """The newest quality report; earlier reports are in the same folder."""
        return self.home / "reports" / "quality_report.html"

    @property
    def dagster_home(self) -> Path:
        """Dagster's storage of runs, events and partitions."""
        return self.home / "dagster"


def variables() -> dict[str, str]:
    """Environment variables of all settings, by field name."""
    return {
        name: str(field.validation_alias or f"{PREFIX}{name.upper()}") for name, field in Settings.model_fields.items()
    }


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

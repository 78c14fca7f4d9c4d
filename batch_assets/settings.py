"""Every BATCH_ASSETS_* variable, in one place."""

import difflib
import os
import re
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from batch_assets.errors import BatchAssetsError
from batch_assets.lake.names import check_name

PREFIX = "BATCH_ASSETS_"

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
    except RuntimeError as error:  # ~somebody, whom this machine doesn't know
        raise ValueError(str(error)) from error


class Settings(BaseSettings):
    """The settings of one deployment, read from the environment; docs/reference/settings.md lists them."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True, populate_by_name=True)

    home: Path = Field(Path(".batch_assets"), description="Where state lives.")
    lake: str | None = Field(None, description="Folder or URI of the lake; default <home>/lake.")
    catalog: str = Field("main", description="First part of table and model names.")
    schema_name: str = Field(
        "default",
        validation_alias=f"{PREFIX}SCHEMA",
        description="Second part of table and model names.",
    )

    dataset: str = Field(
        EMBEDDED_DATASET,
        description="aclsum, a data set of the Hugging Face hub, or local files (a file, a folder or a glob).",
    )
    split: str = Field("test", description="Split of a hub data set that is scored.")
    limit: int | None = Field(None, ge=1, description="Take only that many first records of the data set.")
    batch_rows: int | None = Field(None, ge=1, description="Rows a batch at most; default 25 for aclsum, else 1,000.")
    evaluation_dataset: str | None = Field(
        None,
        description="Held-out documents with summaries; default: the validation split of a hub data set or of aclsum.",
    )
    evaluation_rows: int = Field(25, ge=1, description="Held-out documents that a model is evaluated on.")

    model: str = Field(EMBEDDED_MODEL, description="smollm2, a model of the Hugging Face hub, or a local folder.")
    task: str = Field(
        SUMMARIZATION, description="What is wanted: summarization, or module:Class of a task of your own."
    )
    prompt: str | None = Field(
        None, description="What a decoder-only model is told; {document} stands for the text. Default: the task's."
    )
    min_length: int | None = Field(
        None, ge=0, description="Shortest summary in tokens; default 20 for an encoder-decoder, else none."
    )
    max_length: int | None = Field(
        None, ge=1, description="Longest summary in tokens; default 40 for an encoder-decoder, else 60."
    )
    do_sample: bool = Field(False, description="Sample instead of taking the likeliest token.")
    seed: int = Field(0, ge=0, description="Seed of the sampling.")
    device_map: str = Field("auto", description="Where the model goes: auto, cpu, cuda, cuda:0 and so on.")
    dtype: Literal["float32", "bfloat16", "float16", "int8"] = Field(
        "float32",
        description="Precision of the model; int8 scores with 8-bit weights on CPU (the model is logged in float32).",
    )
    experiment: str = Field("batch_assets", min_length=1, description="MLflow experiment.")
    model_name: str = Field("summarizer", description="Third part of the registered model's name.")
    select_by: str = Field("newest", description="Which run is registered: newest, or a logged metric such as rouge1.")
    select_tag: str | None = Field(None, description="Only runs with this tag, key=value, are registered.")
    promotion_margin: float = Field(
        0.02, ge=0, description="How much worse than the champion a candidate may be, in its main score (ROUGE-1)."
    )
    error_rate: float = Field(
        0.05,
        ge=0,
        le=1,
        description="Share of documents that may fail: held-out ones of a candidate, those of a batch.",
    )
    beat_baseline: bool = Field(False, description="Promote only what is better than the document's first sentences.")
    new_model: bool = Field(False, description="Log a new model although nothing has changed.")

    spark_master: str = Field("local[*,4]", min_length=1, description="Spark master.")
    spark_remote: str | None = Field(
        None, description="Spark Connect server, sc://host:port; it is used instead of a master."
    )
    spark_environment: str | None = Field(
        None, description="Packed Python environment (make package) that a Spark master hands to its workers."
    )
    engine: Literal["auto", "mlflow", "transformers", "ctranslate2", "openvino"] = Field(
        "auto",
        description="What runs the model on the workers; auto takes the fastest that writes what transformers does.",
    )
    batch_tokens: int | None = Field(
        None,
        ge=1,
        description="Padded input tokens that an engine works on at once; default 4,096 on CPU, 32,768 on a GPU.",
    )
    batches_per_run: int = Field(20, ge=1, description="Batches that one run of a backfill covers.")
    rescore: Literal["none", "latest", "all"] = Field("none", description="Batches that a new champion makes stale.")

    empty_rate: float = Field(0.01, ge=0, le=1, description="A check warns of more empty summaries in a batch.")
    cut_rate: float = Field(
        0.5, ge=0, le=1, description="A check warns of more summaries of a batch that end at the length limit."
    )
    truncated_rate: float = Field(
        0.2, ge=0, le=1, description="A check warns of more documents of a batch that the model didn't take whole."
    )
    repetition: float = Field(0.2, ge=0, le=1, description="A check warns of more trigrams that repeat an earlier one.")
    drift: float = Field(
        0.25, gt=0, description="A check warns of a larger population stability index against the batches before."
    )
    fresh_hours: float = Field(24, gt=0, description="A check warns of batches that wait longer for their summaries.")

    vacuum_hours: int = Field(
        168, ge=1, description="Upkeep removes unneeded data files older than this; longer than the longest run."
    )

    endpoints: Path | None = Field(None, description="TOML file of endpoints for ai_query.")
    endpoint: str = Field(EMBEDDED_ENDPOINT, description="Endpoint that ai_query_inference asks.")
    ai_query_limit: int = Field(10, ge=0, description="Rows of each batch that ai_query is asked for; 0 = all.")

    landing: str | None = Field(None, description="Folder or URI where new files are dropped; default <home>/landing.")
    landed_files: Literal["archive", "leave"] = Field(
        "archive", description="What becomes of a file that was taken: archive moves it to <landing>/.taken."
    )
    settle_seconds: float = Field(
        10, ge=0, description="A file in the landing folder is complete when it has not changed for so long."
    )
    sensor_seconds: int = Field(15, ge=1, description="Seconds between two looks of a sensor.")
    sensors: bool = Field(True, description="Whether sensors and schedules are on when they are first seen.")
    alert: str | None = Field(
        None, description="Command, or http(s) address, that is told when a run has failed for good."
    )

    owners: str = Field(
        "team:batch-inference", description="Owners of the assets, team:name or an address, with commas between them."
    )
    samples: int = Field(3, ge=0, description="Rows of text shown in metadata and artifacts; 0 = none.")
    ui_port: int = Field(3000, ge=1, le=65535, description="Port of the Dagster UI.")
    mlflow_port: int = Field(5000, ge=1, le=65535, description="Port of the MLflow UI.")
    mlflow_ui: str | None = Field(
        None, description="Address of the MLflow UI in links, where browsers know the tracking server by another one."
    )

    mlflow_tracking_uri: str | None = Field(
        None, validation_alias="MLFLOW_TRACKING_URI", description="MLflow's store; default SQLite under <home>/mlflow."
    )
    mlflow_registry_uri: str | None = Field(
        None, validation_alias="MLFLOW_REGISTRY_URI", description="MLflow's model registry; default the store."
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
                raise ValueError(f"{owner.strip()!r} is neither team:name nor an address")
        return owners

    @field_validator("lake")
    @classmethod
    def _lake(cls, lake: str | None) -> str | None:
        if lake is None or "://" in lake:
            return lake
        if "%" in lake:
            raise ValueError("a lake's folder must not have % in its name")
        return str(_absolute(Path(lake)))

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
            raise ValueError("the prompt needs {document} exactly once")
        return prompt

    @model_validator(mode="after")
    def _together(self) -> "Settings":
        if self.min_length is not None and self.max_length is not None and self.min_length > self.max_length:
            raise ValueError(f"MIN_LENGTH ({self.min_length}) is more than MAX_LENGTH ({self.max_length})")
        if self.dtype == "int8" and self.engine in ("mlflow", "transformers"):
            raise ValueError(f"DTYPE int8 needs the engine ctranslate2 or openvino, not {self.engine}")
        if self.spark_environment and (self.spark_remote or self.spark_master.startswith("local")):
            raise ValueError("SPARK_ENVIRONMENT is for the workers of a SPARK_MASTER that is a cluster")
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
        """MLflow's tracking store; SQLite under the home folder unless MLFLOW_TRACKING_URI says otherwise."""
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
        """Where MLflow keeps artifacts when the tracking store is the embedded one."""
        return self.home / "mlflow" / "artifacts"

    @property
    def has_tracking_server(self) -> bool:
        """Whether somebody else serves the tracking store and its UI."""
        return self.tracking_uri.startswith(("http://", "https://"))

    @property
    def mlflow_pages(self) -> str:
        """Address of the MLflow UI that links in metadata lead to."""
        if self.mlflow_ui is not None:
            return self.mlflow_ui.rstrip("/")
        return redacted(self.tracking_uri.rstrip("/")) if self.has_tracking_server else self.local_mlflow_ui

    @property
    def local_mlflow_ui(self) -> str:
        """Address of the MLflow UI that ``batch-assets ui`` serves."""
        return f"http://127.0.0.1:{self.mlflow_port}"

    @property
    def registry_pages(self) -> str | None:
        """Address of the MLflow UI that shows the registry; None where that is another store than a tracking server."""
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
        """Precision in which a model is logged and evaluated."""
        return "float32" if self.dtype == "int8" else self.dtype

    @property
    def report_file(self) -> Path:
        """The newest report on quality; those of earlier materializations are in the same folder."""
        return self.home / "reports" / "quality_report.html"

    @property
    def dagster_home(self) -> Path:
        """Dagster's storage of runs, events and partitions."""
        return self.home / "dagster"


def variables() -> dict[str, str]:
    """Environment variable of every setting, by field name."""
    return {
        name: str(field.validation_alias or f"{PREFIX}{name.upper()}") for name, field in Settings.model_fields.items()
    }


def load_settings() -> Settings:
    """Read the settings from the environment.

    Raises:
        BatchAssetsError: a BATCH_ASSETS_* variable is unknown, or a value can't be used.
    """
    names = variables()
    for variable in names.values():
        if variable in os.environ and not os.environ[variable].strip():
            raise BatchAssetsError(f"{variable}={os.environ[variable]!r} can't be used: it is empty; unset it.")
    for variable in sorted(os.environ):
        if variable.startswith(PREFIX) and variable not in names.values():
            near = difflib.get_close_matches(variable, list(names.values()), n=1)
            hint = f" Did you mean {near[0]}?" if near else " docs/reference/settings.md lists the settings."
            raise BatchAssetsError(f"Unknown setting {variable}.{hint}")
    try:
        return Settings()
    except ValidationError as error:
        first = error.errors()[0]
        message = first["msg"].removeprefix("Value error, ")
        if not first["loc"]:
            raise BatchAssetsError(f"The settings {PREFIX}* don't fit together: {message}.") from error
        location = str(first["loc"][0])
        variable = names.get(location, location)
        value = redacted(os.environ.get(variable, ""))
        raise BatchAssetsError(f"{variable}={value!r} can't be used: {message}.") from error


def redacted(uri: str) -> str:
    """A text as it may be shown: addresses in it without user name, password, and parameters that hold a secret.

    All parameters of Spark Connect's addresses are left out. A password may have any character but a space: all before
    the last @ of an address goes.
    """
    without_parameters = re.sub(r"(?<=\bsc://)([^;\s]*);\S*", r"\1", uri)
    return _SECRET_PARAMETER.sub(r"\1***", re.sub(r"(?<=://)\S*@", "", without_parameters))

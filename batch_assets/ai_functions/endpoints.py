"""Endpoints of ``ai_query``. Their addresses and keys come from configuration, never from a row."""

import json
import os
import re
import tomllib
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from batch_assets.errors import BatchAssetsError
from batch_assets.settings import EMBEDDED_ENDPOINT

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


class Endpoint(BaseModel):
    """A server for chat completions (``openai``), or for a registered model that MLflow serves (``mlflow``).

    ``model`` is the model's name on a chat server; for ``mlflow`` it names the served model and its version.
    ``parameters`` are part of every request (``max_tokens``, ``temperature``). ``api_key_env`` is the *name* of the
    environment variable that holds the key. ``timeout_seconds`` limits one attempt, ``deadline_seconds`` all attempts
    for a row. Limits apply to all tasks of a statement together; None means no limit.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    name: str
    kind: Literal["openai", "mlflow"] = "openai"
    base_url: str
    model: str
    api_key_env: str | None = None
    parameters: dict[str, Any] = Field(default_factory=dict)
    enforces_schema: bool = True
    timeout_seconds: float = Field(120.0, gt=0)
    deadline_seconds: float = Field(300.0, gt=0)
    requests_in_flight: int = Field(32, ge=1)
    requests_per_minute: float | None = Field(None, gt=0)
    tokens_per_minute: float | None = Field(None, gt=0)
    requests_per_statement: int | None = Field(None, ge=1)
    tokens_per_statement: int | None = Field(None, ge=1)

    @field_validator("name")
    @classmethod
    def _check_name(cls, name: str) -> str:
        return check_endpoint_name(name)

    @field_validator("api_key_env")
    @classmethod
    def _check_key(cls, name: str | None) -> str | None:
        if name is not None and not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]{0,99}", name):
            raise ValueError("api_key_env is the name of an environment variable, never the key itself")
        return name

    @field_validator("base_url")
    @classmethod
    def _check_url(cls, url: str) -> str:
        parts = urlsplit(url)
        if parts.port == 0:
            raise ValueError("base_url must not use port 0")
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            raise ValueError("base_url must be an http or https address")
        if parts.username or parts.password:
            raise ValueError("base_url must not contain credentials: name an environment variable in api_key_env")
        if parts.query or parts.fragment:
            raise ValueError("base_url must not have a query or fragment: name the key's variable in api_key_env")
        return url.rstrip("/")

    @field_validator("parameters")
    @classmethod
    def _check_parameters(cls, parameters: dict[str, Any]) -> dict[str, Any]:
        try:
            json.dumps(parameters)
        except TypeError as error:
            raise ValueError(f"parameters must be valid JSON: {error}") from error
        return parameters

    @property
    def identity(self) -> list[Any]:
        """Everything about the endpoint that determines an answer; the address does not."""
        return [self.name, self.kind, self.model, self.parameters]

    @property
    def has_budget(self) -> bool:
        """Whether the endpoint limits the requests or tokens of a statement."""
        return self.requests_per_statement is not None or self.tokens_per_statement is not None


def check_endpoint_name(name: str) -> str:
    """Return an endpoint's name unchanged.

    Raises:
        ValueError: the name is not 1 to 100 of ``A-Za-z0-9._-``, starting with a letter or digit.
    """
    if not _NAME.fullmatch(name):
        raise ValueError(f"{name!r} is not a valid endpoint name: use 1 to 100 of A-Z, a-z, 0-9, '.', '_' and '-'")
    return name


def check_key(endpoint: Endpoint) -> None:
    """Check that an endpoint's key is set in this process.

    Raises:
        BatchAssetsError: the key is not set.
    """
    if endpoint.api_key_env and not os.environ.get(endpoint.api_key_env):
        raise BatchAssetsError(
            f"the key of the endpoint {endpoint.name} is missing: set the environment variable {endpoint.api_key_env}"
        )


def read_endpoints(path: Path) -> dict[str, Endpoint]:
    """Read endpoints from a TOML file with one table ``[endpoints.<name>]`` for each.

    Raises:
        BatchAssetsError: the file can't be read, or an endpoint is invalid.
    """
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise BatchAssetsError(f"BATCH_ASSETS_ENDPOINTS: {path} can't be read: {error}") from error
    tables = content.get("endpoints", {})
    if not isinstance(tables, dict) or not all(isinstance(fields, dict) for fields in tables.values()):
        raise BatchAssetsError(f"{path}: write one table [endpoints.<name>] for each endpoint")
    endpoints = {}
    for name, fields in tables.items():
        try:
            endpoints[name] = Endpoint(**{**fields, "name": name})
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(map(str, first["loc"]))
            # Not "from error": the original error may show a key, or an address that contains one.
            raise BatchAssetsError(f"{path}: the endpoint {name} is invalid: {field}: {first['msg']}") from None
    return endpoints


def configured_endpoint(file: Path | str | None, name: str) -> Endpoint | None:
    """Return an endpoint by name; None for the embedded one, which must be started first.

    Raises:
        BatchAssetsError: there is no endpoint with this name.
    """
    endpoints = read_endpoints(Path(file)) if file is not None else {}
    if name in endpoints:
        return endpoints[name]
    if name == EMBEDDED_ENDPOINT:
        return None
    known = ", ".join(sorted({*endpoints, EMBEDDED_ENDPOINT}))
    where = f"{file}" if file is not None else "BATCH_ASSETS_ENDPOINTS, which is not set"
    raise BatchAssetsError(f"there is no endpoint {name!r} in {where}; known: {known}")

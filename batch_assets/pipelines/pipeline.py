"""A pipeline: its fields, as in its file, and the settings that they become."""

import difflib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeAlias

from pydantic import ValidationError

from batch_assets.errors import BatchAssetsError
from batch_assets.settings import (
    DECIDED_BY_OWNER,
    DEFAULT_PIPELINE,
    EMBEDDED_ENDPOINT,
    IN_PIPELINE_FILES,
    SET_BY_OWNER,
    SOURCES,
    TASK_FIELDS,
    Settings,
    complete_settings,
    variables,
)

_FIELDS = {path: name for name, path in IN_PIPELINE_FILES.items()}
SECTIONS = tuple(dict.fromkeys(path.partition(".")[0] for path in _FIELDS))
# Fields that may hold a path, which then starts at the root of the project.
_PATHS = ("dataset", "evaluation_dataset", "model", "landing", "source_url")


# Settings that have a default in the default pipeline only.
OTHERWISE_UNSET = ("pipeline", "dataset", "reference", "endpoint", "model_name")

# Pipelines by name: their settings, or why others can't use their models.
ModelOwners: TypeAlias = Mapping[str, Settings | str]


class PipelineError(BatchAssetsError):
    """A field of a pipeline is not valid; ``path`` says where it is, such as ``source.dataset``."""

    def __init__(self, message: str, path: str) -> None:
        super().__init__(message)
        self.path = path


class Pipeline:
    """One text source through one model into tables; docs/pipelines.md describes the fields.

    Args:
        name: prefix of its assets, jobs, sensors and tables, and name of its registered model.
        source: ``dataset``, ``landing``, ``table``, ``url`` or ``pipeline``, and how it is split into batches.
        columns: which columns hold the id, the text and the reference, and which are carried along.
        task: ``kind`` and what it needs.
        model: the checkpoint, and how it is run and promoted; or the pipeline whose model is used.
        ai_query: the endpoint; without it, there is no asset for SQL.
        evaluation: the held-out documents.
        output: the table and the column of the answers.
        checks: limits of the checks.
        schedule: when stale batches are scored, as a cron expression; None for never.
        owners: owners of the assets.
    """

    def __init__(
        self,
        name: str,
        source: Mapping[str, Any],
        *,
        columns: Mapping[str, Any] | None = None,
        task: Mapping[str, Any] | None = None,
        model: Mapping[str, Any] | None = None,
        ai_query: Mapping[str, Any] | None = None,
        evaluation: Mapping[str, Any] | None = None,
        output: Mapping[str, Any] | None = None,
        checks: Mapping[str, Any] | None = None,
        schedule: str | None = "0 2 * * *",
        owners: str | None = None,
    ) -> None:
        sections = {
            "columns": columns,
            "task": task,
            "model": model,
            "ai_query": ai_query,
            "evaluation": evaluation,
            "output": output,
            "checks": checks,
            "owners": owners,
        }
        given = {section: value for section, value in sections.items() if value is not None}
        self.attributes: Mapping[str, Any] = {"name": name, "source": source, "schedule": schedule, **given}

    def settings(self, deployment: Settings, root: Path | None = None, others: ModelOwners | None = None) -> Settings:
        """The settings of this pipeline in a deployment.

        Args:
            deployment: the settings of the deployment.
            root: where relative paths start; by default, the current folder.
            others: the other pipelines, one of which may own the model.

        Raises:
            PipelineError: a field is unknown or not valid.
        """
        return settings_of(self.attributes, deployment, root or Path.cwd(), others)


def settings_of(
    attributes: Mapping[str, Any], deployment: Settings, root: Path, others: ModelOwners | None = None
) -> Settings:
    """The settings of the pipeline with these fields.

    Args:
        attributes: the fields, in their sections.
        deployment: the settings of the deployment, which are also those of its default pipeline.
        root: where relative paths start.
        others: the other pipelines, one of which may own the model.

    Raises:
        PipelineError: a field is unknown or not valid.
    """
    values = dict(_flat(attributes))
    name = values.get("pipeline")
    if not isinstance(name, str):
        raise PipelineError("name: give the pipeline a name, in quotation marks if it is not a plain word", "name")
    own = {**_defaults(name, attributes, deployment), **_with_paths(values, root)}
    if sum(own[source] is not None for source in SOURCES) != 1:
        kinds = [IN_PIPELINE_FILES[source].removeprefix("source.") for source in SOURCES]
        raise PipelineError(f"name exactly one kind of source: {', '.join(kinds[:-1])} or {kinds[-1]}", "source")
    if values.get("shared_model") is not None:
        own |= _values_of_owner(name, values, others or {})
    shared = {field: getattr(deployment, field) for field in Settings.model_fields if field not in own}
    return _validated({**shared, **own})


def default_pipeline_settings(
    attributes: Mapping[str, Any], deployment: Settings, environment: Mapping[str, str], root: Path
) -> Settings:
    """The settings of the default pipeline: the variables of the environment, then the fields of its file.

    Raises:
        PipelineError: a field is unknown or not valid, or the tables of the default pipeline have no room for it.
    """
    known = variables()
    values = {field: value for field, value in _flat(attributes) if field != "pipeline"}
    for field in values:
        if field not in known:
            path = IN_PIPELINE_FILES[field]
            if field == "shared_model":
                raise PipelineError(
                    f"{path}: the pipeline {DEFAULT_PIPELINE} has a model of its own; remove {path}", path
                )
            raise PipelineError(
                f"{path}: the tables of the pipeline {DEFAULT_PIPELINE} are fixed; write another pipeline", path
            )
    given = {
        field: value
        for field, value in _with_paths(values, root).items()
        if field not in known or known[field] not in environment
    }
    return _validated({**{field: getattr(deployment, field) for field in Settings.model_fields}, **given})


def owner_in(attributes: Mapping[str, Any]) -> object:
    """The pipeline whose model a pipeline with these fields uses; None if it has its own."""
    section = attributes.get("model")
    return section.get("pipeline") if isinstance(section, Mapping) else None


def borrowers_among(pipelines: Iterable[Mapping[str, Any]]) -> dict[str, Settings | str]:
    """The pipelines among these that use the model of another, so that others can't name them as its owner."""
    owners = {str(attributes.get("name")): owner_in(attributes) for attributes in pipelines}
    return {name: f"it uses that of {owner}, so name {owner}" for name, owner in owners.items() if owner is not None}


def _values_of_owner(name: str, values: Mapping[str, Any], others: ModelOwners) -> dict[str, Any]:
    """What a pipeline has from the owner of its model; its own fields must not contradict it.

    Raises:
        PipelineError: the owner does not exist, or a field contradicts it.
    """
    place = IN_PIPELINE_FILES["shared_model"]
    named, usable = values["shared_model"], sorted(other for other, one in others.items() if isinstance(one, Settings))
    owner = others.get(named) if isinstance(named, str) else None
    hint = f"name {' or '.join(usable)}" if usable else "no other pipeline can be used here"
    if named == name:
        raise PipelineError(f"{place}: this is the pipeline itself; name another one, or remove {place}", place)
    if owner is None:
        raise PipelineError(f"{place}: unknown pipeline {named}; {hint}", place)
    if isinstance(owner, str):
        raise PipelineError(f"{place}: the model of the pipeline {named} can't be used: {owner}", place)
    for field in (*DECIDED_BY_OWNER, *TASK_FIELDS):
        path = IN_PIPELINE_FILES[field]
        if field in values and field in DECIDED_BY_OWNER:
            raise PipelineError(f"{path}: the pipeline {named} decides this; remove it, or remove {place}", path)
        if field in values and _comparable(field, values[field]) != getattr(owner, field):
            raise PipelineError(
                f"{path}: it differs from that of the pipeline {named}, whose model is used; remove the section task",
                path,
            )
    return {
        field: getattr(owner, field)
        for field in ("experiment", *DECIDED_BY_OWNER, *TASK_FIELDS, *SET_BY_OWNER)
        if field not in values
    }


def _comparable(field: str, value: Any) -> Any:
    """A value of a task's field as settings hold it."""
    if field != "labels" or not isinstance(value, list | Mapping):
        return value
    return tuple(value.items()) if isinstance(value, Mapping) else tuple((label, None) for label in value)


def _validated(values: Mapping[str, Any]) -> Settings:
    try:
        return complete_settings(values)
    except ValidationError as error:
        first = error.errors()[0]
        message = first["msg"].removeprefix("Value error, ")
        field = str(first["loc"][0]) if first["loc"] else ""
        path = IN_PIPELINE_FILES.get(field, _path_named_in(message))
        for setting, place in IN_PIPELINE_FILES.items():
            message = re.sub(rf"\b{setting.upper()}\b", place, message)
        raise PipelineError(f"{path}: {message}" if path else message, path) from error


def _with_paths(values: Mapping[str, Any], root: Path) -> dict[str, Any]:
    """The values with paths from the root, and the source as it is written."""
    written = next((values[source] for source in SOURCES if values.get(source) is not None), None)
    given = {field: values[field] for field in _PATHS if isinstance(values.get(field), str)}
    rooted = {field: _rooted(value, root, is_path=field in ("landing", "source_url")) for field, value in given.items()}
    return {**values, **rooted, **({"written_source": written} if isinstance(written, str) else {})}


def _flat(attributes: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Settings and their values.

    Raises:
        PipelineError: a field is unknown.
    """
    for key, content in attributes.items():
        section = str(key)
        if section in _FIELDS:
            yield _FIELDS[section], content
            continue
        if section not in SECTIONS:
            raise PipelineError(_unknown(section, SECTIONS), section)
        if not isinstance(content, Mapping):
            raise PipelineError(f"{section}: write its fields below it, such as {_first_field(section)}", section)
        for field, value in content.items():
            path = f"{section}.{field}"
            if path not in _FIELDS:
                raise PipelineError(_unknown(path, tuple(_FIELDS)), path)
            # The schema of an extraction may be a JSON schema.
            is_schema = _FIELDS[path] == "answer_schema" and isinstance(value, Mapping)
            yield _FIELDS[path], json.dumps(value) if is_schema else value


def _first_field(section: str) -> str:
    return next(path for path in _FIELDS if path.startswith(f"{section}."))


def _unknown(path: str, known: tuple[str, ...]) -> str:
    near = difflib.get_close_matches(path, known, n=1)
    hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(_siblings(path, known))}"
    return f"{path} is not a field; {hint}"


def _siblings(path: str, known: tuple[str, ...]) -> list[str]:
    section, dot, _ = path.rpartition(".")
    return [one for one in known if one.startswith(f"{section}{dot}")]


def _path_named_in(message: str) -> str:
    """The field whose variable a message about several settings names first."""
    fields = sorted(IN_PIPELINE_FILES, key=lambda field: -len(field))
    found = [(message.find(field.upper()), field) for field in fields if field.upper() in message]
    return IN_PIPELINE_FILES[min(found)[1]] if found else ""


def _defaults(name: str, attributes: Mapping[str, Any], deployment: Settings) -> dict[str, Any]:
    """What a pipeline other than the default one has if its file does not say otherwise."""
    fields = Settings.model_fields
    source = attributes.get("source")
    is_chained = isinstance(source, Mapping) and source.get("pipeline") is not None
    return {
        **{field: fields[field].default for field in IN_PIPELINE_FILES},
        **({"text": ""} if is_chained else {}),
        "dataset": None,
        "reference": None,
        "endpoint": EMBEDDED_ENDPOINT if "ai_query" in attributes else None,
        "model_name": name,
        "experiment": f"{deployment.experiment}/{name}",
        "owners": deployment.owners,
    }


def _rooted(value: str, root: Path, *, is_path: bool) -> str:
    """A relative path, or several separated by commas, below the root; other names and URIs as they are.

    Args:
        value: the value of a field.
        root: where relative paths start.
        is_path: whether the value can't be a name on the hub.
    """
    if "://" in value:
        return value
    if is_path:
        return str(root / Path(value).expanduser())
    return ",".join(_rooted_one(part.strip(), root) for part in value.split(","))


def _rooted_one(name: str, root: Path) -> str:
    is_path = name.startswith(".") or any(character in name for character in "*?") or (root / name).exists()
    return str(root / name) if is_path and not Path(name).is_absolute() else name

"""The JSON schema of a pipeline's file, for editors."""

from typing import Any

from batch_assets.pipelines.pipeline import OTHERWISE_UNSET
from batch_assets.pipelines.pipeline_files import COMPONENT
from batch_assets.settings import DECIDED_BY_OWNER, IN_PIPELINE_FILES, Settings

# Files write these more freely than the values that they become.
_AS_WRITTEN: dict[str, dict[str, Any]] = {
    "labels": {
        "oneOf": [
            {"type": "array", "items": {"type": "string"}, "minItems": 2},
            {"type": "object", "additionalProperties": {"type": ["string", "null"]}, "minProperties": 2},
        ]
    },
    "answer_schema": {"type": ["string", "object"]},
    "carry": {"type": "array", "items": {"type": "string"}},
}


def pipeline_schema() -> dict[str, Any]:
    """The schema, draft 2020-12, with the defaults of pipelines other than the default one."""
    described = Settings.model_json_schema(by_alias=False)["properties"]
    for field in OTHERWISE_UNSET:
        described[field] = {key: value for key, value in described[field].items() if key != "default"}
    attributes: dict[str, Any] = {}
    for name, path in IN_PIPELINE_FILES.items():
        section, _, field = path.partition(".")
        known = {key: value for key, value in described[name].items() if key != "title"}
        schema = {**_AS_WRITTEN[name], "description": known["description"]} if name in _AS_WRITTEN else known
        if not field:
            attributes[section] = schema
            continue
        default: dict[str, Any] = {"type": "object", "properties": {}, "additionalProperties": False}
        attributes.setdefault(section, default)["properties"][field] = schema
    decided = [IN_PIPELINE_FILES[name] for name in DECIDED_BY_OWNER]
    refused = [path.removeprefix("model.") for path in decided if path.startswith("model.")]
    attributes["model"]["dependentSchemas"] = {"pipeline": {"properties": dict.fromkeys(refused, False)}}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "A pipeline of batch_assets",
        "type": "object",
        "properties": {
            "type": {"const": COMPONENT},
            "attributes": {
                "type": "object",
                "properties": attributes,
                "required": ["name", "source"],
                "additionalProperties": False,
            },
        },
        "required": ["type", "attributes"],
    }

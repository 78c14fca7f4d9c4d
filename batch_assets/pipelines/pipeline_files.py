"""The files of pipelines: YAML with the type and the attributes of a Dagster component, one pipeline per file."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from yaml.composer import Composer

from batch_assets.errors import BatchAssetsError
from batch_assets.pipelines.pipeline import PipelineError

COMPONENT = "batch_assets.InferencePipeline"
_SUFFIXES = {".yaml", ".yml"}
# A pipeline file has a few dozen lines.
_MAX_BYTES = 1024 * 1024


def files_in(folder: Path) -> list[Path]:
    """The pipeline files in a folder, by name; none if the folder does not exist."""
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if path.suffix in _SUFFIXES and not path.name.startswith("."))


def attributes_in(file: Path) -> Mapping[str, Any]:
    """The fields of the pipeline in a file.

    Raises:
        BatchAssetsError: the file can't be read, or is not a pipeline file.
    """
    try:
        if file.stat().st_size > _MAX_BYTES:
            raise BatchAssetsError(f"{file} is larger than {_MAX_BYTES} bytes, far more than a pipeline file needs")
        content = yaml.load(file.read_text(encoding="utf-8"), _StrictLoader)
    except OSError as error:
        raise BatchAssetsError(f"{file} can't be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise BatchAssetsError(f"{file} can't be read: it is not UTF-8") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = "" if mark is None else f", line {mark.line + 1}"
        raise BatchAssetsError(f"{file}{line} is not YAML: {getattr(error, 'problem', None) or error}") from error
    except (ValueError, TypeError, RecursionError) as error:  # an impossible date, a list as a key, endless nesting
        raise BatchAssetsError(f"{file} can't be read: {error}") from error
    if not isinstance(content, Mapping) or content.get("type") != COMPONENT:
        raise BatchAssetsError(f"{file}, line 1: the file must begin with type: {COMPONENT}")
    attributes = content.get("attributes")
    if not isinstance(attributes, Mapping):
        raise BatchAssetsError(f"{file}: the fields of the pipeline must be below attributes:")
    return attributes


def located(file: Path, error: PipelineError) -> str:
    """The message of an error in a file, with the line of the field."""
    return f"{file}, line {_line_of(file, ['attributes', *error.path.split('.')])}: {error}"


def _line_of(file: Path, path: list[str]) -> int:
    """The line of a field, or of the innermost section around it that is there."""
    node, line = yaml.compose(file.read_text(encoding="utf-8"), yaml.SafeLoader), 1
    for name in path:
        pairs = node.value if isinstance(node, yaml.MappingNode) else []
        found = next(((key, value) for key, value in pairs if key.value == name), None)
        if found is None:
            break
        line, node = found[0].start_mark.line + 1, found[1]
    return line


# libyaml is several times as fast as the parser in Python. Its composer crashes the process on endless nesting; the one
# in Python raises a RecursionError.
_Parser: Any = yaml.CSafeLoader if yaml.__with_libyaml__ else yaml.SafeLoader


class _StrictLoader(Composer, _Parser):  # type: ignore[misc]
    """YAML in which a key must not occur twice, because the second one would win unseen."""

    def __init__(self, text: str) -> None:
        _Parser.__init__(self, text)
        Composer.__init__(self)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if key.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the field {key.value} appears twice", key.start_mark
                )
            seen.add(key.value)
        mapping: dict[Any, Any] = super().construct_mapping(node, deep)
        return mapping

"""Generate docs/reference from the code: settings, tables, commands, errors, models. ``make docs`` runs this."""

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import click

from batch_assets.cli import main
from batch_assets.engines.contract import RowError
from batch_assets.engines.model_files import DECODERS, ENCODER_DECODERS, TOKENIZERS
from batch_assets.errors import BatchAssetsError, ExitStatus
from batch_assets.lake.contracts import PARTITION, TABLES
from batch_assets.settings import IN_PIPELINE_FILES, Settings, variables
from batch_assets.sources.reasons import Reason

_ROOT = Path(__file__).parent.parent
FOLDER = _ROOT / "docs" / "reference"
_PACKAGE = _ROOT / "batch_assets"
_MADE = "This page is generated from the code by `make docs`; a test checks that it is up to date.\n"
_NAME = r"AI_FUNCTION_[A-Z_]+(?:\.[A-Z_]+)?"
# Shorter messages only pass on the text of another error.
_LEAST_LITERAL = 12
_VARIABLE = "…"
_AREAS = {
    "": "Commands, settings, the machine",
    "sources": "Documents and files",
    "lake": "Tables",
    "models": "Models, the registry, promotion",
    "engines": "Scoring",
    "scoring": "Scoring",
    "ai_functions": "Statements, `ai_query`, endpoints",
    "automation": "Runs",
    "pipelines": "Pipelines",
    "tasks": "Pipelines",
    "graph": "Runs",
}


def pages() -> dict[str, str]:
    """All pages as Markdown, by file name."""
    return {
        "settings.md": _settings(),
        "tables.md": _tables(),
        "commands.md": _commands(),
        "errors.md": _errors(),
        "models.md": _models(),
    }


def _models() -> str:
    lines = [
        "# Models\n",
        "A model folder is used only if its `config.json` names one of these model types and architectures.",
        "Their configuration classes load no other configuration, so nothing in the folder can make transformers run",
        "other code. [Hub models](../how-to/hub_models.md) lists what else is refused.\n",
        _MADE,
    ]
    for title, types in (("Encoder-decoders", ENCODER_DECODERS), ("Decoder-only models", DECODERS)):
        lines += [f"## {title}\n", "| `model_type` | `architectures` |", "|---|---|"]
        lines += [f"| `{kind}` | {', '.join(f'`{name}`' for name in names)} |" for kind, names in types.items()]
        lines.append("")
    names = ", ".join(f"`{name}`" for name in sorted(TOKENIZERS))
    lines += ["## Tokenizer classes\n", f"With or without the suffix `Fast`: {names}."]
    return _joined(lines)


def _settings() -> str:
    lines = [
        "# Settings\n",
        "A setting belongs to the deployment, which environment variables set, or to a [pipeline](../pipelines.md),",
        "whose file sets it. For the pipeline `summaries`, which ships, a variable sets it too: it takes precedence",
        "over `pipelines/summaries.yaml`, and that over the default. `make run`, `make ui`, the command `batch-assets`",
        "and the Dagster code location read them. A `BATCH_ASSETS_` variable that is not on this page is refused.\n",
        "In other pipelines than `summaries`, `source.dataset`, `columns.reference` and `ai_query.endpoint` have no",
        "default, and `model.name` is the pipeline's name.\n",
        _MADE,
        "## Of a pipeline\n",
        "| in its file | variable, for `summaries` only | default | meaning |",
        "|---|---|---|---|",
    ]
    known = variables()
    for name, path in IN_PIPELINE_FILES.items():
        variable = f"`{known[name]}`" if name in known else ""
        lines.append(f"| `{path}` | {variable} | {_default(name)} | {_cell(_meaning(name))} |")
    lines += ["", "## Of the deployment\n", "| variable | default | meaning |", "|---|---|---|"]
    for name, variable in known.items():
        if name not in IN_PIPELINE_FILES:
            lines.append(f"| `{variable}` | {_default(name)} | {_cell(_meaning(name))} |")
    return _joined(lines)


def _default(name: str) -> str:
    default = Settings.model_fields[name].default
    return "" if default in (None, ()) else f"`{str(default)!r}`".replace("'", "")


def _meaning(name: str) -> str:
    return Settings.model_fields[name].description or ""


def _tables() -> str:
    lines = [
        "# Tables\n",
        f"Each is a Delta table at `<lake>/<catalog>/<schema>/<table>`, partitioned by `{PARTITION}`, with reader",
        "version 1 and writer version 2, so any Delta reader can read it. Times are UTC, in microseconds.\n",
        _MADE,
    ]
    for table in TABLES:
        lines += [
            f"## {table.name}\n",
            f"{table.description}.\n",
            "| column | type | null | meaning |",
            "|---|---|---|---|",
            *(
                f"| `{c.name}` | {c.type} | {'yes' if c.nullable else 'never'} | {_cell(c.description)} |"
                for c in table.columns
            ),
            "",
        ]
    return _joined(lines)


def _commands() -> str:
    lines = [
        "# Commands\n",
        "`batch-assets` is in `.venv/bin` after the first `make run`. `batch-assets COMMAND --help` prints the same.\n",
        _MADE,
    ]
    context = click.Context(main, info_name="batch-assets")
    for name, command in sorted(main.commands.items()):
        one = click.Context(command, info_name=name, parent=context)
        usage = " ".join(["batch-assets", name, *command.collect_usage_pieces(one)])
        lines += [f"## {name}\n", f"`{usage}`\n", _paragraphs(command.help or ""), ""]
        options = [p for p in command.params if isinstance(p, click.Option)]
        if options:
            lines += ["| option | meaning |", "|---|---|"]
            lines += [f"| `{', '.join(option.opts)}` | {_cell(option.help or '')} |" for option in options]
            lines.append("")
    return _joined(lines)


def _errors() -> str:
    lines = [
        "# Errors\n",
        _MADE,
        f"In messages, `{_VARIABLE}` and `{{name}}` stand for values that vary.\n",
        "## Exit statuses\n",
        "| status | name | meaning |",
        "|---|---|---|",
        *(f"| {status.value} | `{status.name}` | {_cell(status.meaning)} |" for status in ExitStatus),
        "",
        "## Exceptions\n",
        "Python code that uses this package can catch these.\n",
        "| class | module | meaning |",
        "|---|---|---|",
        *(f"| `{name}` | `{module}` | {_cell(meaning)} |" for name, module, meaning in _exceptions()),
        "",
        "## Rejected records\n",
        "The column `reason` of [m4_1_prod_data_rejected](tables.md#m4_1_prod_data_rejected) has one of these",
        "values.\n",
        *(f"- `{reason.value}`" for reason in Reason),
        "",
        "## Documents without a summary\n",
        "The column `error_message` of [m4_1_batch_inference](tables.md#m4_1_batch_inference) has one of these values.",
        "The last one is an error of the engine or a library. For a document with markup, and for a long prompt, the",
        "message starts with `ValueError: `.\n",
        *(f"- `{error.value}`" for error in RowError),
        "",
        "## Errors of ai_query\n",
        "Errors of endpoints and answers begin with a name in square brackets: in `errorMessage`, in the column",
        "`error_message` of [ai_query_inference](tables.md#ai_query_inference), and in the error that fails a",
        f"statement. In ai_query_inference, a document without text has the error `{RowError.NO_TEXT.value}`.\n",
    ]
    for name, messages in sorted(_named().items()):
        lines += [f"### {name}\n", *(f"- `{message}`" for message in messages), ""]
    lines += [
        "## Messages\n",
        "The messages of the exceptions above, by the part of the package that raises them.\n",
    ]
    areas: dict[str, list[str]] = {}
    for area, message in _messages():
        areas.setdefault(area, []).append(message)
    for area in dict.fromkeys(_AREAS.values()):
        lines += [f"### {area}\n", *(f"- `{message}`" for message in dict.fromkeys(areas.get(area, []))), ""]
    return _joined(lines)


@cache
def _modules() -> dict[str, ast.Module]:
    """All modules of the package, by dotted name."""
    found = {}
    for path in sorted(_PACKAGE.rglob("*.py")):
        parts = path.relative_to(_ROOT).with_suffix("").parts
        found[".".join(parts)] = ast.parse(path.read_text())
    return found


def _exceptions() -> Iterator[tuple[str, str, str]]:
    """Name, module and meaning of the error class and its subclasses."""
    known = {BatchAssetsError.__name__}
    yield BatchAssetsError.__name__, BatchAssetsError.__module__, BatchAssetsError.__doc__ or ""
    grown = True
    while grown:
        grown = False
        for module, tree in _modules().items():
            for node in ast.walk(tree):
                if isinstance(node, ast.ClassDef) and node.name not in known:
                    bases = {base.id for base in node.bases if isinstance(base, ast.Name)}
                    if bases & known:
                        known.add(node.name)
                        grown = True
                        yield node.name, module, ast.get_docstring(node) or ""


def _named() -> dict[str, list[str]]:
    """The messages of ai_query's errors, by error name."""
    found: dict[str, list[str]] = {}

    def add(name: str, message: str) -> None:
        messages = found.setdefault(name, [])
        if len(message) >= _LEAST_LITERAL and message not in messages:
            messages.append(message)

    for tree in _modules().values():
        for node in _walk(tree):
            text = _template(node)
            if text is not None and (match := re.match(rf"\[({_NAME})\] ?(.*)", text)):
                add(match[1], match[2])
            if isinstance(node, ast.Call) and len(node.args) > 1:
                name, message = (_template(argument) for argument in node.args[:2])
                if name is not None and re.fullmatch(_NAME, name):
                    add(name, message or "")
    return found


def _messages() -> Iterator[tuple[str, str]]:
    """Area and text of every message with which the error class or a subclass is raised."""
    classes = {name for name, _, _ in _exceptions()}
    for module, tree in _modules().items():
        parts = module.split(".")
        area = _AREAS.get(parts[1] if len(parts) > 2 else "", _AREAS[""])
        for node in ast.walk(tree):
            call = node.exc if isinstance(node, ast.Raise) else None
            if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name) or call.func.id not in classes:
                continue
            text = _template(call.args[0]) if call.args else None
            if text is not None and len(text.replace(_VARIABLE, "").strip()) >= _LEAST_LITERAL:
                yield area, text


def _walk(tree: ast.AST) -> Iterator[ast.AST]:
    """Yield all nodes except the parts of an f-string, which counts as one text."""
    yield tree
    if not isinstance(tree, ast.JoinedStr):
        for child in ast.iter_child_nodes(tree):
            yield from _walk(child)


def _template(node: ast.AST) -> str | None:
    """The text of a string in the code, with ``…`` for values; None if the node is not a string."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(_template(part) or _VARIABLE for part in node.values)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        sides = (_template(node.left), _template(node.right))
        return None if sides == (None, None) else "".join(side or _VARIABLE for side in sides)
    return None


def _paragraphs(text: str) -> str:
    """The paragraphs of a docstring, with examples as code blocks that tests do not run."""
    shown = []
    for part in re.split(r"\n\s*\n", text.strip()):
        lines = [line.strip() for line in part.splitlines()]
        if lines[0] == "\b":
            shown.append("\n".join(["```text", *lines[1:], "```"]))
        else:
            shown.append(" ".join(lines))
    return "\n\n".join(shown)


def _cell(text: str) -> str:
    plain = " ".join(text.split())
    plain = re.sub(r"``([^`]+)``", r"`\1`", plain)
    return re.sub(r"(?<!`)(<[a-z]+>[\w/-]*(?:\.\w+)*)(?!`)", r"`\1`", plain).replace("|", "\\|")


def _joined(lines: list[str]) -> str:
    return "\n".join(lines).rstrip("\n") + "\n"


def write() -> None:
    """Write the pages."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name, page in pages().items():
        (FOLDER / name).write_text(page)


if __name__ == "__main__":
    write()

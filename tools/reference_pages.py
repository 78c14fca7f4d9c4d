"""Write docs/reference from the code itself: settings, tables, commands, errors, models. ``make docs`` runs it."""

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import click

from batch_assets.cli import main
from batch_assets.errors import BatchAssetsError, ExitStatus
from batch_assets.inference.contract import RowError
from batch_assets.inference.model_files import DECODERS, ENCODER_DECODERS, TOKENIZERS
from batch_assets.lake.tables import PARTITION, TABLES
from batch_assets.settings import Settings, variables
from batch_assets.sources.reasons import Reason

_ROOT = Path(__file__).parent.parent
FOLDER = _ROOT / "docs" / "reference"
_PACKAGE = _ROOT / "batch_assets"
_MADE = "This page is written from the code by `make docs`; a test holds the two together.\n"
_NAME = r"AI_FUNCTION_[A-Z_]+(?:\.[A-Z_]+)?"
# Shorter ones say nothing of their own: they hand on what something else has said.
_LEAST_LITERAL = 12
_VARIABLE = "…"
_AREAS = {
    "": "Commands, settings, the machine",
    "sources": "Documents and files",
    "lake": "Tables",
    "models": "Models, the registry, promotion",
    "inference": "Scoring",
    "ai_functions": "Statements, `ai_query`, endpoints",
    "automation": "Runs",
    "assets": "Runs",
}


def pages() -> dict[str, str]:
    """Every page by its file name, as Markdown."""
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
        "Their configuration classes load no other configuration, so nothing in the folder can lead to code that",
        "transformers would run. [Hub models](../how-to/hub_models.md) says what else is refused.\n",
        _MADE,
    ]
    for title, types in (("Encoder-decoders", ENCODER_DECODERS), ("Decoder-only models", DECODERS)):
        lines += [f"## {title}\n", "| `model_type` | `architectures` |", "|---|---|"]
        lines += [f"| `{kind}` | {', '.join(f'`{name}`' for name in names)} |" for kind, names in types.items()]
        lines.append("")
    names = ", ".join(f"`{name}`" for name in sorted(TOKENIZERS))
    lines += ["## Tokenizer classes\n", f"With or without the ending `Fast`: {names}."]
    return _joined(lines)


def _settings() -> str:
    lines = [
        "# Settings\n",
        "Settings are environment variables. `make run`, `make ui`, the command `batch-assets` and the Dagster code",
        "location read them. A `BATCH_ASSETS_` variable that is not in this table is refused.\n",
        _MADE,
        "| variable | default | meaning |",
        "|---|---|---|",
    ]
    for name, variable in variables().items():
        field = Settings.model_fields[name]
        default = "" if field.default is None else f"`{str(field.default)!r}`".replace("'", "")
        lines.append(f"| `{variable}` | {default} | {_cell(field.description or '')} |")
    return _joined(lines)


def _tables() -> str:
    lines = [
        "# Tables\n",
        f"Each is a Delta table at `<lake>/<catalog>/<schema>/<table>`, partitioned by `{PARTITION}`. Reader version",
        "is 1 and writer version 2, so any Delta reader reads them. Times are UTC, in microseconds.\n",
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
        "`batch-assets` is in `.venv/bin` after the first `make run`. `batch-assets COMMAND --help` says the same.\n",
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
        f"In messages, `{_VARIABLE}` and `{{name}}` stand for what depends on the case.\n",
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
        "## Records that are set aside\n",
        "The column `reason` of [m4_1_prod_data_rejected](tables.md#m4_1_prod_data_rejected) says one of these.\n",
        *(f"- `{reason.value}`" for reason in Reason),
        "",
        "## Documents without a summary\n",
        "The column `error_message` of [m4_1_batch_inference](tables.md#m4_1_batch_inference) says one of these. The",
        "last one is what the engine or a library raised. For a document with markup, and for a long prompt,",
        "`ValueError: ` stands before the message.\n",
        *(f"- `{error.value}`" for error in RowError),
        "",
        "## Names of ai_query\n",
        "Errors of endpoints and answers begin with a name in square brackets: in `errorMessage`, in the column",
        "`error_message` of [ai_query_inference](tables.md#ai_query_inference), and in the message that ends a",
        f"statement. In ai_query_inference, a document without text has the error `{RowError.NO_TEXT.value}`.\n",
    ]
    for name, messages in sorted(_named().items()):
        lines += [f"### {name}\n", *(f"- `{message}`" for message in messages), ""]
    lines += [
        "## Messages\n",
        "What the exceptions above say, by the part that raises them.\n",
    ]
    areas: dict[str, list[str]] = {}
    for area, message in _messages():
        areas.setdefault(area, []).append(message)
    for area in dict.fromkeys(_AREAS.values()):
        lines += [f"### {area}\n", *(f"- `{message}`" for message in dict.fromkeys(areas.get(area, []))), ""]
    return _joined(lines)


@cache
def _modules() -> dict[str, ast.Module]:
    """Every module of the package by its dotted name."""
    found = {}
    for path in sorted(_PACKAGE.rglob("*.py")):
        parts = path.relative_to(_ROOT).with_suffix("").parts
        found[".".join(parts)] = ast.parse(path.read_text())
    return found


def _exceptions() -> Iterator[tuple[str, str, str]]:
    """Name, module and meaning of the error class and of those derived from it."""
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
    """The names of ai_query's errors, each with the messages that come with it."""
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
    """Area and text of every message with which the error class, or one derived from it, is raised."""
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
    """All nodes but the parts of a formatted text, which is a text as a whole."""
    yield tree
    if not isinstance(tree, ast.JoinedStr):
        for child in ast.iter_child_nodes(tree):
            yield from _walk(child)


def _template(node: ast.AST) -> str | None:
    """A text of the code with ``…`` for what is filled in; None where it is no text."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(_template(part) or _VARIABLE for part in node.values)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        sides = (_template(node.left), _template(node.right))
        return None if sides == (None, None) else "".join(side or _VARIABLE for side in sides)
    return None


def _paragraphs(text: str) -> str:
    """A docstring's paragraphs, an example as a block that shows it and is not run."""
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

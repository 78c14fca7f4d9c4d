"""The layout of the package: which imports each folder may use, and how modules are named."""

import ast
from collections import Counter
from pathlib import Path

PACKAGE = Path(__file__).parent.parent / "batch_assets"

# From top to bottom: a folder imports only from those below it. Unlisted modules are at the bottom.
FLOORS = (
    "cli",
    "definitions",
    "component",
    "pipeline_definitions",
    "operations",
    "automation",
    "graph",
    "resources",
    "pipelines",
    "staleness",
    "ai_functions",
    "models",
    "tasks",
    "scoring",
    "engines",
    "sources",
    "quality",
    "lake",
)
WITH_DAGSTER = FLOORS[: FLOORS.index("resources") + 1]


def modules() -> dict[str, Path]:
    """Modules by dotted name, without the package name."""
    return {".".join(path.relative_to(PACKAGE).with_suffix("").parts): path for path in PACKAGE.rglob("*.py")}


def imports(path: Path) -> list[str]:
    """Modules imported anywhere in a file."""
    nodes = list(ast.walk(ast.parse(path.read_text())))
    found = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    for node in nodes:
        if isinstance(node, ast.ImportFrom):
            found += [node.module] if node.module != "batch_assets" else [f"batch_assets.{a.name}" for a in node.names]
    return found


def floor(module: str) -> int:
    first = module.split(".")[0]
    return FLOORS.index(first) if first in FLOORS else len(FLOORS)


def test_imports_point_down():
    pairs = [
        (name, target.removeprefix("batch_assets."))
        for name, path in modules().items()
        for target in imports(path)
        if target.startswith("batch_assets.") and name not in ("__init__", "__main__")
    ]
    assert len(pairs) > 500
    assert [pair for pair in pairs if floor(pair[1]) < floor(pair[0])] == []


def test_only_folders_above_pipelines_import_dagster():
    using = {name.split(".")[0] for name, path in modules().items() for used in imports(path) if used == "dagster"}
    assert using - {*WITH_DAGSTER} == set()


def test_only_one_module_imports_private_names_of_dagster():
    using = {name for name, path in modules().items() if any(used.startswith("dagster._") for used in imports(path))}
    assert using == {"resources.dagster_internals"}


def test_modules_share_a_name_only_if_they_are_one_concept_at_two_levels():
    names = Counter(name.rpartition(".")[2] for name in modules() if not name.endswith("__"))
    # A resource or command, and the implementation it uses.
    shared = {name for name, count in names.items() if count > 1}
    assert shared == {"endpoints", "promotion", "registry"}


def test_every_folder_has_a_docstring_describing_its_contents():
    for folder in {path.parent for path in modules().values()}:
        assert ast.get_docstring(ast.parse((folder / "__init__.py").read_text())), folder

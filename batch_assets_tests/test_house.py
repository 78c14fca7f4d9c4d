"""The layout of the package: what each folder may import, and what each module is called."""

import ast
from collections import Counter
from pathlib import Path

PACKAGE = Path(__file__).parent.parent / "batch_assets"

# From top to bottom: a folder imports from those below it. What is not listed lies at the bottom.
FLOORS = (
    "cli",
    "definitions",
    "operations",
    "automation",
    "graph",
    "resources",
    "staleness",
    "ai_functions",
    "models",
    "scoring",
    "engines",
    "sources",
    "quality",
    "lake",
)
WITH_DAGSTER = FLOORS[: FLOORS.index("resources") + 1]


def modules() -> dict[str, Path]:
    """Modules by dotted name, without that of the package."""
    return {".".join(path.relative_to(PACKAGE).with_suffix("").parts): path for path in PACKAGE.rglob("*.py")}


def imports(path: Path) -> list[str]:
    """Modules that a file imports, anywhere in it."""
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
        if target.startswith("batch_assets.") and name != "__main__"
    ]
    assert len(pairs) > 500
    assert [pair for pair in pairs if floor(pair[1]) < floor(pair[0])] == []


def test_dagster_ends_above_staleness():
    using = {name.split(".")[0] for name, path in modules().items() for used in imports(path) if used == "dagster"}
    assert using - {*WITH_DAGSTER} == set()


def test_one_module_holds_the_private_names_of_dagster():
    using = {name for name, path in modules().items() if any(used.startswith("dagster._") for used in imports(path))}
    assert using == {"resources.dagster_internals"}


def test_no_two_modules_share_a_name_unless_they_are_the_same_thing_at_two_levels():
    names = Counter(name.rpartition(".")[2] for name in modules() if not name.endswith("__"))
    # What Dagster hands to assets or people start, and what it is made of.
    shared = {name for name, count in names.items() if count > 1}
    assert shared == {"endpoints", "promotion", "registry"}


def test_every_folder_says_what_it_holds():
    for folder in {path.parent for path in modules().values()}:
        assert ast.get_docstring(ast.parse((folder / "__init__.py").read_text())), folder

"""Everything that README and docs mention exists, and every command they show works."""

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from batch_assets.cli import main
from batch_assets.settings import variables
from batch_assets_tests.docs_pages import ROOT, RUN, SHOWN, Block, anchors, blocks, links, pages
from tools import reference_pages
from tools.ports import free_port

PAGES = pages()
# A picture made in a browser.
_NOT_THERE_YET = {"docs/images/graph.png"}
_BLOCK_SECONDS = 3600
_READY_SECONDS, _STOP_SECONDS = 300, 90


@pytest.mark.parametrize("name", reference_pages.pages())
def test_each_reference_page_matches_the_code(name):
    said = (reference_pages.FOLDER / name).read_text()
    assert said == reference_pages.pages()[name], "the code has changed: run make docs"


def test_the_page_lists_every_reason_for_rejecting_a_record():
    literal = re.compile(r"\b(?:problem|reason) = f?\"|Rejected\(\w+, f?\"|Record\([^()]*, f?\"[^\"]+\"\)")
    for path in (ROOT / "batch_assets" / "sources").glob("*.py"):
        assert not literal.search(path.read_text()), f"{path.name}: name the reason in reasons.py"


@pytest.mark.parametrize("page", PAGES)
def test_every_block_is_run_or_says_why_it_is_not(page):
    for block in blocks(page):
        assert block.language in RUN | SHOWN, f"{block}: say what it is, one of {', '.join(sorted(RUN | SHOWN))}"
        assert block.not_run is None or (block.language in RUN and len(block.not_run) > 10), block
        assert block.background is None or block.is_run, block


@pytest.mark.parametrize("page", PAGES)
def test_every_link_has_an_existing_target(page):
    for target in links(page):
        name, _, anchor = target.partition("#")
        path = (ROOT / page).parent / name if name else ROOT / page
        if str(path.resolve().relative_to(ROOT.resolve())) in _NOT_THERE_YET:
            continue
        assert path.exists(), f"{page}: {target}"
        assert not anchor or anchor in anchors(path), f"{page}: {target}"


@pytest.mark.parametrize("page", PAGES)
def test_every_setting_mentioned_exists(page):
    for name in re.findall(r"\bBATCH_ASSETS_[A-Z]+(?:_[A-Z]+)*\b(?!\*)", (ROOT / page).read_text()):
        assert name in variables().values(), f"{name} in {page}"


def _commands(page: str) -> Iterator[list[str]]:
    """The words of every batch-assets command on a page, in blocks and in the text."""
    text = (ROOT / page).read_text()
    spans = re.findall(r"`(batch-assets [^`]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))
    for block in blocks(page):
        if block.language in {"sh", "text"}:
            joined = block.text.replace("\\\n", " ")
            spans += re.findall(r"(?:^|[ (|;])(batch-assets [a-z].*?)(?=$|\||;|\) )", joined, re.MULTILINE)
    for span in spans:
        # A quotation that continues on the next line contains no options.
        try:
            yield shlex.split(span, comments=True)
        except ValueError:
            yield span.split()[:2]


@pytest.mark.parametrize("page", PAGES)
def test_every_command_and_option_mentioned_exists(page):
    for _, name, *words in _commands(page):
        if name in {"COMMAND", "--help"}:
            continue
        assert name in main.commands, f"{page}: batch-assets {name}"
        options = {option for parameter in main.commands[name].params for option in parameter.opts}
        for word in words:
            if word.startswith("--"):
                assert word in options | {"--help"}, f"{page}: batch-assets {name} {word}"


def test_every_make_target_mentioned_exists():
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for page in PAGES:
        for name in re.findall(r"(?:`|^)(?:[A-Z_]+=\S+ )*make ([a-z]+)", (ROOT / page).read_text(), re.MULTILINE):
            assert name in targets, f"{page}: make {name}"


@pytest.fixture(scope="module")
def checkout(tmp_path_factory) -> Path:
    """A copy of the checkout as it is after the first ``make``, without state."""
    folder = tmp_path_factory.mktemp("checkout") / "batch_assets"
    left_out = shutil.ignore_patterns(".git", ".venv", ".batch_assets", "__pycache__", ".*_cache", "*.egg-info")
    shutil.copytree(ROOT, folder, ignore=left_out)
    venv = folder / ".venv"
    venv.mkdir()
    for part in Path(sys.prefix).iterdir():
        if not part.name.startswith(".installed-"):
            (venv / part.name).symlink_to(part)
    # Even a page that installs more must not change the environment that the tests run in.
    for what in ("java", "run", "test", "proof"):
        (venv / f".installed-{what}").touch()
    return folder


@pytest.fixture(scope="module")
def shell(checkout) -> dict[str, str]:
    """The environment of a user's shell in that checkout."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("BATCH_ASSETS_", "MLFLOW_"))}
    return {
        **kept,
        "PATH": os.pathsep.join([str(checkout / ".venv" / "bin"), kept["PATH"]]),
        # In the test environment, the installed package is not the one in this copy.
        "PYTHONPATH": str(checkout),
        "BATCH_ASSETS_UI_PORT": str(free_port()),
        "BATCH_ASSETS_MLFLOW_PORT": str(free_port()),
    }


def _program(block: Block) -> str:
    if block.language == "sh":
        return block.text
    command = {"python": "python -", "sql": "batch-assets query -"}[block.language]
    return f"{command} <<'END_OF_BLOCK'\n{block.text}END_OF_BLOCK\n"


@contextmanager
def _running(block: Block, folder: Path, env: dict[str, str]) -> Iterator[None]:
    """Run a block until the page ends, after waiting for the output that says it is ready."""
    process = subprocess.Popen(
        ["bash", "-ec", _program(block)],
        cwd=folder,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    said: list[str] = []
    up = threading.Event()

    def read() -> None:
        for line in process.stdout:
            said.append(line)
            if block.background in line:
                up.set()
        up.set()  # it has ended

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    try:
        up.wait(_READY_SECONDS)
        assert any(block.background in line for line in said), f"{block} was not up: {said}"
        yield
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        # Its output ends when its last process does; until then, its port is in use.
        reader.join(_STOP_SECONDS)
        is_over = not reader.is_alive()
        if not is_over:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        assert is_over, f"{block} did not end within {_STOP_SECONDS} seconds: {said}"


def _run(block: Block, folder: Path, env: dict[str, str], exports: Path) -> None:
    """Run a block with the exports of the earlier blocks on the page, as in one terminal."""
    carry_over = f"[ ! -e '{exports}' ] || . '{exports}'\n"
    script = f"set -eo pipefail\n{carry_over}{_program(block)}\nexport -p > '{exports}'\n"
    began = time.monotonic()
    run = subprocess.run(
        ["bash", "-c", script], cwd=folder, env=env, capture_output=True, text=True, timeout=_BLOCK_SECONDS, check=False
    )
    print(f"{block}: status {run.returncode}, {time.monotonic() - began:.0f} s", flush=True)
    assert run.returncode == 0, f"{block}\n{block.text}\n{run.stdout}\n{run.stderr}"


@pytest.mark.proof
@pytest.mark.parametrize("page", PAGES)
def test_every_command_on_a_page_works(page, checkout, shell, tmp_path, record_property):
    exports = tmp_path / "exports.sh"
    not_run = [f"{block.line}: {block.not_run}" for block in blocks(page) if block.not_run]
    record_property("not run", "; ".join(not_run))
    with ExitStack() as servers:
        for block in blocks(page):
            if block.file is not None:
                (checkout / block.file).parent.mkdir(parents=True, exist_ok=True)
                (checkout / block.file).write_text(block.text)
            elif block.is_run and block.background is not None:
                servers.enter_context(_running(block, checkout, {**shell, **_exported(exports)}))
            elif block.is_run:
                _run(block, checkout, shell, exports)


def _exported(exports: Path) -> dict[str, str]:
    if not exports.exists():
        return {}
    said = subprocess.run(
        ["bash", "-c", f". '{exports}'; env -0"], capture_output=True, text=True, check=True, env={}
    ).stdout
    return dict(line.split("=", 1) for line in said.split("\0") if line)

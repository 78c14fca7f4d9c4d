"""The examples in docs/contributing.md, applied to a copy of the package and run there."""

import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from batch_assets.engines.catalog import ENGINES, FASTER_ENGINES, REFERENCE
from batch_assets.engines.choice import choose
from batch_assets.engines.contract import ScoringModel
from batch_assets.errors import BatchAssetsError
from batch_assets_tests.conftest import settings_for
from batch_assets_tests.docs_pages import ROOT, Block, blocks

PROGRAM = """
from batch_assets.definitions import build_defs
from batch_assets.engines.catalog import load_engine
from batch_assets.engines.contract import ScoringModel, generate
from batch_assets.models.checkpoint_sources import HubCheckpoint, checkpoint_source
from batch_assets.settings import Settings
from batch_assets.sources.configured import scored_dataset

settings = Settings(engine="shout", dataset="poem.txt")
model = ScoringModel("m", 1, "", "", {}, None, settings.engine, "float32", 0)
assert [completion.text for completion in generate(load_engine(model, 1), ["a", "b"])] == ["A", "B"]

dataset = scored_dataset(settings)
dataset.check()
assert [record.fields["document"] for record in dataset.records("poem")] == ["First.", "Second."]

checks = build_defs(settings=settings).resolve_asset_graph().asset_check_keys
assert "model_card" in {key.name for key in checks}

source = checkpoint_source(settings)
assert isinstance(source, HubCheckpoint) and source.name == "google/flan-t5-small"
"""


def test_auto_takes_no_engine_whose_output_is_not_compared_with_the_reference():
    with pytest.raises(ValueError, match="auto uses only engines whose conversion is compared"):
        replace(REFERENCE, auto_order=0)
    assert all(engine.convert is not None for engine in FASTER_ENGINES)


def test_an_engine_without_a_conversion_is_refused_for_8_bit_weights(monkeypatch, home):
    monkeypatch.setitem(ENGINES, "openvino", replace(REFERENCE, name="openvino"))
    model = ScoringModel("m", 1, "", "", {}, "{prompt}", "transformers", "float32", 0)
    with pytest.raises(BatchAssetsError, match=r"BATCH_ASSETS_ENGINE=openvino .* it has no 8-bit weights"):
        choose(None, None, model, settings_for(home, engine="openvino", dtype="int8"))


def insert(path: Path, before: str, text: str) -> None:
    content = path.read_text()
    assert content.count(before) == 1
    path.write_text(content.replace(before, text + before))


@pytest.fixture
def examples() -> list[Block]:
    return [block for block in blocks("docs/contributing.md") if block.language == "python"]


def test_the_page_says_how_to_add_an_engine_a_source_a_check_and_a_default_model(tmp_path, examples):
    package = shutil.copytree(ROOT / "batch_assets", tmp_path / "batch_assets")
    engine, dataset, opening, check, model = examples
    for block in (engine, dataset):
        (tmp_path / block.file).write_text(block.text)
    configured = package / "sources" / "configured.py"
    insert(configured, "    columns = ColumnMapping.of(settings)\n    if name == EMBEDDED_DATASET", opening.text)
    insert(configured, "from batch_assets.settings", "from batch_assets.sources.lines import LineDataset\n")
    checks = package / "graph" / "model_checks.py"
    insert(checks, "\ndef model_checks", f"\n{check.text}\n")
    insert(checks, "        Check(\n            keys.evaluation", "        model_card(settings),\n")
    settings = package / "settings.py"
    content = settings.read_text()
    changed = re.sub(r"    model: str = Field\(.*\n", model.text, content)
    assert changed != content
    settings.write_text(changed)
    (tmp_path / "poem.txt").write_text("First.\nSecond.\n")
    env = {**os.environ, "PYTHONPATH": str(tmp_path), "BATCH_ASSETS_HOME": str(tmp_path / "home")}
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM], cwd=tmp_path, env=env, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr

import subprocess
import sys

import dagster as dg
import pytest

from batch_assets.definitions import build_defs
from batch_assets_tests.conftest import environment, settings_for

HEAVY = ("torch", "transformers", "pyspark", "mlflow", "dagster_pyspark", "datasets", "pandas", "xllamacpp")


def test_loading_the_code_location_imports_no_heavy_packages(home):
    program = f"import sys, batch_assets.definitions; print([m for m in {HEAVY!r} if m in sys.modules])"
    run = subprocess.run(
        [sys.executable, "-c", program], env=environment(home), capture_output=True, text=True, check=True
    )
    assert run.stdout.strip() == "[]"


def test_dagster_accepts_the_definitions(home):
    command = [sys.executable, "-m", "dagster", "definitions", "validate", "-m", "batch_assets.definitions"]
    run = subprocess.run(command, env=environment(home), capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr


def test_the_graph_has_the_designed_assets_groups_and_edges(home):
    graph = build_defs(settings=settings_for(home)).resolve_asset_graph()
    parents = {
        key.to_user_string(): {parent.to_user_string() for parent in graph.get(key).parent_keys}
        for key in graph.get_all_asset_keys()
    }
    assert parents == {
        "source_dataset": set(),
        "base_checkpoint": set(),
        "chat_endpoint": set(),
        "prod_data": {"source_dataset"},
        "logged_model": {"base_checkpoint", "source_dataset"},
        "model_evaluation": {"logged_model", "source_dataset"},
        "champion_model": {"model_evaluation", "source_dataset"},
        "batch_inference": {"prod_data", "champion_model"},
        "ai_query_inference": {"prod_data", "chat_endpoint"},
        "summary_quality": {"batch_inference", "ai_query_inference"},
        "quality_report": {"summary_quality"},
    }
    groups = {key.to_user_string(): graph.get(key).group_name for key in graph.get_all_asset_keys()}
    assert {name for name, group in groups.items() if group == "external"} == {
        "source_dataset",
        "base_checkpoint",
        "chat_endpoint",
    }
    assert groups["prod_data"] == "data"
    assert groups["champion_model"] == "model"
    assert groups["summary_quality"] == "summaries"


@pytest.mark.parametrize("name", ["prod_data", "batch_inference", "ai_query_inference", "summary_quality"])
def test_tables_share_the_partitions_and_the_batches_per_run(home, name):
    graph = build_defs(settings=settings_for(home, batches_per_run=7)).resolve_asset_graph()
    node = graph.get(dg.AssetKey(name))
    assert node.partitions_def.name == "batch_assets/batch"
    assert node.backfill_policy.max_partitions_per_run == 7

"""A deployment with several pipelines, whose graphs run in this process on one instance."""

from collections.abc import Mapping
from pathlib import Path

import dagster as dg
import yaml

from batch_assets.definitions import build_defs
from batch_assets.graph.partitions import register_batches
from batch_assets.lake.lake import Lake
from batch_assets.operations.local_runs import materialize
from batch_assets.pipelines.deployment import load_deployment
from batch_assets.settings import PREFIX, Settings
from batch_assets.tasks.output_tables import tables_of
from batch_assets_tests.servers import ChatServer


def write_deployment(folder: Path, server: ChatServer, pipelines: Mapping[str, Mapping[str, object]]) -> None:
    """Write the files of pipelines, and an endpoint called counted."""
    (folder / "pipelines").mkdir()
    (folder / "endpoints.toml").write_text(f'[endpoints.counted]\nbase_url = "{server.url}"\nmodel = "m"\n')
    for name, attributes in pipelines.items():
        content = {"type": "batch_assets.InferencePipeline", "attributes": {"name": name, **attributes}}
        (folder / "pipelines" / f"{name}.yaml").write_text(yaml.safe_dump(content))


class PipelineDeployment:
    """The deployment in a folder."""

    def __init__(self, folder: Path, instance: dg.DagsterInstance, monkeypatch) -> None:
        self.folder = folder
        self.instance = instance
        values = {"HOME": folder / "home", "PIPELINES": folder / "pipelines", "ENDPOINTS": folder / "endpoints.toml"}
        for name, value in {**values, "SPARK_MASTER": "local[2,4]", "SETTLE_SECONDS": 0}.items():
            monkeypatch.setenv(f"{PREFIX}{name}", str(value))

    def settings(self, pipeline: str) -> Settings:
        return load_deployment().pipeline(pipeline)

    def run(self, pipeline: str, job: str, batches: list[str], **changes) -> list[str]:
        register_batches(self.instance, pipeline, batches)
        settings = self.settings(pipeline).model_copy(update=changes)
        return materialize(build_defs(settings=settings), self.instance, pipeline, job, batches)

    def versions(self, pipeline: str) -> dict[str, int]:
        settings = self.settings(pipeline)
        return {table.name: Lake.of(settings).find(table).version for table in tables_of(settings).all}

    def rows(self, pipeline: str, table: str, batch: str) -> list[dict]:
        settings = self.settings(pipeline)
        snapshot = Lake.of(settings).find(getattr(tables_of(settings), table))
        return [row for part in snapshot.read(batch) for row in part.to_pylist()]

    def metadata(self, pipeline: str, asset: str, batch: str) -> dict:
        records = self.instance.fetch_materializations(
            dg.AssetRecordsFilter(dg.AssetKey([pipeline, asset]), asset_partitions=[batch]), limit=1
        ).records
        return {key: value.value for key, value in records[0].asset_materialization.metadata.items()}

"""Manual promotion and rollback, for the command line and as Dagster jobs."""

from collections.abc import Callable
from typing import Any

import dagster as dg

from batch_assets.errors import BatchAssetsError
from batch_assets.graph.champion_model import PROMOTION_POOL
from batch_assets.graph.pipeline_names import PROMOTE, ROLLBACK, AssetKeys, prefixed
from batch_assets.graph.signatures import with_known_signature
from batch_assets.resources.registry import ModelRegistry
from batch_assets.settings import Settings
from batch_assets.sources.configured import evaluation_dataset


def _refuse_shared(settings: Settings) -> None:
    if settings.shared_model is not None:
        raise BatchAssetsError(
            f"the pipeline {settings.pipeline} uses the model of the pipeline {settings.shared_model}, and only that "
            f"pipeline promotes it: use --pipeline {settings.shared_model}"
        )


def promote_version(settings: Settings, number: int, report: Callable[[str], None]) -> str:
    """Make a version the champion, and return a message about it.

    Raises:
        BatchAssetsError: another pipeline owns the model, or the version does not exist or can't be loaded.
    """
    _refuse_shared(settings)
    from batch_assets.models.promotion import promote_by_hand, promotion_lock

    documents = evaluation_dataset(settings).held_out(settings.evaluation_rows)
    with promotion_lock(settings, report):
        old = promote_by_hand(ModelRegistry(settings).model(settings), settings, number, documents, report)
    was = f"; version {old.number} is now the previous champion" if old is not None else ""
    return f"version {number} of {settings.registered_model} is the champion{was}"


def roll_back(settings: Settings, report: Callable[[str], None]) -> str:
    """Swap the champion and the previous champion, and return a message about it.

    Raises:
        BatchAssetsError: another pipeline owns the model, or there is no previous champion.
    """
    _refuse_shared(settings)
    from batch_assets.models.promotion import promotion_lock, rollback

    with promotion_lock(settings, report):
        version = rollback(ModelRegistry(settings).model(settings))
    return f"version {version.number} of {version.name} is the champion again"


def promotion_jobs(settings: Settings) -> list[dg.JobDefinition]:
    """The jobs that promote a version of a pipeline's model by hand, and roll back; none if another one owns it."""
    if settings.shared_model is not None:
        return []

    @dg.op(
        name=prefixed(settings.pipeline, "promote_champion"),
        pool=PROMOTION_POOL,
        config_schema={"version": int},
        description="Make a version the champion by hand.",
    )
    @with_known_signature
    def promote_champion(context: dg.OpExecutionContext) -> None:
        """Promote the configured version and report it."""
        context.log.info(promote_version(settings, context.op_config["version"], context.log.info))
        _report(context, settings)

    @dg.op(
        name=prefixed(settings.pipeline, "roll_champion_back"),
        pool=PROMOTION_POOL,
        description="Restore the previous champion.",
    )
    @with_known_signature
    def roll_champion_back(context: dg.OpExecutionContext) -> None:
        """Restore the previous champion and report it."""
        context.log.info(roll_back(settings, context.log.info))
        _report(context, settings)

    @dg.job(
        name=prefixed(settings.pipeline, PROMOTE),
        executor_def=dg.in_process_executor,
        description="Make the version in the config the champion by hand.",
    )
    def promote() -> None:
        """Promote one version."""
        promote_champion()

    @dg.job(
        name=prefixed(settings.pipeline, ROLLBACK),
        executor_def=dg.in_process_executor,
        description="Restore the previous champion.",
    )
    def rollback() -> None:
        """Roll the champion back."""
        roll_champion_back()

    return [promote, rollback]


def _report(context: dg.OpExecutionContext, settings: Settings) -> None:
    """Materialize champion_model with the champion's number as its data version."""
    registry = ModelRegistry(settings)
    version = registry.model(settings).champion()
    metadata: dict[str, Any] = {
        "model": version.name,
        "version": version.number,
        "decision": version.tags.get("promotion.reason", ""),
        **registry.version_link(version.name, version.number),
    }
    tags = {"dagster/data_version": str(version.number)}
    key = AssetKeys(settings.pipeline).champion
    context.log_event(dg.AssetMaterialization(key, metadata=metadata, tags=tags))

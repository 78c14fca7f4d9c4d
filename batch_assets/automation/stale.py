"""The one decision whether a batch of a table needs work."""

from collections.abc import Mapping
from typing import Any

from batch_assets.errors import BatchAssetsError
from batch_assets.lake.lake import BatchSnapshot


def input_version(table: BatchSnapshot, batch: str) -> int:
    """The version of a table in which a batch was last changed.

    Raises:
        BatchAssetsError: the batch is not in the table.
    """
    commit = table.last_commit(batch)
    if commit is None:
        raise BatchAssetsError(
            f"the batch {batch} is not in {table.table.name} at version {table.version}: materialize prod_data "
            "for it first"
        )
    return commit.version


def is_stale(output: BatchSnapshot, batch: str, recorded: Mapping[str, Any], newest_input: int) -> bool:
    """Whether the last commit of a batch doesn't record what a run would record now.

    A run that works on an older version of the input than the last commit did has been overtaken: for it, the
    batch is not stale.

    Args:
        output: the table, as it is now.
        batch: key of the batch.
        recorded: what a commit of a run made now would record, as far as a difference calls for a new run;
            ``input_version`` among it.
        newest_input: the newest version of the input; a commit that records a later one was made from a table
            that is gone.
    """
    commit = output.last_commit(batch)
    if commit is None:
        return True
    if recorded["input_version"] < commit.metadata.get("input_version", -1) <= newest_input:
        return False
    return any(commit.metadata.get(key) != value for key, value in recorded.items())

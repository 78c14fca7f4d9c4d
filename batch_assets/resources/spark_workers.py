"""Check that the workers of a cluster have the driver's packages and code, before they get any work."""

import hashlib
import json
import sys
from importlib import metadata, util
from pathlib import Path
from typing import Any

from batch_assets.errors import BatchAssetsError
from batch_assets.spark_sessions import task_slots

# Packages that workers use; includes all engines, since any may be chosen.
_PACKAGES = ("pyarrow", "deltalake", "mlflow", "torch", "transformers", "tokenizers", "ctranslate2", "aiohttp")


def check_workers(spark: Any) -> list[str]:
    """Compare the Python environments of the workers with the driver's.

    Returns:
        One line for each package whose version differs from the driver's.

    Raises:
        BatchAssetsError: a worker lacks a package, or its code of this package differs.
    """
    import pyspark.cloudpickle
    from pyspark.sql import functions as F  # noqa: N812 - the name in Spark's documentation

    # Send the code itself: a worker without this package, which this function detects, can't import the module.
    cloudpickle: Any = pyspark.cloudpickle
    module = sys.modules[__name__]
    cloudpickle.register_pickle_by_value(module)
    try:
        slots = task_slots(spark)
        # Not an Arrow function: a worker without pyarrow must be able to report that.
        describe = F.udf(lambda _: json.dumps(_environment()), "string", useArrow=False)
        rows = spark.range(slots).repartition(slots, "id").select(describe("id").alias("answer")).distinct().collect()
    except Exception as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        relevant = [
            line for line in lines if "Cannot run program" in line or "Error:" in line or "PYTHON_VERSION" in line
        ]
        raise BatchAssetsError(
            f"the workers can't run Python functions ({(relevant or lines or [type(error).__name__])[-1][:300]}): "
            "set PYSPARK_PYTHON to a Python that exists on every worker, see docs/how-to/cluster.md"
        ) from error
    finally:
        cloudpickle.unregister_pickle_by_value(module)
    here = _environment()
    differences = set()
    for row in rows:
        there = json.loads(row["answer"])
        host = there["host"]
        if there["code"] != here["code"]:
            state = "no batch_assets" if there["code"] is None else "different batch_assets code than the driver"
            raise BatchAssetsError(
                f"the worker on {host} has {state} ({there['python']}): install the driver's wheel there, see "
                "docs/how-to/cluster.md"
            )
        missing = [name for name in _PACKAGES if there["packages"][name] is None and here["packages"][name]]
        if missing:
            raise BatchAssetsError(
                f"the worker on {host} lacks {', '.join(missing)} ({there['python']}): give workers the driver's "
                "environment, see docs/how-to/cluster.md"
            )
        for name in _PACKAGES:
            if there["packages"][name] != here["packages"][name]:
                differences.add(
                    f"the worker on {host} has {name} {there['packages'][name]}, the driver {here['packages'][name]}"
                )
    return sorted(differences)


def _environment() -> dict[str, Any]:
    """Host, Python, package versions and a digest of this package's code, for the current process."""
    import os

    packages: dict[str, str | None] = {}
    for name in _PACKAGES:
        try:
            packages[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            packages[name] = None
    code = None
    spec = util.find_spec("batch_assets")
    if spec is not None and spec.origin is not None:
        folder = Path(spec.origin).parent
        digest = hashlib.sha256()
        for path in sorted(folder.rglob("*.py")):
            digest.update(path.relative_to(folder).as_posix().encode() + path.read_bytes())
        code = digest.hexdigest()
    return {"host": os.uname().nodename, "python": sys.executable, "packages": packages, "code": code}

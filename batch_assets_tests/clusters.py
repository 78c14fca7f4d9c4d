"""A cluster on loopback whose executors have the package from its wheel, and nothing from this checkout."""

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tools.spark_cluster import Cluster, spark_cluster

CHECKOUT = Path(__file__).parents[1]


def python_with_wheel(folder: Path) -> Path:
    """Create an environment with the package's wheel and the dependencies installed here; returns its interpreter."""
    wheels, source = folder / "wheels", folder / "source"
    # Build from a copy, because a build leaves files beside its source.
    shutil.copytree(CHECKOUT / "batch_assets", source / "batch_assets", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(CHECKOUT / name, source)
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(wheels), str(source)]
    subprocess.run(build, check=True, cwd=folder)
    (wheel,) = wheels.glob("*.whl")
    venv.create(folder / "environment", symlinks=True)
    packages = Path(sysconfig.get_path("purelib", vars={"base": str(folder / "environment")}))
    unpack = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(packages), str(wheel)]
    subprocess.run(unpack, check=True, cwd=folder)
    # The path alone: .pth files inside that folder, such as this checkout's, have no effect there.
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    return folder / "environment" / "bin" / "python"


@contextmanager
def loopback_cluster(folder: Path, **shape) -> Iterator[Cluster]:
    """A standalone cluster that knows nothing about this checkout; its temporary files are in ``folder / "tmp"``."""
    (folder / "tmp").mkdir(parents=True)
    before = dict(os.environ)
    os.environ["TMPDIR"] = str(folder / "tmp")
    os.environ.pop("PYTHONPATH", None)
    try:
        with spark_cluster(folder, **shape) as cluster:
            yield cluster
    finally:
        os.environ.clear()
        os.environ.update(before)

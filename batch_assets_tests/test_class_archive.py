"""Java's archive of Spark's classes: made once, used if it fits, harmless if it doesn't."""

import re
import subprocess
import sys

import pytest

from batch_assets.resources.class_archive import archive_for, make_archive, sharing_options
from batch_assets.resources.java import check_java

MAKE = """
import sys
sys.prefix = sys.argv[1]
from batch_assets.resources.class_archive import make_archive
make_archive()
"""
COUNT = """
import sys
sys.prefix = sys.argv[1]
from batch_assets.resources.class_archive import sharing_options
from batch_assets.resources.spark import SparkResource, java_options
from batch_assets.resources.java import check_java
options = f'{java_options()} {sharing_options(check_java())} -Xlog:class+load:file={sys.argv[1]}/classes'
resource = SparkResource(master="local[2]", config={"spark.driver.extraJavaOptions": options})
print(resource.session.range(5).count())
resource.stop()
"""


def test_an_archive_is_used_only_with_the_java_and_spark_it_was_made_for(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    path = archive_for("Java 17, /usr/bin/java")
    assert sharing_options("Java 17, /usr/bin/java") == ""
    path.parent.mkdir(parents=True)
    path.touch()
    assert f"-XX:SharedArchiveFile={path}" in sharing_options("Java 17, /usr/bin/java")
    assert sharing_options("Java 21, /usr/bin/java") == ""


@pytest.mark.proof
def test_spark_loads_classes_from_its_archive_and_silently_ignores_one_from_another_java(tmp_path, monkeypatch):
    def count() -> int:
        """The number of classes that Spark loaded from the archive while it started and counted rows."""
        command = [sys.executable, "-c", COUNT, str(tmp_path)]
        # Java would write a crash report into this folder.
        run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
        assert (run.stdout, run.stderr) == ("5\n", "")
        return (tmp_path / "classes").read_text().count("shared objects file (top)")

    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    old = tmp_path / "share" / "batch_assets" / "spark-3.5.0-01234567.jsa"
    old.parent.mkdir(parents=True)
    old.touch()
    subprocess.run([sys.executable, "-c", MAKE, str(tmp_path)], check=True)
    path = archive_for(check_java())
    assert [*old.parent.glob("*.jsa")] == [path] == [make_archive()]
    assert count() > 5000
    path.chmod(0o600)
    build = re.search(rb"Server VM \(([^)]+)\)", path.read_bytes())[1]
    path.write_bytes(path.read_bytes().replace(build, build[::-1]))
    assert count() == 0


@pytest.mark.proof
def test_no_archive_is_kept_if_the_disk_is_full(tmp_path):
    full = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({20 << 20},) * 2)"
    run = subprocess.run(
        [sys.executable, "-c", full + MAKE, str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert (run.returncode, "Java couldn't write the archive" in run.stderr) == (1, True), run.stderr
    assert not [path for path in tmp_path.rglob("*") if path.suffix == ".jsa"]

import os

import pytest

from batch_assets.errors import BatchAssetsError
from batch_assets.resources.java import check_java


def java_home(folder, says: str, status: int = 0):
    program = folder / "bin" / "java"
    program.parent.mkdir(parents=True)
    program.write_text(f"#!/bin/sh\necho '{says}' >&2\nexit {status}\n")
    program.chmod(0o755)
    return str(folder)


@pytest.mark.parametrize("says", ['openjdk version "17.0.15" 2025-04-15', 'java version "21" 2023-09-19'])
def test_a_recent_enough_java_is_used(tmp_path, monkeypatch, says):
    monkeypatch.setenv("JAVA_HOME", java_home(tmp_path / "jdk", says))
    check_java()


@pytest.mark.parametrize("says", ['java version "1.8.0_392"', 'openjdk version "11.0.2" 2019-01-15'])
def test_an_outdated_java_is_refused_with_instructions(tmp_path, monkeypatch, says):
    monkeypatch.setenv("JAVA_HOME", java_home(tmp_path / "jdk", says))
    with pytest.raises(BatchAssetsError, match=r"is Java (8|11), but Spark needs 17.*apt-get install"):
        check_java()


def test_a_missing_java_is_refused_with_instructions(tmp_path, monkeypatch):
    monkeypatch.delenv("JAVA_HOME", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("sys.prefix", str(tmp_path))
    with pytest.raises(BatchAssetsError, match="none was found: install Java 17"):
        check_java()


def test_a_java_home_with_no_java_or_a_broken_one_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("JAVA_HOME", str(tmp_path))
    with pytest.raises(BatchAssetsError, match="there is no Java in it"):
        check_java()
    monkeypatch.setenv("JAVA_HOME", java_home(tmp_path / "broken", "no such library", status=127))
    with pytest.raises(BatchAssetsError, match=r"does not run .no such library"):
        check_java()


def test_the_java_runtime_unpacked_by_make_is_found(tmp_path, monkeypatch):
    monkeypatch.setenv("JAVA_HOME", "set, so that it is restored after the test")
    monkeypatch.delenv("JAVA_HOME")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("sys.prefix", str(tmp_path))
    home = java_home(tmp_path / "java" / "usr" / "lib" / "jvm" / "java-17", 'openjdk version "17.0.1"')
    check_java()
    assert os.environ["JAVA_HOME"] == home

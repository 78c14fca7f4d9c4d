"""Find the Java that Spark needs before starting Spark."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from batch_assets.errors import BatchAssetsError

_OLDEST = 17  # https://spark.apache.org/docs/4.2.0/

_REMEDY = (
    "install Java 17 or 21 (Debian, Ubuntu: apt-get install openjdk-17-jre-headless; Fedora: dnf install "
    "java-21-openjdk-headless; macOS: brew install openjdk@21) or point JAVA_HOME at it"
)


def _candidates() -> list[Path]:
    home = os.environ.get("JAVA_HOME")
    if home:
        return [Path(home) / "bin" / "java"]
    on_path = shutil.which("java")
    if on_path:
        return [Path(on_path)]
    # Where make unpacks a Java runtime on machines without one.
    return sorted(Path(sys.prefix).glob("java/usr/lib/jvm/*/bin/java"))


def check_java() -> str:
    """Make sure that Spark finds a suitable Java; set JAVA_HOME if make has unpacked one.

    Returns:
        Version and path of that Java.

    Raises:
        BatchAssetsError: Java is missing or too old.
    """
    java = next((path for path in _candidates() if path.exists()), None)
    if java is None:
        where = (
            f"JAVA_HOME is {os.environ['JAVA_HOME']}, but there is no Java in it" if "JAVA_HOME" in os.environ else ""
        )
        raise BatchAssetsError(f"{where or 'Spark needs Java, but none was found'}: {_REMEDY}")
    try:
        result = subprocess.run([java, "-version"], capture_output=True, text=True, check=False)
    except OSError as error:
        raise BatchAssetsError(f"{java} does not run ({error.strerror}): {_REMEDY}") from error
    version = re.search(r'version "((?:1\.)?(\d+)[^"]*)', result.stderr + result.stdout)
    if result.returncode or version is None:
        raise BatchAssetsError(f"{java} does not run ({(result.stderr or result.stdout).strip()[:200]}): {_REMEDY}")
    if int(version[2]) < _OLDEST:
        raise BatchAssetsError(f"{java} is Java {version[2]}, but Spark needs {_OLDEST} or newer: {_REMEDY}")
    if str(java).startswith(sys.prefix):
        os.environ["JAVA_HOME"] = str(java.parent.parent)
    return f"Java {version[1]}, {java}"

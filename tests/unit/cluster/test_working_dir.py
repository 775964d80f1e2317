"""What `ray job submit --working-dir .` sends: small, whole, and nothing that is not needed. Asked of Ray's own packing code."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
LIMIT = 8 << 20
PACK = """
import sys
from pathlib import Path
from ray._private.runtime_env.packaging import create_package
create_package(".", Path(sys.argv[1]), include_gitignore=True)
"""


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    target = tmp_path_factory.mktemp("package") / "package.zip"
    done = subprocess.run([sys.executable, "-c", PACK, str(target)], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return zipfile.ZipFile(target)


def test_it_is_small(package: zipfile.ZipFile) -> None:
    size = Path(str(package.filename)).stat().st_size
    largest = sorted(package.infolist(), key=lambda info: -info.compress_size)[:5]
    assert size < LIMIT, [(i.filename, i.compress_size) for i in largest]


def test_it_holds_the_program(package: zipfile.ZipFile) -> None:
    tracked = subprocess.run(
        ["git", "ls-files", "atlas_dist", "configs"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    lost = {path for path in tracked if (ROOT / path).exists()} - set(package.namelist())
    assert not lost


def test_it_leaves_the_rest_at_home(package: zipfile.ZipFile) -> None:
    tops = {name.partition("/")[0] for name in package.namelist()}
    assert not tops & {".git", ".venv", "tests", "docs", "scripts", "cluster", "runs", "demo-run"}

"""Write the image's lock files anew (`make lock`): every package that `atlas-dist[cluster]` needs on the image's Python, at the
version of constraints.txt, with the sha256 of each of its files. The index is the one that uv is set to; no host is written.

    requirements-build.txt   what builds the packages that come as source: first
    requirements-cuda.txt    torch as PyPI has it, and the CUDA libraries that it brings
    requirements.txt         all the rest: both images install it
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
BUILD = re.compile(r"setuptools$")
CUDA = re.compile(r"torch$|triton$|cuda-|nvidia-")


def locked(python: str) -> dict[str, str]:
    """Package -> its lines in the lock. Resolved for x86-64 Linux; the hashes are of the files for every platform."""
    uv = shutil.which("uv", path=str(Path(sys.executable).parent)) or shutil.which("uv")
    if uv is None:
        raise SystemExit("No uv here. Install it: make install")
    what = ["pyproject.toml", "--extra", "cluster", "-c", "constraints.txt", "--python-version", python]
    how = ["--python-platform", "x86_64-manylinux_2_28", "--generate-hashes", "--no-header", "--no-annotate", "--quiet"]
    command = [uv, "pip", "compile", *what, *how]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)  # noqa: S603 - nothing of it is foreign
    if done.returncode:
        raise SystemExit(done.stderr.strip())
    blocks = re.split(r"^(?=\S)", done.stdout, flags=re.MULTILINE)
    return {block.partition("==")[0]: block for block in blocks if "==" in block}


def main() -> None:
    """Ask uv once, write three files."""
    (python,) = re.findall(r"^ARG BASE=python:(\d+\.\d+)", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    every = locked(python)
    build = {name for name in every if BUILD.match(name)}
    cuda = {name for name in every if CUDA.match(name)}
    files = {"requirements-build": build, "requirements-cuda": cuda, "requirements": every.keys() - build - cuda}
    for file, names in files.items():
        head = f"# Made by `make lock` for Python {python} on Linux. Do not edit.\n"
        (HERE / f"{file}.txt").write_text(head + "".join(every[name] for name in sorted(names)))
        print(f"{file}.txt: {len(names)} packages")


if __name__ == "__main__":
    main()

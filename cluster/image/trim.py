"""Remove from the image's packages what no run, server or node ever reads (`python cluster/image/trim.py`, with the Python whose
packages are meant).

Each line below names what goes and why nobody misses it. Builds of torch differ in what they bring of it: what is not there is
passed over. tests/unit/cluster/test_image.py holds the other lines against the packages of the lock.
"""

from __future__ import annotations

import shutil
import subprocess
import sysconfig
from pathlib import Path

GOES = {
    "torch/test": "torch's own test programs",
    "torch/bin/test_*": "more of them",
    "torch/bin/*Test": "more of them",
    "torch/bin/protoc*": "a compiler for torch's build",
    "torch/include": "headers for C++ extensions: the images have no C++ compiler (DeepSpeed's ops are switched off on CPUs)",
    "ray/jars": "Ray for Java",
    "pyarrow/include": "headers",
    "pyarrow/tests": "tests",
    "pandas/tests": "tests",
    "numpy/tests": "tests",
    "numpy/*/tests": "tests",
    "sympy/*/tests": "tests",
    "sympy/*/*/tests": "tests",
    "networkx/*/tests": "tests",
    "networkx/*/*/tests": "tests",
}
"""Pattern below site-packages -> why it is not needed."""

STRIPPED = ("torch/lib/*.so*", "ray/_raylet.so", "ray/core/src/ray/*/*", "pyarrow/*.so*")
"""Programs and libraries that bring tables for debuggers. They go where there is a `strip` (Debian's binutils); traces of C++
frames then lack the names of functions that nobody else calls."""


def matching(packages: Path) -> dict[str, list[Path]]:
    """Pattern -> what it matches."""
    return {pattern: sorted(packages.glob(pattern)) for pattern in GOES}


def size_of(path: Path) -> int:
    """Bytes."""
    return sum(file.lstat().st_size for file in ([path] if path.is_file() else path.rglob("*")) if not file.is_dir())


def strip(packages: Path) -> int:
    """Take the debuggers' tables out. Returns the bytes that it saved."""
    tool = shutil.which("strip")
    found = [path for pattern in STRIPPED for path in packages.glob(pattern) if path.is_file() and not path.is_symlink()]
    programs = [path for path in found if path.read_bytes()[:4] == b"\x7fELF"]
    if tool is None or not programs:
        return 0
    before = sum(map(size_of, programs))
    subprocess.run([tool, *map(str, programs)], check=True)  # noqa: S603 - nothing of it is foreign
    return before - sum(map(size_of, programs))


def main(packages: Path) -> None:
    """Remove it, and say how much it was."""
    gone = [path for paths in matching(packages).values() for path in paths]
    size = sum(map(size_of, gone))
    for path in gone:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    print(f"removed {size / 1e6:.0f} MB in {len(gone)} places, {strip(packages) / 1e6:.0f} MB of tables for debuggers")


if __name__ == "__main__":
    main(Path(sysconfig.get_path("purelib")))

"""Where raw data comes from: a folder, or a .zip whose members are read in memory and never extracted to disk.

Member names come from the data set's own files, so they are not trusted: relative, without "..", and inside the root.
"""

from __future__ import annotations

import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Protocol

from atlas_dist.errors import DataError

MEMBER_CAP = 1 << 30
"""Largest member that is read; a zip member that claims more is refused before it is inflated."""


class Source(Protocol):
    """A read-only tree of named files. Safe to use from several threads."""

    def read(self, name: str) -> bytes:
        """The content of a member. Raises DataError when it is missing, too large or damaged."""
        ...

    def has(self, name: str) -> bool:
        """Whether there is such a member."""
        ...

    def names(self, under: str = "") -> Iterator[str]:
        """All member names below a folder, sorted."""
        ...


class FolderSource:
    """The files below a folder."""

    def __init__(self, root: Path) -> None:
        self._root = root.resolve()

    def read(self, name: str) -> bytes:
        path = self._root / safe_member(name)
        try:
            resolved = path.resolve(strict=True)
            if not resolved.is_relative_to(self._root):
                raise DataError(f"{name} leads out of {self._root}.", fix="Replace the link by the file.")
            if resolved.stat().st_size > MEMBER_CAP:
                raise DataError(f"{name} is larger than {MEMBER_CAP} bytes.")
            return resolved.read_bytes()
        except OSError as error:
            raise DataError(f"{path} cannot be read: {error.strerror or error}") from error

    def has(self, name: str) -> bool:
        return (self._root / safe_member(name)).is_file()

    def names(self, under: str = "") -> Iterator[str]:
        top = self._root / safe_member(under) if under else self._root
        found = (p.relative_to(self._root).as_posix() for p in top.rglob("*") if p.is_file())
        yield from sorted(found)


class ZipSource:
    """The members of a zip, below `root` inside it."""

    def __init__(self, path: Path, root: str = "") -> None:
        self._path = path
        self._root = root and root.rstrip("/") + "/"
        self._lock = threading.Lock()  # a ZipFile shares one file position
        try:
            self._zip = zipfile.ZipFile(path)
        except (OSError, zipfile.BadZipFile) as error:
            raise DataError(f"{path} is not a readable zip: {error}", fix="Download it again and compare its SHA-256.") from error
        self._members = {
            info.filename[len(self._root) :]: info
            for info in self._zip.infolist()
            if not info.is_dir() and info.filename.startswith(self._root)
        }

    def __reduce__(self) -> tuple[type[ZipSource], tuple[Path, str]]:
        return ZipSource, (self._path, self._root)  # another process opens the file itself

    def read(self, name: str) -> bytes:
        info = self._members.get(safe_member(name))
        if info is None:
            raise DataError(f"{self._path} has no member {self._root}{name}.")
        if info.file_size > MEMBER_CAP:
            raise DataError(f"{self._path}: {name} claims {info.file_size} bytes, more than {MEMBER_CAP}.")
        try:
            with self._lock:
                return self._zip.read(info)
        except (OSError, zipfile.BadZipFile, RuntimeError, NotImplementedError) as error:
            raise DataError(f"{self._path}: {name} cannot be read: {error}") from error

    def has(self, name: str) -> bool:
        return safe_member(name) in self._members

    def names(self, under: str = "") -> Iterator[str]:
        below = under and safe_member(under).rstrip("/") + "/"
        yield from sorted(name for name in self._members if name.startswith(below) and _is_safe(name))


def open_source(path: Path) -> Source:
    """The folder or zip at `path`. One enclosing folder, as archives have it, is stepped into.

    Raises:
        DataError: there is neither a folder nor a zip.
    """
    if path.is_dir():
        return FolderSource(path)
    if path.is_file() and path.suffix == ".zip":
        with_root = ZipSource(path)
        tops = {name.partition("/")[0] for name in with_root.names()}
        nested = all("/" in name for name in with_root.names())
        return ZipSource(path, tops.pop()) if nested and len(tops) == 1 else with_root
    raise DataError(f"{path} is neither a folder nor a .zip.", fix="Point `source` at the unpacked data set or at its zip.")


def safe_member(name: str) -> str:
    """`name` when it is a relative path that stays below its root. Raises DataError."""
    if not _is_safe(name):
        raise DataError(f"{name[:200]!r} is not a path inside the data set.", fix="Check the list file that names it.")
    return name


def _is_safe(name: str) -> bool:
    path = PurePosixPath(name)
    return bool(name) and not path.is_absolute() and ".." not in path.parts and "\0" not in name and "\\" not in name

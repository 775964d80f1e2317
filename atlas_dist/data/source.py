"""Where raw data comes from: a folder, or a .zip whose members are read in memory and never extracted to disk.

Member names come from the data set's own files, so they are not trusted: relative, without "..", and inside the root. A
symbolic link is followed where it stays inside the folder, and refused by name where it leads out. Names are found in either
Unicode normal form: a list written on one system names files that another one spelt with separate accents.
"""

from __future__ import annotations

import os
import re
import stat
import threading
import unicodedata
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Protocol

from atlas_dist.data.leftout import UnusableError, shown
from atlas_dist.errors import DataError

MEMBER_CAP = 1 << 30
"""Largest member that is read; a zip member that claims more is refused before it is inflated."""

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")
_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://|data:image/", re.IGNORECASE)
"""The same of a name that no path has folded: a folder may well be called `part1:`."""
_QUIET_NAMES = frozenset({".ds_store", "thumbs.db", "icon\r"})


class Source(Protocol):
    """A read-only tree of named files. Safe to use from several threads."""

    def read(self, name: str) -> bytes:
        """The content of a member. Raises DataError when it is missing, too large or damaged."""
        ...

    def has(self, name: str) -> bool:
        """Whether there is such a member."""
        ...

    def names(self, under: str = "") -> Iterator[str]:
        """All member names below a folder, sorted, but what systems leave behind (`is_quiet`). Raises DataError for a link to
        a folder outside."""
        ...

    def stamp(self, name: str) -> str:
        """A cheap mark that changes when the member does; "" = it never does, or is not there."""
        ...


def is_quiet(name: str) -> bool:
    """Whether a file is what macOS or Windows leaves beside people's files: resource forks, .DS_Store, Thumbs.db."""
    parts = name.split("/")
    return parts[-1].startswith("._") or parts[-1].lower() in _QUIET_NAMES or "__MACOSX" in parts


_BESIDE_NAMES = frozenset({"desktop.ini", "ehthumbs.db", ".directory", ".nomedia", ".gitkeep", ".gitignore", ".keep", ".hidden"})
_BESIDE_FOLDERS = frozenset(
    {".ipynb_checkpoints", "@eadir", ".thumbnails", ".appledouble", ".git", "__pycache__", "$recycle.bin", "lost+found"}
)


def is_no_data(name: str) -> bool:
    """Whether a file is what programs keep beside people's files: settings of a file manager, copies of a notebook or of a disk's
    own thumbnails. Such a file is no sample, and no fault of the data either."""
    *folders, last = name.lower().split("/")
    return last in _BESIDE_NAMES or not _BESIDE_FOLDERS.isdisjoint(folders)


def is_url(name: str) -> bool:
    """Whether `name` is an address and no file (`https://…`; with one slash as well: paths fold them)."""
    return _URL.match(name) is not None


class FolderSource:
    """The files below a folder."""

    def __init__(self, root: Path) -> None:
        self._root = root.resolve()

    def read(self, name: str) -> bytes:
        path = self._found(name)
        try:
            resolved = path.resolve(strict=True)
            if not resolved.is_relative_to(self._root):
                raise UnusableError(
                    f"{shown(name)} leads out of {self._root}.",
                    fix="Replace the link by the file.",
                    reason="a link that leads out",
                )
            state = resolved.stat()
            if not stat.S_ISREG(state.st_mode):
                raise UnusableError(f"{shown(name)} is not a plain file.", reason="not a plain file")
            if state.st_size > MEMBER_CAP:
                raise UnusableError(f"{shown(name)} is larger than {MEMBER_CAP} bytes.", reason="too large a file")
            return resolved.read_bytes()
        except FileNotFoundError as error:
            what = "a broken link" if path.is_symlink() else "missing file"
            raise UnusableError(f"{shown(str(path))} cannot be read: {error.strerror or error}", reason=what) from error
        except (OSError, RuntimeError) as error:  # RuntimeError: a link to itself
            why = error.strerror if isinstance(error, OSError) else error
            raise UnusableError(f"{shown(str(path))} cannot be read: {why}", reason="unreadable file") from error

    def has(self, name: str) -> bool:
        return self._found(name).is_file()

    def names(self, under: str = "") -> Iterator[str]:
        top = self._root / safe_member(under, posix=True) if under else self._root
        found = (path.relative_to(self._root).as_posix() for path in self._files(top, frozenset()))
        yield from sorted(name for name in found if not is_quiet(name))

    def stamp(self, name: str) -> str:
        try:
            state = self._found(name).stat()
        except (OSError, DataError):
            return ""
        return f"{state.st_size}:{state.st_mtime_ns}"

    def _found(self, name: str) -> Path:
        """Where `name` lies: as it is written, each part in either normal form, or with the slashes of another system."""
        path = self._root / safe_member(name, posix=True)
        other = name.replace("\\", "/")
        return _spelt(self._root, name) or (_spelt(self._root, other) if _is_safe(other) else None) or path

    def _files(self, folder: Path, above: frozenset[Path]) -> Iterator[Path]:
        """Everything below a folder that is no folder, links to nothing among it."""
        try:
            entries = list(os.scandir(folder))
        except FileNotFoundError:
            return
        except OSError as error:
            raise DataError(f"The folder {folder} cannot be read: {error.strerror}.", fix="Make it readable.") from error
        above |= {folder.resolve()}
        for entry in entries:
            path = Path(entry.path)
            if not _is_folder(entry):
                yield path
                continue
            if entry.is_symlink():
                target = path.resolve()
                if not target.is_relative_to(self._root):
                    raise DataError(
                        f"{shown(str(path))} is a link to {shown(str(target))}, out of {self._root}.",
                        fix="Replace the link by the folder, or move both below one folder and name that as the source.",
                    )
                if target in above:
                    continue  # a link to where it stands
            yield from self._files(path, above)


def found_file(folder: Path, name: str) -> Path:
    """The file that `name` means, in `folder` where it is no whole path: as it is written, each part in either normal form, or
    with the slashes of another system; where there is none, as it is written."""
    return _spelt(folder, name) or _spelt(folder, name.replace("\\", "/")) or folder / name


def _spelt(root: Path, name: str) -> Path | None:
    """The file or link of this name below `root`, however its accents are written; None = there is none."""
    try:
        path = root / name
        if path.exists() or path.is_symlink():
            return path
        if name.isascii():
            return None
        place = root
        for part in PurePosixPath(name).parts:
            forms = (part, unicodedata.normalize("NFC", part), unicodedata.normalize("NFD", part))
            there = next((place / form for form in forms if (place / form).exists() or (place / form).is_symlink()), None)
            if there is None:
                return None
            place = there
    except (OSError, ValueError):  # a name that no file system takes: reading it says so
        return None
    return place


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself: who reads it is told
        return False


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
        named = ((_member_name(info), info) for info in self._zip.infolist() if not info.is_dir())
        self._members = {name[len(self._root) :]: info for name, info in named if name.startswith(self._root)}
        self._composed = {unicodedata.normalize("NFC", name): info for name, info in self._members.items()}

    def __reduce__(self) -> tuple[type[ZipSource], tuple[Path, str]]:
        return ZipSource, (self._path, self._root)  # another process opens the file itself

    def read(self, name: str) -> bytes:
        info = self._member(name)
        if info is None:
            raise UnusableError(f"{self._path} has no member {self._root}{shown(name)}.", reason="missing file")
        if info.file_size > MEMBER_CAP:
            raise UnusableError(
                f"{self._path}: {shown(name)} claims {info.file_size} bytes, more than {MEMBER_CAP}.", reason="too large a file"
            )
        if stat.S_ISLNK(info.external_attr >> 16):
            raise UnusableError(f"{self._path}: {shown(name)} is a link.", reason="a link inside a zip")
        try:
            with self._lock:
                return self._zip.read(info)
        except (OSError, zipfile.BadZipFile, RuntimeError, NotImplementedError, zlib.error, EOFError, ValueError) as error:
            raise UnusableError(f"{self._path}: {shown(name)} cannot be read: {error}", reason="damaged in the zip") from error

    def has(self, name: str) -> bool:
        return self._member(name) is not None

    def names(self, under: str = "") -> Iterator[str]:
        below = under and safe_member(under).rstrip("/") + "/"
        found = (name for name in self._members if name.startswith(below) and _is_safe(name))
        yield from sorted(name for name in found if not is_quiet(name))

    def stamp(self, name: str) -> str:
        try:
            info = self._member(name)
        except DataError:
            return ""
        return f"{info.file_size}:{info.CRC}" if info else ""

    def _member(self, name: str) -> zipfile.ZipInfo | None:
        """By its name, in either normal form; `./`, doubled slashes and those of another system lead nowhere else."""
        found = self._members.get(safe_member(name, posix=True))
        if found is None and _is_safe(plain := name.replace("\\", "/")):
            found = self._composed.get(unicodedata.normalize("NFC", PurePosixPath(plain).as_posix()))
        if found is None:
            safe_member(name)
        return found


def open_source(path: Path) -> Source:
    """The folder or zip at `path`. One enclosing folder, as archives have it, is stepped into.

    Raises:
        DataError: there is neither a folder nor a zip.
    """
    if path.is_dir():
        return FolderSource(path)
    if path.is_file() and path.suffix.lower() == ".zip":
        with_root = ZipSource(path)
        tops = {name.partition("/")[0] for name in with_root.names()}
        nested = all("/" in name for name in with_root.names())
        return ZipSource(path, tops.pop()) if nested and len(tops) == 1 else with_root
    raise DataError(f"{path} is neither a folder nor a .zip.", fix="Point `source` at the unpacked data set or at its zip.")


def safe_member(name: str, *, posix: bool = False) -> str:
    """`name` when it is a relative path that stays below its root. `posix`: a backslash is a letter like others.

    Raises DataError.
    """
    if _ADDRESS.match(name):
        raise UnusableError(
            f"{shown(name[:200])} is a URL; pictures are read from files.", fix="Download them first.", reason="a URL, not a file"
        )
    if not _is_safe(name, posix=posix):
        raise UnusableError(
            f"{shown(name[:200])!r} is not a path inside the data set.",
            fix="Check the list file that names it.",
            reason="not a path inside the data set",
        )
    return name


def _is_safe(name: str, *, posix: bool = False) -> bool:
    path = PurePosixPath(name)
    return bool(name) and not path.is_absolute() and ".." not in path.parts and "\0" not in name and (posix or "\\" not in name)


def _member_name(info: zipfile.ZipInfo) -> str:
    """A member's name as its maker meant it: some write backslashes, some UTF-8 without saying so (which is then read as
    cp437)."""
    name = info.filename
    if not info.flag_bits & 0x800:
        try:
            name = name.encode("cp437").decode("utf-8")
        except UnicodeError:
            name = info.filename
    return name.replace("\\", "/")

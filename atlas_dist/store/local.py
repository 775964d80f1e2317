"""A folder as an object store, with the promises of S3: create-if-absent by hard link, durable when a call returns.

`create` writes a temporary file in the key's own folder, syncs it, and links it to its name: `link` fails when the name is taken,
on every local file system and on NFS, so exactly one writer wins and no reader ever sees half a file. The folder is synced too:
a name that a power cut can take back was never written.

Over NFS the answer to a `link` or a `rename` that was done may get lost, and the repeated request then fails: what the names
hold afterwards is the truth. Files that can't be objects of ours (`.nfs…` of open files that were deleted, `.DS_Store`) are
passed over.
"""

from __future__ import annotations

import errno
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from atlas_dist.core.keys import check_key, check_name
from atlas_dist.errors import AlreadyExists, AuthError, DataError, MissingObject, PreconditionFailed, StoreError, UnknownOutcome
from atlas_dist.failpoints import failpoint
from atlas_dist.store.objects import HalfWritten, ObjectInfo, too_large
from atlas_dist.store.places import file_url

_TEMPORARY = ".tmp-"
"""Safe names never start with a dot: a temporary file can't be taken for an object, or for a key's folder."""
_NO_LINKS = frozenset({errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EINVAL, errno.EXDEV})
_NO_SYNC = frozenset({errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EBADF})
"""What file systems answer that can't sync a folder (CIFS, some FUSE): there is nothing more to do about its names."""

_ROOM = "Free some space, then run the same command again."
_IN_THE_WAY = (
    "A file has the name that a folder of the store needs: move it away, or set store.url (shards.url) to another folder."
)
_MENDS: dict[int, tuple[str, str]] = {
    errno.ENOSPC: ("the disk is full", _ROOM),
    errno.EDQUOT: ("the quota of this disk is used up", _ROOM),
    errno.EROFS: ("the file system is read-only", "Set store.url (shards.url) to a folder that can be written."),
    errno.EFBIG: ("this file system takes no file of that size", "Set store.url (shards.url) to another disk."),
    errno.ENAMETOOLONG: ("the path is too long", "Set store.url (shards.url) to a shorter path."),
    errno.ENOTDIR: ("a file stands where a folder should", _IN_THE_WAY),
    errno.EEXIST: ("a file stands where a folder should", _IN_THE_WAY),
    errno.EISDIR: ("a folder stands where a file should", "Move it away, or set store.url (shards.url) to another folder."),
    errno.ELOOP: ("a symbolic link leads back to itself", "Mend the link, or set store.url (shards.url) to another folder."),
}
"""What no waiting mends: number -> what it is, what to do."""


class LocalStore:
    """Objects are files below `root`; the version tag is inode, size and modification time."""

    def __init__(self, root: Path) -> None:
        self._root = root.absolute()

    @property
    def url(self) -> str:
        """`file:///…`."""
        return file_url(self._root)

    def create(self, key: str, data: bytes) -> None:
        """Write if absent, durably. Raises AlreadyExists, UnknownOutcome, StoreError (disk full), AuthError."""
        target = self._path(key)
        with _explained(f"create {key}", writes=True):
            temporary = self._write_temporary(target, data)
            try:
                failpoint("local.create.before_link")
                _link(temporary, target, key)
                failpoint("local.create.after_link")
            finally:
                temporary.unlink(missing_ok=True)
        try:
            _sync_folder(target.parent)
        except OSError as error:
            raise UnknownOutcome(f"{key} was written, but its folder could not be synced: {error}.") from error

    def put(self, key: str, data: bytes) -> None:
        """Write or replace, atomically. Raises StoreError (disk full), AuthError."""
        target = self._path(key)
        with _explained(f"write {key}", writes=True):
            self._replace(self._write_temporary(target, data), target)

    def put_file(self, key: str, path: Path) -> ObjectInfo:
        """Write or replace from a file, atomically. Raises StoreError (disk full), AuthError."""
        target = self._path(key)
        with _explained(f"read {path}"):
            opened = path.open("rb")
        with opened as source, _explained(f"write {key}", writes=True):
            temporary = self._temporary(target)
            with _removed_on_error(temporary), temporary.open("xb") as sink:
                shutil.copyfileobj(source, sink, 1 << 20)
                _sync(sink.fileno())
            self._replace(temporary, target)
        return self.stat(key)

    def get(self, key: str, *, limit: int = 1 << 31) -> bytes:
        """The whole object. Raises MissingObject; DataError above `limit`."""
        with _explained(f"read {key}"), self._path(key).open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size > limit:
                raise too_large(key, size, limit)
            return file.read()

    def stat(self, key: str) -> ObjectInfo:
        """Size and version. Raises MissingObject."""
        with _explained(f"look up {key}"):
            return _info(key, self._path(key).stat())

    def read_range(self, key: str, start: int, out: memoryview, *, if_match: str = "") -> int:
        """Fill `out` from `start`. Raises MissingObject, PreconditionFailed."""
        with _explained(f"read {key}"), self._path(key).open("rb", buffering=0) as file:
            etag = _info(key, os.fstat(file.fileno())).etag
            if if_match and etag != if_match:
                raise PreconditionFailed(f"{key} changed: version {etag}, expected {if_match}.")
            file.seek(start)
            filled = 0
            while filled < len(out):
                got = file.readinto(out[filled:])
                if not got:
                    break
                filled += got
            return filled

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """Objects below `prefix` in key order; files that vanish meanwhile are left out."""
        folder, _, start = prefix.rpartition("/")
        with _explained(f"list {prefix}"):
            found = sorted(self._walk(self._root / folder, f"{folder}/" if folder else "", start))
        for key in found:
            with suppress(MissingObject):
                yield self.stat(key)

    def delete(self, key: str) -> None:
        """Remove; missing keys are fine. Empty folders are left: removing them could race with a writer."""
        with _explained(f"delete {key}"), suppress(FileNotFoundError):
            self._path(key).unlink()

    def halves(self, prefix: str) -> Iterator[HalfWritten]:
        """Temporary files below `prefix` (ends in '/') that are there now; a living writer's are among them."""
        folder = self._path(prefix.rstrip("/"))
        with _explained(f"look through {prefix}"):
            found = sorted(folder.rglob(f"{_TEMPORARY}*"))
        for path in found:
            with suppress(FileNotFoundError):
                stat = path.stat()
                yield HalfWritten(str(path.relative_to(self._root)), stat.st_size, stat.st_mtime)

    def drop_half(self, half: HalfWritten) -> None:
        """Remove a temporary file. Raises StoreError, AuthError; DataError for anything else than a temporary file."""
        folder, _, name = half.name.rpartition("/")
        if not name.startswith(_TEMPORARY):
            raise DataError(f"{half.name} is not a temporary file of this store.")
        with _explained(f"delete {half.name}"):
            (self._path(folder) / name).unlink(missing_ok=True)

    def passed_over(self, folder: str) -> Iterator[tuple[str, str]]:
        """What `list` does not show of a folder: files whose names no object can have, and links that lead nowhere."""
        with _explained(f"list {folder}"), suppress(FileNotFoundError, NotADirectoryError):
            for path in sorted(self._path(folder.rstrip("/")).iterdir()):
                broken = path.is_symlink() and not path.exists()
                if broken or (not _may_be_ours(path.name) and path.is_file() and not path.name.startswith(_TEMPORARY)):
                    yield path.name, "a link that leads nowhere" if broken else ""

    def _path(self, key: str) -> Path:
        return self._root / check_key(key)

    def _walk(self, folder: Path, base: str, start: str) -> Iterator[str]:
        """Keys below `folder` whose first segment starts with `start`."""
        with suppress(FileNotFoundError, NotADirectoryError), os.scandir(folder) as entries:
            for entry in entries:
                if not entry.name.startswith(start) or not _may_be_ours(entry.name):
                    continue
                if entry.is_dir():
                    yield from self._walk(Path(entry.path), f"{base}{entry.name}/", "")
                else:
                    yield base + entry.name

    def _temporary(self, target: Path) -> Path:
        _make_folder(target.parent)
        return target.parent / f"{_TEMPORARY}{os.getpid()}-{uuid.uuid4().hex}"

    def _write_temporary(self, target: Path, data: bytes) -> Path:
        temporary = self._temporary(target)
        with _removed_on_error(temporary), temporary.open("xb") as file:
            file.write(data)
            file.flush()
            _sync(file.fileno())
        return temporary

    @staticmethod
    def _replace(temporary: Path, target: Path) -> None:
        written = temporary.stat()
        with _removed_on_error(temporary):
            try:
                temporary.replace(target)
            except FileNotFoundError:
                if not _is(target, written):
                    raise
        _sync_folder(target.parent)


def _may_be_ours(name: str) -> bool:
    """Whether an object or a folder of them can have this name."""
    try:
        check_name(name, "file name")
    except DataError:
        return False
    return True


def _is(target: Path, written: os.stat_result) -> bool:
    """Whether `target` is the file that was written: then the call that failed was done all the same (NFS asks twice)."""
    try:
        found = target.stat()
    except OSError:
        return False
    return (found.st_dev, found.st_ino) == (written.st_dev, written.st_ino)


def _link(temporary: Path, target: Path, key: str) -> None:
    written = temporary.stat()
    try:
        target.hardlink_to(temporary)
    except OSError as error:
        if _is(target, written):
            return
        if isinstance(error, FileExistsError):
            raise AlreadyExists(f"{key} exists.") from error
        if error.errno not in _NO_LINKS:
            raise
        raise StoreError(
            f"{target.parent} is on a file system without hard links ({error.strerror}), so writes can't be made exclusive.",
            fix="Put store.url on a local disk, NFS or S3.",
        ) from error


def _sync(descriptor: int) -> None:
    os.fsync(descriptor)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        _sync(descriptor)
    except OSError as error:
        if error.errno not in _NO_SYNC:
            raise
    finally:
        os.close(descriptor)


def _make_folder(folder: Path) -> None:
    """Create missing folders, each name made durable in the folder above it."""
    missing = []
    while not folder.is_dir():
        missing.append(folder)
        folder = folder.parent
    for each in reversed(missing):
        with suppress(FileExistsError):
            each.mkdir()
        _sync_folder(each.parent)


@contextmanager
def _removed_on_error(path: Path) -> Iterator[None]:
    try:
        yield
    except BaseException:
        path.unlink(missing_ok=True)
        raise


@contextmanager
def _explained(what: str, *, writes: bool = False) -> Iterator[None]:
    """Turn what the operating system says into our errors. Where something is written, a name that is gone tells nothing about
    objects: somebody has cleared the folder away meanwhile."""
    try:
        yield
    except FileNotFoundError as error:
        kind = UnknownOutcome if writes else MissingObject
        raise kind(f"Cannot {what}: there is no {error.filename}.") from error
    except PermissionError as error:
        raise AuthError(f"Cannot {what}: {error}.", fix="Check the folder's owner and mode.") from error
    except OSError as error:
        why, fix = _MENDS.get(error.errno or 0, (str(error), ""))
        where = f" ({error.filename})" if fix and error.filename else ""
        raise StoreError(f"Cannot {what}: {why}{where}.", fix=fix) from error


def _info(key: str, stat: os.stat_result) -> ObjectInfo:
    return ObjectInfo(key, stat.st_size, f"{stat.st_ino:x}-{stat.st_size:x}-{stat.st_mtime_ns:x}")

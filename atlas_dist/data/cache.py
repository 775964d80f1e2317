"""Parts of shards on the node's own disk, shared by its ranks: bounded, and safe to kill at any time.

A part is a file named by the shard's SHA-256 and the part's number: equal content has one name wherever it is stored, and a
shard that changes gets another. Files appear by rename, so none is ever half-written under its name; the reader checks each
against the manifest's CRC32C like anything that comes over the wire, so a file that rotted is a miss. Two ranks that miss the
same part both fetch it; the second rename changes nothing. What was used longest ago goes first when room is needed.

The sum of the files is kept in `total` under a file lock. A crash can only make it wrong until the next eviction, which counts
anew.
"""

from __future__ import annotations

import fcntl
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from atlas_dist.errors import ConfigError

_SUFFIX = ".part"
_FREE_SHARE = 0.1
"""Room made at once when the cache is full, so that not every insert scans the folder."""


class NodeCache:
    """A bounded folder of parts. Safe for several threads and processes of one node.

    Args:
        folder: made when missing; on a local disk (file locks).
        limit: most bytes of all parts together.

    Raises:
        ConfigError: the folder can't be made, or the limit is not positive.
    """

    def __init__(self, folder: Path, limit: int) -> None:
        if limit <= 0:
            raise ConfigError(
                f"The node cache is limited to {limit} bytes.", fix="Set shards.cache_mb, or leave shards.cache_dir empty."
            )
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(
                f"The node cache {folder} cannot be made: {error.strerror}.",
                fix="Set shards.cache_dir to a folder on the node's own disk.",
            ) from error
        self._folder = folder
        self._limit = limit

    def read(self, sha256: str, part: int, out: memoryview) -> bool:
        """Fill `out` with a part; False when it is not here in full. The caller checks its checksum."""
        path = self._path(sha256, part)
        try:
            with path.open("rb", buffering=0) as file:
                filled = 0
                while filled < len(out) and (got := file.readinto(out[filled:])):
                    filled += got
                complete = filled == len(out) and not file.read(1)
            os.utime(path)
        except OSError:
            return False
        return complete

    def write(self, sha256: str, part: int, data: memoryview) -> None:
        """Keep a part, making room for it. A disk that is full or gone is no error: the part is just not kept."""
        path = self._path(sha256, part)
        if len(data) > self._limit or path.exists():
            return
        temporary = ""
        with suppress(OSError):
            try:
                with tempfile.NamedTemporaryFile(dir=self._folder, prefix=".new-", delete=False) as file:
                    temporary = file.name
                    file.write(data)
                with self._locked():
                    self._make_room(len(data))
                    Path(temporary).rename(path)
                    self._set_total(self._total() + len(data))
            finally:
                if temporary:
                    Path(temporary).unlink(missing_ok=True)

    def drop(self, sha256: str, part: int) -> None:
        """Forget a part that failed its checksum."""
        with suppress(OSError):
            self._path(sha256, part).unlink(missing_ok=True)

    def _path(self, sha256: str, part: int) -> Path:
        return self._folder / f"{sha256}-{part}{_SUFFIX}"

    @contextmanager
    def _locked(self) -> Iterator[None]:
        with (self._folder / "lock").open("wb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # given up by the kernel when the process dies
            yield

    def _make_room(self, size: int) -> None:
        if self._total() + size <= self._limit:
            return
        parts = sorted(self._parts())
        total = sum(length for _, length, _ in parts)
        target = min(self._limit - size, int(self._limit * (1 - _FREE_SHARE)))
        for _, length, path in parts:
            if total <= target:
                break
            path.unlink(missing_ok=True)
            total -= length
        self._set_total(total)

    def _parts(self) -> Iterator[tuple[float, int, Path]]:
        """(last use, bytes, path) of each part; what crashed writers left is removed on the way."""
        for path in self._folder.iterdir():
            with suppress(OSError):
                facts = path.stat()
                if path.suffix == _SUFFIX:
                    yield facts.st_mtime, facts.st_size, path
                elif path.name.startswith(".new-") and not _in_use(facts.st_mtime, self._folder):
                    path.unlink(missing_ok=True)

    def _total(self) -> int:
        try:
            return int((self._folder / "total").read_text())
        except (OSError, ValueError):
            return self._limit + 1  # unknown: the next insert counts

    def _set_total(self, total: int) -> None:
        (self._folder / "total").write_text(str(total))


def _in_use(modified: float, folder: Path) -> bool:
    """Whether a temporary file may still be being written: an hour by the folder's own clock."""
    probe = folder / "lock"
    return probe.stat().st_mtime - modified < 3600

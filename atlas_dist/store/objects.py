"""The seam to durable storage: eight calls that the local folder, S3 and the in-memory store all keep; and the in-memory store.

The whole protocol of the ledger rests on two promises: `create` succeeds for exactly one caller per key, and a `get` or `list`
that starts after a `create` returned sees it (strong consistency; S3 has had it since 2020). Keys are '/'-separated safe names.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Protocol, runtime_checkable

from atlas_dist.core.keys import check_key
from atlas_dist.errors import AlreadyExists, DataError, MissingObject, PreconditionFailed


@dataclass(frozen=True)
class ObjectInfo:
    """Size in bytes and an opaque version tag (`ETag` in S3) that changes whenever the content does."""

    key: str
    size: int
    etag: str


class ObjectStore(Protocol):
    """A flat map from key to bytes. Every method may raise StoreError or AuthError besides what it lists."""

    @property
    def url(self) -> str:
        """Where this store is, without credentials (`file:///…`, `s3://bucket/prefix`, `memory://…`)."""
        ...

    def create(self, key: str, data: bytes) -> None:
        """Write `data` if and only if `key` does not exist, durably.

        Raises:
            AlreadyExists: the key is taken (perhaps by an earlier, unacknowledged try of ours).
            UnknownOutcome: the write may or may not have happened.
        """
        ...

    def put(self, key: str, data: bytes) -> None:
        """Write or replace; for heartbeats and attempt-scoped files only, never for truth. Raises UnknownOutcome."""
        ...

    def put_file(self, key: str, path: Path) -> ObjectInfo:
        """Write or replace `key` with the content of a local file (multipart where large)."""
        ...

    def get(self, key: str, *, limit: int = 1 << 31) -> bytes:
        """The whole object. Raises MissingObject; DataError when it is larger than `limit` bytes."""
        ...

    def stat(self, key: str) -> ObjectInfo:
        """Size and version tag. Raises MissingObject."""
        ...

    def read_range(self, key: str, start: int, out: memoryview, *, if_match: str = "") -> int:
        """Fill `out` with bytes from offset `start`; return how many arrived.

        Fewer than asked means a cut body (the caller resumes behind them) or the object's end; 0 means the end and nothing else.

        Raises:
            MissingObject: no such key.
            PreconditionFailed: `if_match` is given and the object's version tag differs.
        """
        ...

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """All objects whose key starts with `prefix`, in key order."""
        ...

    def delete(self, key: str) -> None:
        """Remove; missing keys are fine. For garbage only: abandoned attempts, spent checkpoints, requests that were read."""
        ...


@dataclass(frozen=True)
class HalfWritten:
    """A file that was begun and never became an object. `at`: when it was last written to, seconds since 1970."""

    name: str
    size: int
    at: float


@runtime_checkable
class LeavesHalves(Protocol):
    """A store in which a process that dies while it writes leaves something that `list` does not show.

    (S3 keeps the parts of an unfinished upload: a lifecycle rule of the bucket ends those, see docs/operations.md.)
    """

    def halves(self, prefix: str) -> Iterator[HalfWritten]:
        """Such files below `prefix`, a folder that ends in '/'."""
        ...

    def drop_half(self, half: HalfWritten) -> None:
        """Remove one; it may be gone already."""
        ...


@runtime_checkable
class PassesOver(Protocol):
    """A store whose folders may hold what `list` does not show, since no object of ours can be called so."""

    def passed_over(self, folder: str) -> Iterator[tuple[str, str]]:
        """(name, what it is, "" of a file) of those directly in `folder`, which ends in '/'."""
        ...


def too_large(key: str, size: int, limit: int) -> DataError:
    """The error of `get` for an object above its limit: what the store holds is never read without a bound."""
    return DataError(
        f"{key} has {size} bytes, more than the {limit} allowed here.", fix="Is this really the file that was meant?"
    )


class MemoryStore:
    """The same promises in one process's memory: for tests, and for `memory://name` runs that need not survive."""

    def __init__(self, name: str = "") -> None:
        self._name = name
        self._lock = threading.Lock()
        self._objects: dict[str, tuple[bytes, str]] = {}
        self._versions = count(1)

    @property
    def url(self) -> str:
        """`memory://name`."""
        return f"memory://{self._name}"

    def create(self, key: str, data: bytes) -> None:
        """Write if absent. Raises AlreadyExists."""
        check_key(key)
        with self._lock:
            if key in self._objects:
                raise AlreadyExists(f"{key} exists.")
            self._objects[key] = (bytes(data), str(next(self._versions)))

    def put(self, key: str, data: bytes) -> None:
        """Write or replace."""
        check_key(key)
        with self._lock:
            self._objects[key] = (bytes(data), str(next(self._versions)))

    def put_file(self, key: str, path: Path) -> ObjectInfo:
        """Write or replace from a file."""
        self.put(key, path.read_bytes())
        return self.stat(key)

    def get(self, key: str, *, limit: int = 1 << 31) -> bytes:
        """The whole object. Raises MissingObject; DataError above `limit`."""
        data, _ = self._find(key)
        if len(data) > limit:
            raise too_large(key, len(data), limit)
        return data

    def stat(self, key: str) -> ObjectInfo:
        """Size and version. Raises MissingObject."""
        data, etag = self._find(key)
        return ObjectInfo(key, len(data), etag)

    def read_range(self, key: str, start: int, out: memoryview, *, if_match: str = "") -> int:
        """Fill `out` from `start`. Raises MissingObject, PreconditionFailed."""
        data, etag = self._find(key)
        if if_match and etag != if_match:
            raise PreconditionFailed(f"{key} changed: version {etag}, expected {if_match}.")
        part = data[start : start + len(out)]
        out[: len(part)] = part
        return len(part)

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """Objects below `prefix` in key order."""
        with self._lock:
            found = [ObjectInfo(k, len(d), e) for k, (d, e) in self._objects.items() if k.startswith(prefix)]
        return iter(sorted(found, key=lambda info: info.key))

    def delete(self, key: str) -> None:
        """Remove; missing keys are fine."""
        with self._lock:
            self._objects.pop(key, None)

    def _find(self, key: str) -> tuple[bytes, str]:
        with self._lock:
            if key not in self._objects:
                raise MissingObject(f"There is no {key} in {self.url}.")
            return self._objects[key]

"""A store whose calls are noted in the process's pulse: a job that waits for a store in trouble is not one that stands still."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from atlas_dist.pulse import Doing, pulse
from atlas_dist.store.objects import ObjectInfo, ObjectStore


@dataclass(frozen=True)
class NotedStore:
    """`inner`, and every call of the job's own thread is a wait for the store."""

    inner: ObjectStore

    @property
    def url(self) -> str:
        """As the store's own."""
        return self.inner.url

    def create(self, key: str, data: bytes) -> None:
        """Write if absent. Raises as the store's own."""
        with pulse.waiting(Doing.STORE):
            self.inner.create(key, data)

    def put(self, key: str, data: bytes) -> None:
        """Write or replace. Raises as the store's own."""
        with pulse.waiting(Doing.STORE):
            self.inner.put(key, data)

    def put_file(self, key: str, path: Path) -> ObjectInfo:
        """Write or replace from a file. Raises as the store's own."""
        with pulse.waiting(Doing.STORE):
            return self.inner.put_file(key, path)

    def get(self, key: str, *, limit: int = 1 << 31) -> bytes:
        """The whole object. Raises as the store's own."""
        with pulse.waiting(Doing.STORE):
            return self.inner.get(key, limit=limit)

    def stat(self, key: str) -> ObjectInfo:
        """Size and version. Raises as the store's own."""
        with pulse.waiting(Doing.STORE):
            return self.inner.stat(key)

    def read_range(self, key: str, start: int, out: memoryview, *, if_match: str = "") -> int:
        """Fill `out`; how many bytes arrived. Raises as the store's own."""
        with pulse.waiting(Doing.STORE):
            return self.inner.read_range(key, start, out, if_match=if_match)

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """Objects below `prefix`. Raises as the store's own."""
        with pulse.waiting(Doing.STORE):
            return iter([*self.inner.list(prefix)])

    def delete(self, key: str) -> None:
        """Remove. Raises as the store's own."""
        with pulse.waiting(Doing.STORE):
            self.inner.delete(key)

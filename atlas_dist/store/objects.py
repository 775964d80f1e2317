"""The seam to durable storage: eight calls that the local folder, S3 and the in-memory store all keep.

The whole protocol of the ledger rests on two promises: `create` succeeds for exactly one caller per key, and a `get` or `list`
that starts after a `create` returned sees it (strong consistency; S3 has had it since 2020). Keys are '/'-separated safe names.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol


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
        """Fill `out` with bytes from offset `start`; return how many arrived (fewer only on a cut body: the caller resumes).

        Raises:
            MissingObject: no such key.
            PreconditionFailed: `if_match` is given and the object's version tag differs.
        """
        ...

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """All objects whose key starts with `prefix`, in key order."""
        ...

    def delete(self, key: str) -> None:
        """Remove; missing keys are fine. Only garbage collection of abandoned attempts calls it."""
        ...

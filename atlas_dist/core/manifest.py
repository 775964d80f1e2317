"""What a packed split consists of: its shards, counts, classes and checksums. Pure values; `data/manifest.py` reads and writes
them.

A manifest's digest names the *content*: shard names, sizes and SHA-256, the kind and the classes. It holds no URL, ETag or time,
so a copy of the data set in another bucket keeps its digest, and with it every job key and every position that depends on it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from atlas_dist.core.keys import digest_of
from atlas_dist.core.types import TaskKind

PART_BYTES = 8 << 20
"""Shards are fetched and checked in parts of this many bytes: small enough to resume cheaply, large enough to fill a pipe."""

NO_LABEL = -1
"""Stands in a label index for a sample without a class (a VQA question none of whose answers is in the list)."""


@dataclass(frozen=True)
class ShardInfo:
    """One tar of a split.

    Example: ShardInfo(name="000000.tar", size=2_682_880, samples=1024, sha256="9f…", crc32c=(3735928559,), labels=b"…")
    """

    name: str
    """File name, relative to the manifest's folder."""
    size: int
    """Bytes of the file."""
    samples: int
    sha256: str
    """Of the whole file, 64 hex characters."""
    crc32c: tuple[int, ...]
    """One CRC32C per part of `ShardManifest.part_bytes` (the last part may be shorter)."""
    labels: bytes = b""
    """Little-endian int32 class per sample, in tar order (-1 = none); empty when the data set has no classes to select by."""

    def label_array(self) -> NDArray[np.int32]:
        """`labels` as int32 [samples], or int32 [0] where there is no label index."""
        return np.frombuffer(self.labels, dtype="<i4")


@dataclass(frozen=True)
class ShardManifest:
    """One split of a packed data set. Sample ordinals count through the shards in the order listed here.

    Example: ShardManifest(dataset="cifar10", split="train", kind=TaskKind.SINGLE, images=1, classes=("airplane", …), shards=(…,))
    """

    dataset: str
    split: str
    kind: TaskKind
    images: int
    """Images stored a sample: 0 for text-only data, 2 for pairs."""
    classes: tuple[str, ...]
    """Class (or answer) names by label; for choices their letters: only the number K matters."""
    shards: tuple[ShardInfo, ...]
    part_bytes: int = PART_BYTES
    recipe: str = ""
    """Digest of how the split was packed (converter, options, sizes): lets a second `pack` see that it is done. Not content."""

    @cached_property
    def digest(self) -> str:
        """SHA-256 over the content only, 64 hex characters."""
        return digest_of(
            {
                "version": 1,
                "kind": self.kind,
                "images": self.images,
                "classes": self.classes,
                "shards": [(s.name, s.size, s.samples, s.sha256) for s in self.shards],
            }
        )

    @cached_property
    def samples(self) -> int:
        """Samples of the split."""
        return sum(s.samples for s in self.shards)

    @cached_property
    def size(self) -> int:
        """Bytes of all shards."""
        return sum(s.size for s in self.shards)

    @cached_property
    def counts(self) -> NDArray[np.int64]:
        """Samples per shard, int64 [shards]."""
        return np.fromiter((s.samples for s in self.shards), dtype=np.int64, count=len(self.shards))

    def labels(self) -> NDArray[np.int32] | None:
        """Class per sample, int32 [samples] in ordinal order; None when any shard has no label index."""
        if any(len(s.labels) != 4 * s.samples for s in self.shards):
            return None
        return np.frombuffer(b"".join(s.labels for s in self.shards), dtype="<i4")

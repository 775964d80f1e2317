"""Write one shard: samples in, a tar with its checksums out. Equal samples give equal bytes (no times, no owners)."""

from __future__ import annotations

import hashlib
import io
import tarfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from atlas_dist.core.manifest import ShardInfo
from atlas_dist.data.crc import crc32c


@dataclass(frozen=True)
class PackedSample:
    """A sample as it goes into a tar: its key, its members in order as (extension, content), and the class to index it by."""

    key: str
    members: tuple[tuple[str, bytes], ...]
    label: int


def write_shard(path: Path, name: str, samples: Iterable[PackedSample], part_bytes: int) -> ShardInfo:
    """Write `samples` as a ustar file at `path`; return what the manifest says about it."""
    labels: list[int] = []
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for sample in samples:
            labels.append(sample.label)
            for ext, content in sample.members:
                info = tarfile.TarInfo(f"{sample.key}.{ext}")
                info.size = len(content)
                info.mode = 0o644
                tar.addfile(info, io.BytesIO(content))
    return describe(path, name, len(labels), part_bytes, labels)


def describe(path: Path, name: str, samples: int, part_bytes: int, labels: Iterable[int]) -> ShardInfo:
    """Size and checksums of a finished shard, read once."""
    sha, crcs, size = hashlib.sha256(), [], 0
    with path.open("rb") as file:
        while part := file.read(part_bytes):
            sha.update(part)
            crcs.append(crc32c(part))
            size += len(part)
    index = np.fromiter(labels, dtype="<i4").tobytes()
    return ShardInfo(name, size, samples, sha.hexdigest(), tuple(crcs), index)

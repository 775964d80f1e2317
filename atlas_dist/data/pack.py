"""Raw data set -> WebDataset tars + manifest (API skeleton; filled in next)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from atlas_dist.core.manifest import ShardManifest
from atlas_dist.store.objects import ObjectStore


@dataclass(frozen=True)
class PackReport:
    """What a pack did: the manifest, the records left out as (id, reason), and how many shards an earlier, killed pack had done."""

    manifest: ShardManifest
    unreadable: tuple[tuple[str, str], ...]
    reused_shards: int


def run_pack(
    converter: str,
    source: Path | None,
    store: ObjectStore,
    dataset: str,
    split: str,
    *,
    options: Mapping[str, Any] | None = None,
    image_size: int = 0,
    shard_samples: int = 1024,
    seed: int = 0,
    workers: int = 2,
    max_unreadable: float = 0.01,
    overwrite: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> PackReport:
    """Pack one split of a raw data set (folder or .zip) into `<dataset>/<split>/`; `progress(shards done, shards in all)`."""
    raise NotImplementedError

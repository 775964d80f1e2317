"""Shards to batches: a `webdataset.DataPipeline` of stages, one process a rank (API skeleton; filled in next)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from atlas_dist.core.manifest import ShardManifest
from atlas_dist.core.types import TaskSpec
from atlas_dist.data.batch import RankBatch, StreamLimits, StreamStats
from atlas_dist.store.objects import ObjectStore


class Stream:
    """One rank's view of one split. See `open_stream`. A context manager; `close()` ends its threads."""

    steps_per_epoch: int

    def epochs_from(self, start_step: int, stop_step: int) -> Iterator[RankBatch]:
        """Batches of the absolute steps [start_step, stop_step), across epochs."""
        raise NotImplementedError

    def validation(self) -> Iterator[RankBatch]:
        """Every sample exactly once over all ranks, masked tail, the same number of batches on every rank."""
        raise NotImplementedError

    def stats(self) -> StreamStats:
        """What was read so far."""
        raise NotImplementedError

    def close(self) -> None:
        """End the stream's threads; safe to call twice."""

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_stream(
    store: ObjectStore,
    manifest: ShardManifest,
    task: TaskSpec,
    tokenizer: Any,
    image_size: int,
    *,
    seed: int,
    rank: int,
    world: int,
    global_batch: int,
    micro_batch: int = 0,
    start_step: int = 0,
    shuffle: bool = True,
    shots: float = 0.0,
    limits: StreamLimits | None = None,
) -> Stream:
    """Open one rank's stream of one split. `shots` as TaskSpec.shots. Raises DataError."""
    raise NotImplementedError

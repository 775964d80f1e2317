"""What planning costs: 1,000,000 samples in 10,000 shards, from a manifest in memory to the first step, and a step.

python -m tests.bench.bench_sampling        asked: under 100 ms to start, microseconds a step
"""

from __future__ import annotations

import statistics
import time

import numpy as np

from atlas_dist.core.manifest import ShardInfo, ShardManifest
from atlas_dist.core.sampling import sampler_for, select_shots
from atlas_dist.core.types import TaskKind

SHARDS, SAMPLES, BATCH, WORLD, RUNS = 10_000, 100, 1024, 8, 7


def main() -> None:
    labels = np.arange(SAMPLES, dtype="<i4").tobytes()
    shards = tuple(ShardInfo(f"{i:06d}.tar", 4 << 20, SAMPLES, "0" * 64, (0,), labels) for i in range(SHARDS))

    def start(shots: float = 0.0) -> float:
        manifest = ShardManifest("big", "train", TaskKind.SINGLE, 1, (), shards)  # nothing cached
        begin = time.perf_counter()
        chosen = select_shots(manifest.samples, manifest.labels() if shots >= 1 else None, shots, seed=0)
        sampler_for(manifest, seed=0, global_batch=BATCH, only=chosen).rank_at(0, 3, WORLD)
        return (time.perf_counter() - begin) * 1e3

    print(f"{SHARDS * SAMPLES:,} samples in {SHARDS:,} shards, global batch {BATCH}, rank 3 of {WORLD}, median of {RUNS}")
    print(f"start, all samples:        {statistics.median(start() for _ in range(RUNS)):8.1f} ms")
    print(f"start, 64 shots a class:   {statistics.median(start(64.0) for _ in range(RUNS)):8.1f} ms")
    print(f"start, 5 % of the samples: {statistics.median(start(0.05) for _ in range(RUNS)):8.1f} ms")

    manifest = ShardManifest("big", "train", TaskKind.SINGLE, 1, (), shards)
    sampler = sampler_for(manifest, seed=0, global_batch=BATCH)
    per_step = []
    for _ in range(RUNS):
        begin = time.perf_counter()
        for step in range(sampler.steps_per_epoch):
            sampler.rank_at(step, 3, WORLD)
        per_step.append((time.perf_counter() - begin) / sampler.steps_per_epoch * 1e6)
    blocks = sampler.blocks_per_epoch
    print(f"a step, all of an epoch:   {statistics.median(per_step):8.1f} us  ({sampler.steps_per_epoch} steps, {blocks} blocks)")
    begin = time.perf_counter()
    for _ in range(10_000):
        sampler.rank_at(0, 3, WORLD)
    print(f"a step within a block:     {(time.perf_counter() - begin) * 1e2:8.1f} us")


if __name__ == "__main__":
    main()

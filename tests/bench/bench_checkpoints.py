"""Step time with checkpoints that the step waits for, that are written in the background, and with none: a store that answers
after 30 ms and takes 50 MiB/s. `python -m tests.bench.bench_checkpoints --steps 40 --every 5`

The state is that of an adapter at ViLT-B (1.8 million parameters: value, two moments, best value: 29 MB) unless `--megabytes`
says otherwise; a step is a fixed amount of products on the CPU. Reads of the clock are printed, nothing is asserted.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Mapping
from functools import partial

import torch
from safetensors.torch import save

from atlas_dist.store.artifacts import save_checkpoint
from atlas_dist.store.objects import MemoryStore
from atlas_dist.train.background import BackgroundCheckpoints

DELAY_S, BYTES_PER_S = 0.030, 50 << 20


class FarStore(MemoryStore):
    """Each request takes 30 ms, and its bytes as long as they need."""

    def put(self, key: str, data: bytes) -> None:
        """Later."""
        time.sleep(DELAY_S + len(data) / BYTES_PER_S)
        super().put(key, data)

    def create(self, key: str, data: bytes) -> None:
        """Later."""
        time.sleep(DELAY_S + len(data) / BYTES_PER_S)
        super().create(key, data)


def packed(copies: Mapping[str, torch.Tensor]) -> Mapping[str, bytes]:
    """The files of a checkpoint."""
    return {"state.safetensors": save(dict(copies))}


def measured(steps: int, every: int, state: Mapping[str, torch.Tensor], way: str) -> list[float]:
    """Seconds of each step."""
    store = FarStore("far")

    def write(step: int, files: Mapping[str, bytes]) -> None:
        save_checkpoint(store, "runs/bench/attempts/a", step, files)

    background = BackgroundCheckpoints(write)
    weights = torch.randn(512, 512)
    seconds = []
    for step in range(1, steps + 1):
        began = time.perf_counter()
        for _ in range(8):
            weights = torch.tanh(weights @ weights)
        if way != "none" and step % every == 0:
            pack = partial(packed, {name: value.clone() for name, value in state.items()})
            if way == "background":
                background.put(step, pack)
            else:
                write(step, pack())
        seconds.append(time.perf_counter() - began)
    background.settle()
    background.close(60)
    return seconds


def main() -> None:
    """Measure the three ways, print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=float, default=29.0)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--every", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    state = {f"param/{i}": torch.randn(int(options.megabytes * 1e6 / 4 / 8)) for i in range(8)}
    found = {}
    for way in ("none", "waiting", "background"):
        seconds = measured(options.steps, options.every, state, way)
        with_one = [s for i, s in enumerate(seconds, 1) if i % options.every == 0]
        found[way] = {
            "median_ms": round(1e3 * statistics.median(seconds), 1),
            "median_ms_of_steps_with_a_checkpoint": round(1e3 * statistics.median(with_one), 1),
            "mean_ms": round(1e3 * statistics.fmean(seconds), 1),
        }
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()

"""Step time with checkpoints that the step waits for, that are written in the background, and with none: a store that answers
after 30 ms and takes 50 MiB/s. `python -m tests.bench.bench_checkpoints --steps 40 --every 5`

`--zero 0 1 2 3 --ranks 2` measures something else: how long a step is held up by the copy that a checkpoint takes, at each ZeRO
stage, on so many processes with gloo (with ZeRO 1 to 3 all ranks put the state together first).

The state is that of an adapter at ViLT-B (1.8 million parameters: value, two moments, best value: 29 MB) unless `--megabytes`
says otherwise; a step is a fixed amount of products on the CPU. Reads of the clock are printed, nothing is asserted.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import time
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from safetensors.torch import save
from torch import nn

from atlas_dist.core.types import Budget
from atlas_dist.store.artifacts import save_checkpoint
from atlas_dist.store.objects import MemoryStore
from atlas_dist.train.background import BackgroundCheckpoints
from atlas_dist.train.checkpoint import capture
from atlas_dist.train.engine import EngineSettings, build_engine, prepare_process
from atlas_dist.train.loop import LoopState

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


class AdaptersOfViltB(nn.Module):
    """Parameters of the shapes that an adapter of bottleneck 48 has at ViLT-B: two sites in each of 12 layers."""

    def __init__(self) -> None:
        super().__init__()
        shapes = [(48, 768), (48,), (768, 48), (768,), (768,), (768,)]
        self.adapters = nn.ParameterList(nn.Parameter(torch.randn(shape)) for _ in range(24) for shape in shapes)

    def forward(self) -> torch.Tensor:
        """Every parameter counts."""
        return torch.stack([adapter.square().sum() for adapter in self.adapters]).sum()


def hold_ups(rank: int, ranks: int, port: int, stages: list[int], repeats: int) -> None:
    """One rank: the median of the copies' times at each stage; rank 0 prints."""
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(ranks), "LOCAL_RANK": str(rank)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    prepare_process()
    torch.distributed.init_process_group("gloo")
    found = {}
    for stage in stages:
        module: Any = AdaptersOfViltB()
        names = [name for name, _ in module.named_parameters()]
        engine = build_engine(module, [{"params": list(module.parameters())}], EngineSettings(stage, 1, 1, Budget(), 100))
        engine.backward(engine() if stage == 3 else module())
        engine.step()
        seconds = []
        for _ in range(repeats):
            torch.distributed.barrier()
            began = time.perf_counter()
            capture(engine, module, names, LoopState(step=1), keeps=rank == 0)
            seconds.append(time.perf_counter() - began)
        found[f"ZeRO {stage}"] = {
            "median_ms": round(1e3 * statistics.median(seconds), 1),
            "least_ms": round(1e3 * min(seconds), 1),
        }
        engine.destroy()
    if rank == 0:
        print(
            json.dumps(
                {"ranks": ranks, "megabytes": 3 * sum(p.numel() for p in AdaptersOfViltB().parameters()) * 4 / 1e6, **found}
            )
        )


def main() -> None:
    """Measure the three ways, or the copies; print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=float, default=29.0)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--every", type=int, default=5)
    parser.add_argument("--zero", type=int, nargs="*", default=[], help="ZeRO stages whose copies are measured instead")
    parser.add_argument("--ranks", type=int, default=2)
    options = parser.parse_args()
    if options.zero:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        torch.multiprocessing.spawn(hold_ups, (options.ranks, port, options.zero, options.steps), nprocs=options.ranks)
        return
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

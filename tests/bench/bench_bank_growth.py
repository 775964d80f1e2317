"""Stage one of a new task while the bank grows from 20 to 1,000 adapters: what a step takes, what is read, how much memory.

    python -m tests.bench.bench_bank_growth [--sizes 20 100 1000] [--repeats 5] [--retrieve 4] [--steps 5]

The adapters of the bank are made, not trained: one adapter on the real (tiny) backbone stands for all, under keys of their own,
with random signatures; time and memory do not depend on what was learnt. The job runs as in a pool of one, through the worker's
own code, without Ray; batches of 8. Each size is a process of its own; medians of its repeats. `--retrieve 0` looks at the whole
bank, for comparison. Linux only (the peak of memory is reset through /proc).

- choice: seconds to read the signatures and choose the adapters; setup: from then to the first step.
- step: milliseconds of an optimizer step.
- read: MB from the store by what they are: adapters and signatures.
- memory: most MB of the process during these jobs.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import torch

from atlas_dist.core.attempts import CommittedRef
from atlas_dist.core.result_files import ADAPTER_FILE, SIGNATURES_FILE
from atlas_dist.core.results import TrainResult
from atlas_dist.core.types import StageJob
from atlas_dist.store import ObjectStore, artifacts
from atlas_dist.train.inputs import pack_tensors
from atlas_dist.train.look_back import look_back
from tests.kits.stage import Bench, pack_toys, toy_config

FILES = {"adapters": ADAPTER_FILE, "signatures": SIGNATURES_FILE}


class CountingStore:
    """A store that notes how many bytes of which file were read."""

    def __init__(self, store: ObjectStore) -> None:
        self._store, self.read = store, Counter[str]()

    def get(self, key: str, **options: Any) -> bytes:
        data = self._store.get(key, **options)
        self.read[key.rpartition("/")[2]] += len(data)
        return data

    def read_range(self, key: str, start: int, out: memoryview, **options: Any) -> int:
        count = self._store.read_range(key, start, out, **options)
        self.read[key.rpartition("/")[2]] += count
        return count

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)


def measure(size: int, retrieve: int, steps: int, repeats: int) -> dict[str, float]:
    """Stage one over a bank of `size` adapters, in this process; medians of so many times."""
    with tempfile.TemporaryDirectory() as folder:
        words = ["backbone=tiny", "method=atlas", f"method.settings.retrieve={retrieve}", "sequence.upstream=[toy_shape,toy_kin]"]
        words += ["sequence.downstream=[]", "train.budget.global_batch=8", f"train.stage1.max_steps={steps}"]
        words += ["train.stage1.validations=1", "train.stage2.max_steps=1"]
        config = toy_config(Path(folder), *words)
        pack_toys(config, samples=64)
        bench = Bench(config)
        job = bench.learn_until("2 toy_kin stage1")
        (adapter,) = (bench.done[key] for key in job.bank)
        keys = tuple(f"{number:032x}" for number in range(size))
        bank: dict[str, CommittedRef] = {key: replace(adapter, job=key) for key in keys}
        bank[keys[-1]] = with_signatures(bench, adapter, keys)
        job = replace(job, bank=keys, bank_from=keys[-1], parents=(*keys, job.signature_from))
        bench.done |= bank
        counting: Any = CountingStore(bench.context.store)
        bench.context.store = counting
        reset_peak()
        results = [TrainResult.of(bench.learn(job)) for _ in range(repeats)]
        read = {what: counting.read[name] for what, name in FILES.items()}
        return {
            "choice_s": median(choice_seconds(bench, job) for _ in range(repeats)),
            "setup_s": median(result.seconds.setup for result in results),
            "step_ms": 1000 * median(result.seconds.stepping / result.steps for result in results),
            **{f"{what}_mb": count / repeats / 1e6 for what, count in read.items()},
            "memory_mb": in_status("VmHWM") / 1024,
            "seen": len(results[0].sees),
        }


def choice_seconds(bench: Bench, job: StageJob) -> float:
    """Seconds of looking back over the bank."""
    inputs, began = bench.assignment(job).inputs, time.perf_counter()
    look_back(bench.context.store, bench.context.method_of(job), job, inputs)
    return time.perf_counter() - began


def reset_peak() -> None:
    """Forget the most memory that this process has had (Linux)."""
    Path("/proc/self/clear_refs").write_text("5")


def in_status(name: str) -> int:
    """A figure of /proc/self/status, in KB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def with_signatures(bench: Bench, adapter: CommittedRef, keys: Sequence[str]) -> CommittedRef:
    """The newest task's result: the adapter's files, and random signatures of the whole bank."""
    generator = torch.Generator().manual_seed(0)
    width = bench.context.backbone().width
    tensors = {f"{key}/mean": torch.randn(width, generator=generator) for key in keys}
    tensors |= {f"{key}/spread": torch.rand(width, generator=generator) + 0.5 for key in keys}
    store, prefix = bench.context.store, f"runs/t/attempts/{keys[-1]}-0"
    files = {blob.name: artifacts.load(store, adapter, blob.name) for blob in adapter.blobs}
    files[SIGNATURES_FILE] = pack_tensors(tensors)
    done = artifacts.publish(store, prefix, job=keys[-1], attempt=f"{keys[-1]}-0", files=files, metrics=adapter.metrics)
    return CommittedRef(keys[-1], done.attempt, prefix, done.blobs, done.metrics)


def main() -> None:
    """Print the table; with `--one`, measure once and print JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[20, 100, 1000])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--retrieve", type=int, default=4)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(measure(args.one, args.retrieve, args.steps, args.repeats)))
        return
    columns = (
        "adapters in the bank",
        "looked at",
        "choice, s",
        "setup, s",
        "step, ms",
        "adapters read, MB",
        "signatures read, MB",
    )
    print(f"| {' | '.join(columns)} | memory, MB |\n|{'---|' * (len(columns) + 1)}")
    for size in args.sizes:
        command = [sys.executable, "-m", "tests.bench.bench_bank_growth", "--one", str(size)]
        command += ["--retrieve", str(args.retrieve), "--steps", str(args.steps)]
        m = json.loads(_last_line([*command, "--repeats", str(args.repeats)]))
        print(
            f"| {size} | {m['seen']:.0f} | {m['choice_s']:.3f} | {m['setup_s']:.2f} | {m['step_ms']:.1f} "
            f"| {m['adapters_mb']:.2f} | {m['signatures_mb']:.2f} | {m['memory_mb']:.0f} |",
            flush=True,
        )


def _last_line(command: Sequence[str]) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1]


if __name__ == "__main__":
    main()

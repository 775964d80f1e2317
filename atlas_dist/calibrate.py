"""Which arithmetic pays on this machine: the matrix products of a training step, timed in float32 and in bfloat16.

`train.precision=auto` asks once, where a run begins; the answer is then part of the run (app/precision.py).
`python -m atlas_dist.calibrate` prints it: for a process that must not open the GPU itself.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass

from atlas_dist.config import Precision
from atlas_dist.device import HIDDEN, cpu_multiplies_bf16, device
from atlas_dist.errors import ConfigError

BUDGET_S = 0.5
MARGIN = 1.2
"""By what factor bfloat16 must be faster: where it gains less, float32 is the better bargain, and nodes of a kind agree."""
_ROWS, _WIDTH, _INNER = 1024, 256, 1024
"""Tokens of a batch, and the two widths of a transformer's block: between the smallest backbone and ViT-B."""


@dataclass(frozen=True)
class Speeds:
    """Seconds for the same products, forward and backward."""

    fp32: float
    bf16: float
    """Infinite where the device does not multiply in bfloat16."""

    @property
    def gain(self) -> float:
        """By what factor bfloat16 is faster."""
        return self.fp32 / self.bf16

    @property
    def choice(self) -> Precision:
        """What to train in."""
        return Precision.BF16 if self.gain >= MARGIN else Precision.FP32

    def __str__(self) -> str:
        return f"bf16 is {self.gain:.1f}x as fast as fp32" if self.bf16 < math.inf else "bf16 is not multiplied in hardware"


def measured(budget_s: float = BUDGET_S) -> Speeds:
    """Time the products on this process's device; half of the budget each, the fastest turn counts."""
    where = device()
    if where.type == "cpu" and cpu_multiplies_bf16() is False:
        return Speeds(fp32=1.0, bf16=math.inf)
    return Speeds(*(_seconds(where.type, precision, budget_s / 2) for precision in (Precision.FP32, Precision.BF16)))


def _seconds(where: str, precision: Precision, budget_s: float) -> float:
    import torch

    stored = torch.bfloat16 if precision is Precision.BF16 else torch.float32  # as frozen matrices are kept
    up, down = (torch.randn(shape, device=where).to(stored) for shape in ((_INNER, _WIDTH), (_WIDTH, _INNER)))
    tokens = torch.randn(_ROWS, _WIDTH, device=where, requires_grad=True)
    fastest, until = math.inf, time.perf_counter() + budget_s
    while fastest == math.inf or time.perf_counter() < until:
        began = time.perf_counter()
        with torch.autocast(where, torch.bfloat16, enabled=precision is Precision.BF16):
            hidden = torch.nn.functional.gelu(torch.nn.functional.linear(tokens, up))
            out = torch.nn.functional.linear(hidden, down)
        (gradient,) = torch.autograd.grad(out.float().sum(), tokens)
        gradient[0, 0].item()  # waits for a GPU
        fastest = min(fastest, time.perf_counter() - began)
    return fastest


def measured_here(*, on_gpu: bool) -> Speeds:
    """The same for workers of this machine. On a GPU in a process of its own, which lets go of the device again.

    Raises:
        ConfigError: that process failed.
    """
    if not on_gpu and device().type == "cpu":
        return measured()
    environment = os.environ | ({} if on_gpu else HIDDEN)
    command = [sys.executable, "-m", "atlas_dist.calibrate"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)  # noqa: S603 - our own words
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise ConfigError(
            f"train.precision=auto could not be measured here: {last[:300]}", fix="Set train.precision=fp32 or bf16."
        )
    return Speeds(**json.loads(done.stdout.splitlines()[-1]))


def agreed(speeds: Iterable[tuple[str, Speeds]]) -> Precision:
    """What every node of a cluster chooses.

    Args:
        speeds: (name of a node, what was measured there); at least one.

    Raises:
        ConfigError: they do not agree, with the names of those that choose either.
    """
    chosen: dict[Precision, list[str]] = {}
    for name, found in speeds:
        chosen.setdefault(found.choice, []).append(f"{name} ({found})")
    if len(chosen) > 1:
        told = "; ".join(f"{precision.value}: {', '.join(sorted(names))}" for precision, names in sorted(chosen.items()))
        raise ConfigError(
            f"train.precision=auto: the nodes choose differently. {told}.",
            fix="Set train.precision=fp32 or bf16 for all of them, or use nodes of one kind (cluster.pools, labels).",
        )
    return next(iter(chosen))


if __name__ == "__main__":
    print(json.dumps(asdict(measured())))

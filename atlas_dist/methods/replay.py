"""Which samples are remembered, and when they are rehearsed.

Chaudhry et al. 2019, "On Tiny Episodic Memories in Continual Learning" (arXiv 1902.10486): a reservoir of fixed size holds a
uniform choice of all samples seen so far (Vitter 1985, "Random Sampling with a Reservoir").

The reservoir is drawn by random keys instead of by a stream: every sample has a number that depends on the run's seed, its task
and itself alone, and the smallest ones of all samples seen are kept. That is uniform over their union, needs no random state,
and can be folded over tasks: the smallest of (what was kept, what is new) are the smallest of everything.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np
import torch
from torch import Tensor

from atlas_dist.core.sampling import Ordinals, random_keys
from atlas_dist.core.types import AuxiliaryTask
from atlas_dist.methods.base import StageContext

RESERVOIR = "reservoir/"


@dataclass(frozen=True)
class Reservoir:
    """A memory of `capacity` samples: `reservoir/<task>`, ascending ordinals in the task's training manifest, int64."""

    capacity: int
    every: int

    def __call__(self, stage_context: StageContext) -> dict[str, Tensor]:
        """Fold the task that was just learnt into the reservoir."""
        seen = {name.removeprefix(RESERVOIR): ordinals.numpy() for name, ordinals in stage_context.memory.items()}
        seen[stage_context.task] = stage_context.samples
        chosen = smallest(seen, self.capacity, stage_context.seed)
        return {RESERVOIR + task: torch.from_numpy(ordinals) for task, ordinals in chosen.items() if len(ordinals)}

    def steps(
        self, own: int, auxiliary_tasks: Mapping[str, tuple[AuxiliaryTask, int]], memory: Mapping[str, Tensor]
    ) -> dict[str, int]:
        """One step of rehearsal for every `every` of its own, shared by what the reservoir holds of each task."""
        held = {task: len(memory[RESERVOIR + task]) for task in auxiliary_tasks if RESERVOIR + task in memory}
        return shared(own // self.every, {task: count for task, count in held.items() if count})

    def samples(self, task: str, memory: Mapping[str, Tensor]) -> tuple[int, ...] | None:
        """What the reservoir holds of a task: possibly nothing."""
        return tuple(memory[RESERVOIR + task].tolist()) if RESERVOIR + task in memory else ()


@dataclass(frozen=True)
class Everything:
    """Every auxiliary task learns as long as it would by itself, from all of its samples."""

    def steps(
        self, own: int, auxiliary_tasks: Mapping[str, tuple[AuxiliaryTask, int]], memory: Mapping[str, Tensor]
    ) -> dict[str, int]:
        """Each auxiliary task's own length."""
        return {task: length for task, (_, length) in auxiliary_tasks.items()}

    def samples(self, task: str, memory: Mapping[str, Tensor]) -> tuple[int, ...] | None:
        """All."""
        return None


def smallest(seen: Mapping[str, Ordinals], capacity: int, seed: int) -> dict[str, Ordinals]:
    """A uniform choice of `capacity` among all samples seen (all of them when they are fewer), by task, ascending.

    Args:
        seen: task -> ordinals, int64. Leaving out samples that an earlier choice left out changes nothing.
    """
    names = sorted(seen)
    ordinals = np.concatenate([seen[name] for name in names])
    owners = np.repeat(np.arange(len(names)), [len(seen[name]) for name in names])
    keys = np.concatenate([random_keys(_seed(seed, name), seen[name].astype(np.uint64)) for name in names])
    kept = np.lexsort((ordinals, owners, keys))[:capacity]  # by key; equal keys of two tasks in a fixed order
    return {name: np.sort(ordinals[kept[owners[kept] == number]]) for number, name in enumerate(names)}


def shared(total: int, weights: Mapping[str, int]) -> dict[str, int]:
    """`total` cut into whole parts in proportion to `weights`, by largest remainder.

    >>> shared(10, {"a": 2, "b": 1})
    {'a': 7, 'b': 3}
    """
    whole = sum(weights.values())
    parts = {name: total * weight // whole for name, weight in weights.items()}
    left = total - sum(parts.values())
    for name in sorted(weights, key=lambda n: (-(total * weights[n] % whole), n))[:left]:
        parts[name] += 1
    return parts


def _seed(seed: int, task: str) -> int:
    return int.from_bytes(blake2b(f"reservoir\0{seed}\0{task}".encode(), digest_size=8).digest(), "little")

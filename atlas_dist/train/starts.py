"""Where stage one's coefficients start: what earlier tasks made of the same adapters (docs/method.md, Where coefficients start).

A task that was learnt on top of others reads them with the coefficients it found, and its own adapter with 1: its composite. The
adapter alone, without what it was trained on top of, is something else. So a new task may start from one of

    the mean         1/T of each of the T adapters that it sees
    nothing          0 of each: the backbone as it is
    a composite      one for each seen task: its coefficients of those adapters that both see, 1 of its own, 0 of the rest

whichever has the smallest loss once a head is fitted to it in closed form (model/ridge.py), on samples that the fit did not see.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from atlas_dist.core.attempts import CommittedRef
from atlas_dist.core.result_files import TASK_FILE
from atlas_dist.core.results import MEAN, NOTHING, SelectResult
from atlas_dist.core.types import StageJob
from atlas_dist.store.objects import ObjectStore
from atlas_dist.train.context import RankContext
from atlas_dist.train.head_start import loss_of_fit
from atlas_dist.train.inputs import coefficients_of, read_if_there
from atlas_dist.train.module import StageModule

Coefficients = Mapping[str, Tensor]
"""As a task's file has them: `coefficients/<site>/start` [T], `…/slope` [T, D]."""


def choose_start(
    context: RankContext, module: StageModule, job: StageJob, inputs: Mapping[str, CommittedRef], sees: Sequence[str]
) -> str:
    """Put the best start into the module's coefficients: the key of its task, or MEAN, or NOTHING. Call it on every rank, before
    an engine takes the parameters. Raises DataError as the streams do, and for a file that does not match its hash."""
    model = module.model
    mean = model.export_coefficients()
    starts = {MEAN: mean, NOTHING: {name: torch.zeros_like(value) for name, value in mean.items()}}
    starts |= composites(context.store, inputs, sees, mean)
    losses = {}
    for key, start in starts.items():
        model.load_coefficients(start)
        losses[key] = loss_of_fit(context, module, job)
    best = min(losses, key=losses.__getitem__)  # of equal ones the first
    model.load_coefficients(starts[best])
    return best


def composites(
    store: ObjectStore, inputs: Mapping[str, CommittedRef], sees: Sequence[str], like: Coefficients
) -> dict[str, dict[str, Tensor]]:
    """For each seen task, by its key, its composite in the place of `like`.

    Args:
        sees: keys of the T adapters in the model's order.
        like: the model's coefficients.

    Raises:
        DataError: a file does not match its hash.
    """
    found = {}
    for key in sees:
        learnt = coefficients_of(read_if_there(store, inputs[key], TASK_FILE))
        reads = tuple(other for other in SelectResult.of(inputs[key]).sees if other != key)
        found[key] = composite(like, learnt, reads, key, sees)
    return found


def composite(like: Coefficients, learnt: Coefficients, reads: Sequence[str], own: str, sees: Sequence[str]) -> dict[str, Tensor]:
    """One task's coefficients in the place of another's.

    Args:
        like: names and shapes, with a row for each of `sees`.
        learnt: the task's, with a row for each of `reads`.
        own: key of its own adapter, one of `sees`.
    """
    shared = [(sees.index(key), row) for row, key in enumerate(reads) if key in sees]
    out = {}
    for name, value in like.items():
        placed = torch.zeros_like(value)
        if name in learnt:
            for here, there in shared:
                placed[here] = learnt[name][there]
        if name.endswith("/start"):
            placed[sees.index(own)] = 1.0
        out[name] = placed
    return out

"""Whenever a stage is validated: the head between what was learnt and a fit to what it reads now (docs/method.md, The end of a
head)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from atlas_dist.core.types import Role, StageJob
from atlas_dist.model.heads import OBJECTIVES
from atlas_dist.model.ridge import Settled, settle
from atlas_dist.train.context import RankContext
from atlas_dist.train.engine import gathered
from atlas_dist.train.head_samples import together, training_samples, validation_samples
from atlas_dist.train.module import StageModule

REFIT = 1024
"""So many training samples at most, or 4 a class, and so many of validation: each validation of a stage reads them."""


def is_refitted(job: StageJob) -> bool:
    """Whether the job trains a head that is fitted again when it is validated."""
    return job.budget.head_refit and job.stage is not None and Role.HEAD in job.stage.trains and OBJECTIVES[job.task.kind].ridge


def settled_head(context: RankContext, module: StageModule, job: StageJob, learnt: tuple[Tensor, Tensor], most: int) -> Settled:
    """What `model.ridge.settle` finds for the last layer, on every rank; the module stays as it is.

    Args:
        learnt: the layer's weight and bias, on the CPU.
        most: samples of the training and of the validation split that it reads, each.

    Raises:
        DataError: as the streams do.
    """
    parts = training_samples(context, module, job, most)
    judged = validation_samples(context, module, job, most)
    shared: list[Settled | None] = [None]
    if context.is_rank_zero:
        shared = [settle(learnt, together(parts), together(judged), job.task.classes)]
    dist.broadcast_object_list(shared, src=0, group=context.control)
    [settled] = shared
    assert settled is not None
    return settled


@contextmanager
def refitted_head(context: RankContext, engine: Any, module: StageModule, job: StageJob) -> Iterator[float]:
    """Inside, the head's last layer is the one that `model.ridge.settle` finds; afterwards it is the one that trains. Gives the
    share of the fit in it. Call it on every rank.

    Judged are at most `REFIT` of the validation split. Raises DataError as the streams do.
    """
    layer = (module.model.head.last.weight, module.model.head.last.bias)
    with gathered(engine, layer):
        weight, bias = (part.detach().to("cpu", copy=True) for part in layer)
    settled = settled_head(context, module, job, (weight, bias), REFIT)
    _set(engine, layer, (settled.weight, settled.bias))
    try:
        yield settled.share
    finally:
        _set(engine, layer, (weight, bias))


def _set(engine: Any, layer: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    with torch.no_grad(), gathered(engine, layer, change=True):
        for parameter, value in zip(layer, values, strict=True):
            parameter.copy_(value)

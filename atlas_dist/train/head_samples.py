"""What the last layer of a head reads of a task's samples: what it is fitted to, before the first step and behind the last."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from atlas_dist.core.types import StageJob
from atlas_dist.pulse import pulse
from atlas_dist.train.context import RankContext
from atlas_dist.train.module import StageModule

SAMPLES, CHOOSING = 2048, 256
"""So many of the training samples at most, the first of the stage's first epoch; more for tasks of many classes: 4 a class. A fit
that only helps to choose does with fewer."""

Observed = tuple[list[int], Tensor, Tensor]
"""Ordinals of n samples, what their last layer reads [n, m], and their labels [n]; on the CPU."""


def training_samples(context: RankContext, module: StageModule, job: StageJob, most: int) -> list[Observed]:
    """The first of the stage's first epoch, at most so many, or 4 a class; every rank's share on rank 0, [] elsewhere."""
    with context.training_stream(job, 0) as stream:
        steps = min(stream.steps_per_epoch, math.ceil(max(most, 4 * job.task.classes) / job.budget.global_batch))
        return context.gather(_observed(context, module, stream.epochs_from(0, steps)))


def validation_samples(context: RankContext, module: StageModule, job: StageJob, most: int) -> list[Observed]:
    """A fixed choice of the validation split, at most so many; every rank's share on rank 0, [] elsewhere."""
    with context.validation_stream(job, samples=most) as stream:
        return context.gather(_observed(context, module, stream.validation()))


def _observed(context: RankContext, module: StageModule, batches: Any) -> Observed:
    """One pass of this rank over its share."""
    seen: list[Tensor] = []
    ordinals: list[int] = []
    features, labels = [], []

    def note(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        seen.append(inputs[0].float().cpu())

    handle = module.model.head.last.register_forward_pre_hook(note)
    module.eval()
    try:
        with torch.no_grad():
            for batch in batches:
                for part in context.feeder()(batch):
                    seen.clear()
                    module(part.inputs, part.target)
                    kept = part.index >= 0
                    ordinals += part.index[kept].tolist()
                    features.append(seen[0][kept])
                    labels.append(part.target.cpu()[kept])
            pulse.mark()
    finally:
        handle.remove()
        module.train()
    return ordinals, torch.cat(features), torch.cat(labels)


def together(parts: list[Observed]) -> tuple[Tensor, Tensor]:
    """Features and labels of all ranks' samples, in one order whoever saw them."""
    order = torch.tensor([ordinal for ordinals, _, _ in parts for ordinal in ordinals]).argsort(stable=True)
    features, labels = (torch.cat([part[place] for part in parts])[order] for place in (1, 2))  # type: ignore[misc]
    return features, labels

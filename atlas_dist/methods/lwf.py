"""Learning without forgetting: on the new task's samples, the old heads shall go on saying what they said before.

Li & Hoiem 2016, "Learning without Forgetting" (arXiv 1606.09282): the old heads' answers to the new samples are recorded with
the model as the task before left it, and distilled (Hinton et al. 2015, arXiv 1503.02531) while backbone, old heads and the new
head train.

Heads differ in kind here. Each old head reads the new samples' features as they come; one for two images sees a single picture
twice, one for a single image sees a pair's first. A head of several classes is held by its softened distribution, one with a
single output (choices share it) or with answers that do not exclude each other by softened probabilities, output by output.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from atlas_dist.core.types import TaskKind
from atlas_dist.methods.base import Regularizer, StageContext
from atlas_dist.model.heads import Head, HeadSpec


@dataclass(frozen=True)
class Distilled:
    """The distillation loss of each sample, averaged over the earlier tasks and over the sample's passes."""

    weight: float
    temperature: float

    def __call__(self, stage_context: StageContext) -> Regularizer:
        """The loss against what the model of the task before says."""

        def regularizer(batch: Mapping[str, Tensor], features: Tensor) -> Tensor:
            earlier, frozen = stage_context.before(batch)
            losses = []
            for task, (spec, head) in stage_context.heads.items():
                said = read(head, features)
                with torch.no_grad():
                    wanted = read(frozen[task], earlier)
                losses.append(distance(spec, said, wanted, self.temperature))
            samples = len(batch["input_ids"])
            return self.weight * torch.stack(losses).mean(dim=0).view(samples, -1).mean(dim=1)

        return regularizer


def read(head: Head, features: Tensor) -> Tensor:
    """Logits [b·K, C] of a head from features [b·K, I·D] that may belong to another number of images."""
    first = head[0]
    assert isinstance(first, torch.nn.Linear)
    width = first.in_features
    copies = -(-width // features.shape[1])
    logits: Tensor = head(features.repeat(1, copies)[:, :width])
    return logits.float() if logits.dtype in (torch.bfloat16, torch.float16) else logits


def distance(spec: HeadSpec, said: Tensor, wanted: Tensor, temperature: float) -> Tensor:
    """T² times the cross-entropy from softened targets `wanted` to `said`, both logits [n, C]; one number a row [n]."""
    said, wanted = said / temperature, wanted / temperature
    if spec.outputs == 1 or spec.kind is TaskKind.ANSWERS:
        loss = functional.binary_cross_entropy_with_logits(said, wanted.sigmoid(), reduction="none").mean(dim=1)
    else:
        loss = -(wanted.softmax(dim=1) * said.log_softmax(dim=1)).sum(dim=1)
    return temperature**2 * loss

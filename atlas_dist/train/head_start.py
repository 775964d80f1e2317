"""Before the first step of a stage: fit the last layer of a new head to the task's training samples (model/ridge.py)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch.nn.functional import cross_entropy

from atlas_dist.core.types import HeadStart, Role, StageJob
from atlas_dist.model.heads import OBJECTIVES
from atlas_dist.model.ridge import fit_ridge
from atlas_dist.train.augment import OFTEN
from atlas_dist.train.context import RankContext
from atlas_dist.train.head_samples import CHOOSING, SAMPLES, together, training_samples, validation_samples
from atlas_dist.train.module import StageModule

FAR = 0.5
"""Steps times peak rate from which on a new adapter changes what is read so much that a fitted head may be in the way
(docs/experience.md, Fourth round). Then `auto` lets the head learn along, unless the stage sees its samples `OFTEN`: an adapter
under a fitted, slow head is no worse for its task there, and better experience for later ones (Eighth round)."""


@dataclass(frozen=True)
class Length:
    """How long a stage trains."""

    steps: int
    """Optimizer steps."""
    passes: float
    """How often it sees each of the task's samples."""


def is_fitted(job: StageJob, length: Length) -> bool:
    """Whether the job trains a head that is to stay near its fit, by itself or by an earlier stage of the task."""
    if job.stage is None or Role.HEAD not in job.stage.trains or not OBJECTIVES[job.task.kind].ridge:
        return False
    if job.budget.head_start is not HeadStart.AUTO:
        return job.budget.head_start is HeadStart.RIDGE
    return not job.stage.grows or length.steps * job.budget.lr < FAR or length.passes >= OFTEN


def starts_by_ridge(job: StageJob, length: Length) -> bool:
    """Whether the job's head is new and is to be fitted: one that an earlier stage of the task has trained goes on."""
    return is_fitted(job, length) and not job.model_from


def fit_head(context: RankContext, module: StageModule, job: StageJob) -> None:
    """Put the fitted layer into the module's head; call it on every rank, before an engine takes the parameters.

    The samples are the same at any number of workers. Raises DataError as the stream does.
    """
    parts = training_samples(context, module, job, SAMPLES)
    fit = fit_ridge(*together(parts), job.task.classes) if context.is_rank_zero else None
    shared = [None if fit is None else (fit.weight, fit.bias)]
    dist.broadcast_object_list(shared, src=0, group=context.control)
    assert shared[0] is not None
    weight, bias = shared[0]
    with torch.no_grad():
        module.model.head.last.weight.copy_(weight)
        module.model.head.last.bias.copy_(bias)


def loss_of_fit(context: RankContext, module: StageModule, job: StageJob) -> float:
    """Mean cross-entropy of a fitted head on samples that the fit did not see, in nats: each of the training samples left out,
    and validation samples; on every rank, with the same result. The head stays as it is."""
    parts = training_samples(context, module, job, CHOOSING)
    judged = validation_samples(context, module, job, CHOOSING)
    found = [0.0]
    if context.is_rank_zero:
        features, labels = together(parts)
        fit = fit_ridge(features, labels, job.task.classes)
        others, wanted = together(judged)
        loss = float(cross_entropy(others @ fit.weight.t() + fit.bias, wanted.long()))
        found = [(len(labels) * fit.loss + len(wanted) * loss) / (len(labels) + len(wanted))]
    dist.broadcast_object_list(found, src=0, group=context.control)
    return found[0]

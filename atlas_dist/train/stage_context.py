"""A stage in progress, as a method's small objects see it (`methods.base.StageContext`)."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping

import torch
import torch.distributed as dist
from torch import Tensor

from atlas_dist.core.sampling import Ordinals
from atlas_dist.core.types import StageJob
from atlas_dist.data.stream import Stream
from atlas_dist.model.atlas import AdaptedModel
from atlas_dist.model.heads import Head, HeadSpec
from atlas_dist.train.feed import Feeder
from atlas_dist.train.module import StageModule


class TrainingStageContext:
    """What the stage's job, module and stream amount to. Make it before a checkpoint is restored: it copies the heads that the
    stage starts from.

    Args:
        earlier: the model as the task before left it, frozen; None where no regularizer asks for it. Closed by the caller.
    """

    def __init__(
        self,
        job: StageJob,
        module: StageModule,
        stream: Stream,
        feed: Feeder,
        memory: Mapping[str, Tensor],
        earlier: AdaptedModel | None,
    ) -> None:
        self._job, self._module, self._stream, self._feed = job, module, stream, feed
        self.memory = memory
        self._earlier = earlier
        self._frozen = {name: copy.deepcopy(head).requires_grad_(False) for name, (_, head) in self.heads.items()}

    @property
    def task(self) -> str:
        """Name of the task that is being learnt."""
        return self._job.task.name

    @property
    def seed(self) -> int:
        """Of the run."""
        return self._job.seed

    @property
    def samples(self) -> Ordinals:
        """Ordinals of the training samples, ascending, int64 [n]."""
        return self._stream.ordinals

    @property
    def backbone(self) -> dict[str, Tensor]:
        """The backbone's parameters that train, by name; live."""
        return {name: p for name, p in self._module.model.backbone.named_parameters() if p.requires_grad}

    @property
    def heads(self) -> dict[str, tuple[HeadSpec, Head]]:
        """The auxiliary tasks' heads, by task; live."""
        return {auxiliary.name: (auxiliary.spec, head) for auxiliary, head in self._module.named_auxiliary_heads()}

    def before(self, batch: Mapping[str, Tensor]) -> tuple[Tensor, Mapping[str, Head]]:
        """Features of a batch of this job's task from the model as the task before left it, and that model's heads."""
        assert self._earlier is not None, "only a method with a regularizer looks back"
        with torch.no_grad():
            return self._earlier.features(batch, self._earlier.head_spec), self._frozen

    def fisher(self, samples: int) -> dict[str, Tensor]:
        """Mean squared gradient of each training sample's loss, over the first batches of the stage with at least `samples`
        samples.

        Every rank calls it, every rank gets the whole, on the CPU. Nothing is dropped out and no gradient stays behind.
        """
        names, parameters = list(self.backbone), list(self.backbone.values())
        sums = [torch.zeros_like(p) for p in parameters]
        count = 0
        self._module.eval()
        for batch in self._stream.epochs_from(0, math.ceil(samples / self._job.budget.global_batch)):
            count += batch.valid
            for one in self._feed(batch, 1):
                if not bool(one.mask[0]):
                    continue
                losses = self._module(one.inputs, one.target)[0]
                gradients = torch.autograd.grad(losses.sum(), parameters, allow_unused=True)
                for total, gradient in zip(sums, gradients, strict=True):
                    if gradient is not None:
                        total += gradient.square()
        for total in sums:
            dist.all_reduce(total)
        return {name: (total / max(1, count)).cpu() for name, total in zip(names, sums, strict=True)}

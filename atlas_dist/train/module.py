"""What the engine wraps: a stage's model with its loss and score, and the heads of auxiliary tasks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from atlas_dist.model.atlas import AdaptedModel
from atlas_dist.model.heads import OBJECTIVES, Head, HeadSpec

if TYPE_CHECKING:
    from atlas_dist.methods.base import Regularizer
    from atlas_dist.train.answers import Judge


@dataclass(frozen=True)
class AuxiliaryHead:
    """Another task whose head the module holds."""

    name: str
    spec: HeadSpec


class StageModule(nn.Module):
    """What the engine wraps: the model together with its per-sample loss and score; the heads of other tasks where a method
    trains them along; what the method adds to the loss (`regularizer`, set before the first step).

    Matrix products run in bfloat16 when asked to, here inside the module so that DeepSpeed keeps its hands off the dtypes;
    parameters, optimizer state and the statistics of the mixing sites stay float32.

    Answers that are written are written (`judge`) when nothing trains; while something does, their score is whether each token is
    the likeliest behind the right ones before it.
    """

    def __init__(
        self,
        model: AdaptedModel,
        head: HeadSpec,
        *,
        bf16: bool,
        auxiliary_heads: Sequence[tuple[AuxiliaryHead, Head]] = (),
        judge: Judge | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.objective = OBJECTIVES[head.kind]
        self.bf16 = bf16
        self.judge = judge
        self.auxiliary_specs = tuple(task for task, _ in auxiliary_heads)
        self.auxiliary_heads = nn.ModuleList(head for _, head in auxiliary_heads)
        self.regularizer: Regularizer | None = None

    def named_auxiliary_heads(self) -> Iterator[tuple[AuxiliaryHead, Head]]:
        """The other tasks and their heads."""
        for task, head in zip(self.auxiliary_specs, self.auxiliary_heads, strict=True):
            assert isinstance(head, Head)
            yield task, head

    def forward(self, batch: Mapping[str, Tensor], target: Tensor, auxiliary: int | None = None) -> tuple[Tensor, ...]:
        """Per-sample loss [b], per-sample score [b], logits [b, C] (all float32 at least) and the penalty, a scalar; then, while
        training with a regularizer, what the regularizer gives. Of answers that were written: instead of logits what the judge
        says of them [b, 2M], and last their token F1 [b].

        `auxiliary`: whose samples these are; None = the job's own task.
        """
        objective = self.objective
        added: tuple[Tensor, ...] = ()
        with self._precision(target.device.type):
            if auxiliary is not None:
                task, head = self.auxiliary_specs[auxiliary], self.auxiliary_heads[auxiliary]
                objective = OBJECTIVES[task.spec.kind]
                logits = head(self.model.features(batch, task.spec)).view(len(target), -1)
                penalty = self.model.penalty(like=logits)
            elif self.regularizer is not None and self.training:
                features = self.model.features(batch, self.model.head_spec)
                logits = self.model.head(features).view(len(target), -1)
                penalty = self.model.penalty(like=logits)
                added = (self.regularizer(batch, features),)
            else:
                logits, penalty = self.model(batch)
            judged = self.judge(self.model, batch, target) if self.judge is not None and not self.training else None
        logits = logits if logits.dtype is torch.float64 else logits.float()
        if judged is not None:
            return objective.loss(logits, target), judged.score, judged.answers, penalty, judged.f1
        return objective.loss(logits, target), objective.score(logits, target), logits, penalty, *added

    def look(self, batch: Mapping[str, Tensor]) -> None:
        """A pass up to what the head makes of it, for those who listen; right answers are not shown."""
        with self._precision(batch["input_ids"].device.type):
            self.model.head(self.model.features(batch, self.model.head_spec))

    def _precision(self, device: str) -> AbstractContextManager[Any]:
        return torch.autocast(device, dtype=torch.bfloat16) if self.bf16 else nullcontext()

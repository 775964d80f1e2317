"""Task heads, losses and scores: one small row of data a task kind, never `if task ==`.

Everything is per sample, [B], and reduced by an explicit mask: masked tail slots and unequal batches then average exactly over
samples (docs/method.md, Faults of the released code: batch means over-weight the last batch).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import skip_init

from atlas_dist.core.types import NO_TOKEN, TaskKind
from atlas_dist.errors import ConfigError

HEAD_LAYER_NORM_EPS = 1e-5


@dataclass(frozen=True)
class HeadSpec:
    """What a task asks of its head.

    `classes` is C for `single`, `pair` and `answers`, the number K of choices for `choice`, and 0 for `generate` (as in
    `core.types.TaskSpec`).
    """

    kind: TaskKind
    classes: int

    def __post_init__(self) -> None:
        if self.classes < 1 and not self.kind.generates:
            raise ConfigError(f"a head needs at least 1 class, got {self.classes}.", fix="Set the task's `classes`.")

    @property
    def images(self) -> int:
        """Images a sample, hence pooled outputs that are concatenated: the head reads d = images x D."""
        return 2 if self.kind is TaskKind.PAIR else 1

    @property
    def texts(self) -> int:
        """Texts a sample: K for `choice`, otherwise 1."""
        return self.classes if self.kind is TaskKind.CHOICE else 1

    @property
    def outputs(self) -> int:
        """Width of the last Linear: the choices share one scalar head, answers that are written have no head (0), every other
        kind has one output a class."""
        return 1 if self.kind is TaskKind.CHOICE else self.classes


class Head(nn.Sequential):
    """Linear(d -> 2d), LayerNorm, GELU, Linear(2d -> C) on the pooled output (docs/method.md, Tasks).

    Parameter names are `0.weight`, `0.bias`, `1.weight`, `1.bias`, `3.weight`, `3.bias`, as in the released classifiers. Without
    outputs it has no layers: what it reads comes out again.

    Args:
        width: d, the width of what the head reads.
        outputs: C.
        generator: source of the initial values, uniform within ±1/sqrt(inputs) as in `nn.Linear`; LayerNorm is the identity.
    """

    def __init__(self, width: int, outputs: int, generator: torch.Generator) -> None:
        if not outputs:
            super().__init__()
            return
        # Without nn.Linear's own initial values: they would draw from the global generator.
        first: nn.Linear = skip_init(nn.Linear, width, 2 * width)  # type: ignore[no-untyped-call]
        last: nn.Linear = skip_init(nn.Linear, 2 * width, outputs)  # type: ignore[no-untyped-call]
        super().__init__(first, nn.LayerNorm(2 * width, eps=HEAD_LAYER_NORM_EPS), nn.GELU(), last)
        with torch.no_grad():
            for layer in (first, last):
                bound = layer.in_features**-0.5
                layer.weight.uniform_(-bound, bound, generator=generator)
                layer.bias.uniform_(-bound, bound, generator=generator)

    @property
    def last(self) -> nn.Linear:
        """The layer that gives the logits, Linear(2d -> C)."""
        layer = self[3]
        assert isinstance(layer, nn.Linear)
        return layer


def cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy of each sample, [B], from logits [B, C] and class indices [B]; in float32 at least."""
    return F.cross_entropy(_at_least_float32(logits), target.long(), reduction="none")


def soft_answers(logits: Tensor, target: Tensor) -> Tensor:
    """Mean binary cross-entropy x number of answers, of each sample [B], from logits and soft targets [B, C] (VQAv2's loss)."""
    logits = _at_least_float32(logits)
    return F.binary_cross_entropy_with_logits(logits, target.to(logits.dtype), reduction="none").sum(dim=-1)


def accuracy(logits: Tensor, target: Tensor) -> Tensor:
    """1.0 where the arg-max class is the target, else 0.0; [B] from [B, C] and [B]."""
    return (logits.argmax(dim=-1) == target).to(torch.float32)


def answer_score(logits: Tensor, target: Tensor) -> Tensor:
    """Soft target of the arg-max answer, [B] from [B, C] and [B, C] (VQAv2's score)."""
    return target.gather(-1, logits.argmax(dim=-1, keepdim=True)).squeeze(-1).to(torch.float32)


def answer_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Mean cross-entropy of each answer's tokens, [B], from logits [B, M, V] and tokens [B, M] (`NO_TOKEN` behind their ends)."""
    losses = F.cross_entropy(_at_least_float32(logits).transpose(1, 2), target, ignore_index=NO_TOKEN, reduction="none")
    return losses.sum(dim=1) / (target != NO_TOKEN).sum(dim=1).clamp(min=1)


def all_tokens_right(logits: Tensor, target: Tensor) -> Tensor:
    """1.0 where every token of the answer is the likeliest behind the right ones before it, which is where greedy decoding writes
    just that answer; [B] from [B, M, V] and [B, M]."""
    return ((logits.argmax(dim=-1) == target) | (target == NO_TOKEN)).all(dim=1).to(torch.float32)


@dataclass(frozen=True)
class Objective:
    """How a task kind turns logits [B, C] and a target into a per-sample loss [B] and a per-sample score [B] in [0, 1]; of
    `generate`, logits [B, M, V]."""

    loss: Callable[[Tensor, Tensor], Tensor]
    score: Callable[[Tensor, Tensor], Tensor]
    ridge: bool = False
    """The last layer can start from a regression onto the classes (model/ridge.py): one class a sample, one output a class."""


_CLASSIFY = Objective(loss=cross_entropy, score=accuracy)
OBJECTIVES: dict[TaskKind, Objective] = {
    TaskKind.SINGLE: replace(_CLASSIFY, ridge=True),
    TaskKind.CHOICE: _CLASSIFY,
    TaskKind.PAIR: replace(_CLASSIFY, ridge=True),
    TaskKind.ANSWERS: Objective(loss=soft_answers, score=answer_score),
    TaskKind.GENERATE: Objective(loss=answer_loss, score=all_tokens_right),
}
"""Targets: class indices [B] (int64) for `single`, `choice`, `pair`; soft scores [B, C] for `answers`; tokens [B, M] (int64) for
`generate`."""


def _at_least_float32(logits: Tensor) -> Tensor:
    return logits.float() if logits.dtype in (torch.bfloat16, torch.float16) else logits

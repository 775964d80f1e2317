"""How many directions a task's features use: the effective rank of what its head reads.

Von Neumann entropy S of the Gram matrix of the samples' features, normalised to trace 1; effective rank = exp(S) (Roy &
Vetterli 2007, "The effective rank"). Features have unit length, so that each sample weighs the same. n samples along one
direction have rank 1, along n orthogonal ones rank n.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional

from atlas_dist.model.atlas import AdaptedModel


class EffectiveRankMeter:
    """Collects the second moment of the features, [D, D], batch by batch: its eigenvalues are those of the samples' Gram
    matrix."""

    def __init__(self) -> None:
        self._moment: Tensor | None = None
        self._last: Tensor | None = None

    @contextmanager
    def attached(self, model: AdaptedModel) -> Iterator[None]:
        """Watch what the model's head reads."""

        def see(_: torch.nn.Module, inputs: tuple[Any, ...]) -> None:
            self._last = inputs[0].detach()

        handle = model.head.register_forward_pre_hook(see)
        try:
            yield
        finally:
            handle.remove()

    def observe(self, index: Tensor, _logits: Tensor) -> None:
        """Take the batch that was just computed; masked slots (index -1) do not count, and a sample's passes each do."""
        assert self._last is not None, "observe comes after a forward pass"
        rows = functional.normalize(self._last.double(), dim=1).view(len(index), -1, self._last.shape[1])
        rows = rows[(index >= 0).to(rows.device)].flatten(0, 1)
        moment = rows.t() @ rows
        self._moment = moment if self._moment is None else self._moment + moment

    def effective_rank(self) -> float:
        """Over all ranks. Every rank calls it and has seen at least one batch."""
        assert self._moment is not None, "nothing was seen"
        dist.all_reduce(self._moment)
        return effective_rank(self._moment)


def effective_rank(moment: Tensor) -> float:
    """exp of the von Neumann entropy of a symmetric, positive semi-definite matrix, normalised to trace 1; 0 for a zero matrix.

    >>> round(effective_rank(torch.diag(torch.tensor([2.0, 2.0, 0.0]))), 6)
    2.0
    """
    trace = moment.diagonal().sum()
    if not float(trace) > 0:
        return 0.0
    values = torch.linalg.eigvalsh(moment / trace).clamp(min=0)
    return float(torch.special.entr(values).sum().exp())

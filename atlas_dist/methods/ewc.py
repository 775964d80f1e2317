"""Elastic weight consolidation: weights that mattered to earlier tasks are held near where those tasks left them.

Kirkpatrick et al. 2017, "Overcoming catastrophic forgetting in neural networks" (arXiv 1612.00796), equation 3:

    loss += λ/2 Σ_k Σ_n F_k,n (θ_n - θ_k,n)²

F_k is the diagonal of task k's Fisher information at θ_k, estimated from squared gradients at the true labels. The sum over
tasks k is kept as one quadratic with the same gradient: F = Σ_k F_k around the mean of the θ_k weighted by F_k. So the memory
stays as large as two backbones however many tasks there were.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from atlas_dist.methods.base import Regularizer, StageContext

IMPORTANCE, ANCHOR = "importance/", "anchor/"


@dataclass(frozen=True)
class FisherMemory:
    """What a task leaves: `importance/<name>` F and `anchor/<name>`, the centre, of every backbone parameter that trains."""

    samples: int

    def __call__(self, stage_context: StageContext) -> dict[str, Tensor]:
        """Fold this task's Fisher information into the memory it was given."""
        found: dict[str, Tensor] = {}
        for name, fisher in stage_context.fisher(self.samples).items():
            value = stage_context.backbone[name].detach().cpu()
            before = stage_context.memory.get(IMPORTANCE + name, torch.zeros_like(fisher))
            centre = stage_context.memory.get(ANCHOR + name, value)
            total = before + fisher
            # Where nothing matters any value will do; the newest keeps the arithmetic finite.
            share = torch.where(total > 0, fisher / total.clamp(min=torch.finfo(total.dtype).tiny), torch.ones_like(total))
            found[IMPORTANCE + name] = total
            found[ANCHOR + name] = centre + share * (value - centre)
        return found


@dataclass(frozen=True)
class PullBack:
    """The penalty λ/2 Σ F (θ - θ*)² of a stage whose earlier tasks left a memory; `weight` is λ."""

    weight: float

    def __call__(self, stage_context: StageContext) -> Regularizer:
        """The penalty over the backbone's parameters that train."""
        backbone = stage_context.backbone
        device = next(iter(backbone.values())).device
        held = {
            n: (stage_context.memory[IMPORTANCE + n].to(device), stage_context.memory[ANCHOR + n].to(device)) for n in backbone
        }
        return lambda _batch, _features: self.weight * penalty(backbone, held)


def penalty(values: Mapping[str, Tensor], held: Mapping[str, tuple[Tensor, Tensor]]) -> Tensor:
    """½ Σ F (θ - θ*)² over all names: `values` θ, `held` (F, θ*); a scalar.

    >>> penalty({"w": torch.tensor([1.0, 2.0])}, {"w": (torch.tensor([4.0, 1.0]), torch.tensor([0.0, 5.0]))})
    tensor(6.5000)
    """
    parts = [(importance * (values[name] - anchor).square()).sum() for name, (importance, anchor) in held.items()]
    return 0.5 * torch.stack(parts).sum()

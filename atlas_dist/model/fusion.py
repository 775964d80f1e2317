"""AdapterFusion at one place of the backbone: attention, token by token, over the outputs of several frozen adapters.

Pfeiffer et al. 2021, "AdapterFusion: Non-Destructive Task Composition for Transfer Learning" (arXiv 2005.00247), section 3.2:

    s_i = (x Q) · (y_i K),   p = softmax over adapters of s,   output = Σ_i p_i (y_i W)

with x the site's input and y_i adapter i's output, its residual inside (docs/method.md, One site). Q and K are Linear(D, D); W is
a matrix that starts as the identity, so that before training the output is an average of what the adapters say.

With a growing adapter the site *imitates* (I2I, Srinivasan et al. 2023, arXiv 2304.02168): the backbone goes on with the fused
output, and the new adapter is asked to give the same from the same input. Its error is the site's penalty.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from atlas_dist.model.mixing import AdapterGroup, SiteOutput
from atlas_dist.model.mixing_spec import INIT_STD, MixingSpec


class Fusion(nn.Module):
    """Q, K and W of one site, for hidden width D. Values are drawn from `generator`."""

    def __init__(self, hidden: int, generator: torch.Generator) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.empty(hidden, hidden).normal_(0.0, INIT_STD, generator=generator))
        self.query_bias = nn.Parameter(torch.zeros(hidden))
        self.key = nn.Parameter(torch.empty(hidden, hidden).normal_(0.0, INIT_STD, generator=generator))
        self.key_bias = nn.Parameter(torch.zeros(hidden))
        self.value = nn.Parameter(torch.eye(hidden))

    def forward(self, x: Tensor, outputs: Tensor) -> tuple[Tensor, Tensor]:
        """x [B, L, D] and the adapters' outputs [T, B, L, D] -> the fused output [B, L, D] and p [T, B, L]."""
        query = functional.linear(x, self.query, self.query_bias)
        keys = functional.linear(outputs, self.key, self.key_bias)
        weights = (query * keys).sum(dim=-1, dtype=torch.promote_types(x.dtype, torch.float32)).softmax(dim=0)
        mixed = (weights[..., None].to(outputs.dtype) * outputs).sum(dim=0)
        return functional.linear(mixed, self.value), weights  # Σ p_i (y_i W) = (Σ p_i y_i) W


class FusionSite(nn.Module):
    """One site with `visible` >= 1 frozen adapters, their fusion and, where a stage distils, a new adapter that imitates it.

    Its parts are named as those of a `MixingSite` (`frozen`, `grown`), so that artifacts fit either.
    """

    def __init__(
        self, hidden: int, heads: int, spec: MixingSpec, *, visible: int, grows: bool, generator: torch.Generator
    ) -> None:
        super().__init__()
        self.frozen = AdapterGroup(visible, hidden, heads, spec, None)
        self.fusion = Fusion(hidden, generator)
        self.grown = AdapterGroup(1, hidden, heads, spec, generator) if grows else None

    def forward(self, x: Tensor) -> SiteOutput:
        """x [B, L, D] -> SiteOutput; `alpha` [B, T] is p averaged over tokens, `penalty` the imitation's mean squared error."""
        mixed, weights = self.fusion(x, adapter_outputs(self.frozen, x))
        penalty = weights.new_zeros(())
        if self.grown is not None:
            own = self.grown(x.detach()).mixed
            penalty = (own - mixed.detach()).to(weights.dtype).square().mean()
        return SiteOutput(mixed, weights.mean(dim=2).t(), penalty)


def adapter_outputs(group: AdapterGroup, x: Tensor) -> Tensor:
    """y_i = x + U_i silu(V_i x + b_i) + c_i of every adapter of a group: [T, B, L, D] from [B, L, D]."""
    hidden = functional.silu(torch.einsum("bld,trd->tblr", x, group.down) + group.down_bias[:, None, None])
    return x + torch.einsum("tblr,tdr->tbld", hidden, group.up) + group.up_bias[:, None, None]

"""A site of ATLAS's default form: earlier adapters weighed per sample on top of an unscaled stream, and one adapter of the task's
own (docs/method.md, One site).

    out = x + Σ_i α_i Δ_i(x) + Δ_own(x)
    α_i = a_i + w_i · z_i / sqrt(D),   z_i = clamp((mean over tokens of x - μ_i) / σ_i, -3, 3)

μ_i and σ_i, [D] each, are adapter i's key: mean and spread of what its own task's training samples look like at this site of the
frozen backbone. a_i and w_i are the task's: a_i starts at 1/T, or where train/starts.py finds better, and w_i at zero. α = 0 says
that adapter i does not help. The stream x keeps its scale whatever the coefficients are, so a site with no adapter, or with none
that helps, is the identity.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from atlas_dist.model.mixing import SiteOutput
from atlas_dist.model.mixing_spec import INIT_STD, MixingSpec
from atlas_dist.model.residual_op import ResidualStack, add_residuals

CLAMP = 3.0
"""A feature further than this many spreads from the key's mean counts as that far."""


class ResidualGroup(nn.Module):
    """n >= 1 adapters of one site, stacked: `down` [n, r, D], `down_bias` [n, r], `up` [n, D, r], `up_bias` [n, D]; and, where
    they are weighed, `key` [n, 2, D]: mean and spread of their own data.

    Args:
        count: n.
        hidden: D.
        spec: see MixingSpec; `zero_up` decides how U starts.
        generator: source of the initial values; None leaves everything NaN until it is loaded.
        keyed: the adapters have keys.
    """

    key: Tensor | None

    def __init__(
        self, count: int, hidden: int, spec: MixingSpec, generator: torch.Generator | None, *, keyed: bool = False
    ) -> None:
        super().__init__()
        std = None if generator is None else spec.init_std
        self.down = nn.Parameter(_drawn((count, spec.rank, hidden), std, generator))
        self.down_bias = nn.Parameter(torch.zeros(count, spec.rank))
        up_std = 0.0 if spec.zero_up else INIT_STD
        self.up = nn.Parameter(_drawn((count, hidden, spec.rank), None if generator is None else up_std, generator))
        self.up_bias = nn.Parameter(torch.zeros(count, hidden))
        self.query = None
        self.register_buffer("key", torch.full((count, 2, hidden), torch.nan) if keyed else None)

    @property
    def count(self) -> int:
        """n"""
        return len(self.up_bias)

    def forward(self, x: Tensor, alpha: Tensor | None = None, onto: Tensor | None = None) -> Tensor:
        """`add_residuals` of this group."""
        return add_residuals(x, ResidualStack(self.down, self.down_bias, self.up, self.up_bias), alpha, onto)


class Coefficients(nn.Module):
    """What gives α of T adapters: `start` a [T], `slope` w [T, D] (absent where α is the same for every sample).

    Args:
        per_sample: whether α depends on the sample.
    """

    slope: nn.Parameter | None

    def __init__(self, count: int, hidden: int, *, per_sample: bool) -> None:
        super().__init__()
        self.start = nn.Parameter(torch.full((count,), 1.0 / count))
        self.register_parameter("slope", nn.Parameter(torch.zeros(count, hidden)) if per_sample else None)

    def forward(self, x: Tensor, key: Tensor) -> Tensor:
        """α [B, T] of x [B, L, D], float32 at least; `key` [T, 2, D]."""
        start = self.start.to(torch.promote_types(x.dtype, torch.float32))
        if self.slope is None:
            return start.expand(len(x), -1)
        with torch.autocast(x.device.type, enabled=False):
            seen = x.mean(dim=1, dtype=start.dtype)
            mean, spread = key.to(start.dtype).unbind(dim=1)
            # As clamp, but with a backward of one operator instead of five.
            standard = functional.hardtanh((seen[:, None] - mean) / spread, -CLAMP, CLAMP)
            return start + torch.einsum("btd,td->bt", standard, self.slope.to(start.dtype)) / math.sqrt(x.shape[-1])


class ExperienceSite(nn.Module):
    """One site with `visible` frozen adapters and, where a stage grows one, the task's own. Identity without any.

    Its parts are named as those of a `MixingSite` (`frozen`, `grown`), so that artifacts fit either.

    Args:
        hidden: D.
        spec: see MixingSpec.
        visible: how many frozen adapters (0 allowed).
        grows: add one new adapter.
        generator: initial values of the new adapter; the frozen ones stay NaN until loaded.
    """

    def __init__(
        self, hidden: int, _heads: int, spec: MixingSpec, *, visible: int, grows: bool, generator: torch.Generator
    ) -> None:
        super().__init__()
        self.frozen = ResidualGroup(visible, hidden, spec, None, keyed=True) if visible else None
        self.coefficients = Coefficients(visible, hidden, per_sample=spec.per_sample) if visible else None
        self.grown = ResidualGroup(1, hidden, spec, generator) if grows else None

    def forward(self, x: Tensor) -> SiteOutput:
        """x [B, L, D] -> SiteOutput; the own adapter's coefficient is 1, there is no penalty."""
        alpha = x.new_zeros(len(x), 0, dtype=torch.promote_types(x.dtype, torch.float32))
        mixed = x
        if self.frozen is not None and self.coefficients is not None:
            assert self.frozen.key is not None
            alpha = self.coefficients(x, self.frozen.key)
            mixed = self.frozen(x, alpha)
        if self.grown is not None:
            mixed = self.grown(x, onto=mixed)
            alpha = torch.cat([alpha, alpha.new_ones(len(x), 1)], dim=1)
        return SiteOutput(mixed, alpha, None)


def _drawn(shape: tuple[int, ...], std: float | None, generator: torch.Generator | None) -> Tensor:
    """N(0, std²); zeros for a std of 0; NaN without one, so that a forgotten load shows at once."""
    if std is None:
        return torch.full(shape, torch.nan)
    return torch.empty(shape).normal_(0.0, std, generator=generator) if std else torch.zeros(shape)

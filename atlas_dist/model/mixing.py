"""Mixing sites: the stacked adapters of one place in the backbone, and how their outputs become one (docs/method.md, One site).

A site holds up to two groups of adapters. `frozen` are the earlier adapters of the bank that the job sees; in stage one
their queries train. `grown` is the new adapter of stage two. Adapters never interact, so the groups are two calls whose outputs
add, and each group's gradients are its own. The arithmetic is in `mixing_op.mix`; here are the parameters, their initial
values, the choices, and the orthogonality penalty.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from atlas_dist.errors import ConfigError
from atlas_dist.model.mixing_call import Stack
from atlas_dist.model.mixing_op import mix
from atlas_dist.model.mixing_spec import INIT_STD, MixingSpec


class GroupOutput(NamedTuple):
    """`mixed` [B, L, D]; `alpha` [B, n] or [B, n, D], without gradient; `query`, `key`: copies of the rows for the penalty."""

    mixed: Tensor
    alpha: Tensor
    query: Tensor | None
    key: Tensor | None


class AdapterGroup(nn.Module):
    """n >= 1 adapters of one site, stacked.

    Parameters: `down` [n, r, D], `down_bias` [n, r], `up` [n, D, r], `up_bias` [n, D]; and, unless plain, `query` and `key`
    [n, D] (`whole`) or [n, N, D] (`dimension`).

    Args:
        count: n.
        hidden: D.
        heads: of the attention that forms α; divides D.
        spec: see MixingSpec.
        generator: source of the initial values. None leaves the projections NaN, for groups that are about to be loaded: a
            forgotten load then shows at once, and filling 10⁸ numbers from a generator is saved.
    """

    def __init__(self, count: int, hidden: int, heads: int, spec: MixingSpec, generator: torch.Generator | None) -> None:
        super().__init__()
        if hidden % heads:
            raise ConfigError(f"hidden width {hidden} is not a multiple of the {heads} attention heads.")
        self.rule = spec.rule(heads)
        rank, rows = spec.rank, spec.query_shape(hidden)
        self.down = _normal((count, rank, hidden), spec.init_std, generator)
        self.down_bias = nn.Parameter(torch.zeros(count, rank))
        self.up = _normal((count, hidden, rank), 0.0 if spec.zero_up else INIT_STD, generator)
        self.up_bias = nn.Parameter(torch.zeros(count, hidden))
        self.query = _normal((count, *rows), 1.0, generator) if rows else None
        self.key = _normal((count, *rows), 1.0, generator) if rows else None

    @property
    def count(self) -> int:
        """n"""
        return self.up_bias.shape[0]

    def forward(self, x: Tensor) -> GroupOutput:
        """Σ_i α_i y_i over this group, of x [B, L, D].

        The rows for the penalty leave as copies, because ZeRO-3 takes the parameters away once this call is over.
        """
        mixed, alpha = mix(x, Stack(self.down, self.down_bias, self.up, self.up_bias, self.query, self.key), self.rule)
        if not self.training or self.query is None or self.key is None:
            return GroupOutput(mixed, alpha, None, None)
        return GroupOutput(mixed, alpha, self.query.clone(), self.key.clone())


class SiteOutput(NamedTuple):
    """`mixed` [B, L, D]; `alpha` [B, T] or [B, T, D] of the frozen adapters and then the grown one; `penalty`: this site's
    orthogonality penalty, unweighted, 0 when evaluating or with fewer than two adapters; None of forms that have none."""

    mixed: Tensor
    alpha: Tensor
    penalty: Tensor | None


class MixingSite(nn.Module):
    """One site with `visible` frozen adapters and, where a stage grows one, a new adapter. Identity without any.

    Args:
        hidden: D.
        heads: H.
        spec: see MixingSpec.
        visible: how many frozen adapters (0 allowed).
        grows: add one new adapter.
        normalize_ortho: unit rows in the orthogonality penalty (default: as the code, no).
        generator: initial values of the new adapter and of fresh queries; the frozen adapters stay NaN until loaded.
    """

    def __init__(
        self,
        hidden: int,
        heads: int,
        spec: MixingSpec,
        *,
        visible: int,
        grows: bool,
        generator: torch.Generator,
        normalize_ortho: bool = False,
    ) -> None:
        super().__init__()
        self.outer_residual = spec.outer_residual
        self.normalize_ortho = normalize_ortho
        self.frozen = AdapterGroup(visible, hidden, heads, spec, None) if visible else None
        self.grown = AdapterGroup(1, hidden, heads, spec, generator) if grows else None
        if self.frozen is not None and self.frozen.query is not None:
            with torch.no_grad():
                self.frozen.query.normal_(generator=generator)

    def groups(self) -> tuple[AdapterGroup, ...]:
        """The groups that exist, frozen first."""
        return tuple(group for group in (self.frozen, self.grown) if group is not None)

    def forward(self, x: Tensor) -> SiteOutput:
        """x [B, L, D] -> SiteOutput."""
        outputs = [group(x) for group in self.groups()]
        if not outputs:
            return SiteOutput(x, x.new_zeros(x.shape[0], 0), x.new_zeros((), dtype=torch.promote_types(x.dtype, torch.float32)))
        mixed = outputs[0].mixed
        for output in outputs[1:]:
            mixed = mixed + output.mixed
        if self.outer_residual:
            mixed = mixed + x
        alpha = torch.cat([output.alpha for output in outputs], dim=1)
        return SiteOutput(mixed, alpha, self._penalty(outputs, like=alpha))

    def _penalty(self, outputs: list[GroupOutput], like: Tensor) -> Tensor:
        """Of the queries, and of the keys while one of them grows: frozen keys would add a constant."""
        penalty = like.new_zeros(())
        queries = [output.query for output in outputs if output.query is not None]
        keys = [output.key for output in outputs if output.key is not None]
        for rows in (queries, keys if self.grown is not None else []):
            if sum(map(len, rows)) >= 2:
                penalty = penalty + ortho_penalty(torch.cat(rows), normalize=self.normalize_ortho)
        return penalty


def ortho_penalty(rows: Tensor, *, normalize: bool = False) -> Tensor:
    """How far vectors are from orthonormal: mean((t tᵀ − I)²) / (n·m), the rows t [n, m] flattened (docs/method.md, One site).

    Args:
        rows: [n, ...], n >= 1.
        normalize: scale each row to length 1 first. Without it (the released code) rows of N(0, 1) have length √m, and the
            penalty dominates the loss at the start.

    Returns:
        A scalar in float32 at least.
    """
    t = rows.flatten(1).to(torch.promote_types(rows.dtype, torch.float32))
    if normalize:
        t = functional.normalize(t, dim=1)
    with torch.autocast(t.device.type, enabled=False):
        gram = t @ t.T
    return (gram - torch.eye(len(t), dtype=t.dtype, device=t.device)).square().mean() / t.numel()


def _normal(shape: tuple[int, ...], std: float, generator: torch.Generator | None) -> nn.Parameter:
    """N(0, std) from the generator; NaN without one."""
    values = torch.empty(shape)
    return nn.Parameter(values.fill_(torch.nan) if generator is None else values.normal_(0.0, std, generator=generator))

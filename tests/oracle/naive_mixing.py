"""The mixing site as docs/method.md, One site states it, one adapter after the other, every y_i formed: the oracle and the
benchmark's baseline.

Slow and plain on purpose. Everything trains here; autograd differentiates it. Nothing of `atlas_dist` is imported.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional


@dataclass
class NaiveAdapter:
    """One adapter of one site: `down` V [r, D], `down_bias` b [r], `up` U [D, r], `up_bias` c [D], `query` and `key` [N, D].

    N is 1 for `whole` and any number of rows for `dimension`; `plain` adapters have neither query nor key.
    """

    down: Tensor
    down_bias: Tensor
    up: Tensor
    up_bias: Tensor
    query: Tensor | None = None
    key: Tensor | None = None

    def tensors(self) -> list[Tensor]:
        """What could be differentiated, in the order of the fields."""
        return [t for t in vars(self).values() if t is not None]


def adapt(x: Tensor, adapter: NaiveAdapter) -> Tensor:
    """y = x + silu(x Vᵀ + b) Uᵀ + c for x [B, L, D]."""
    hidden = functional.silu(functional.linear(x, adapter.down, adapter.down_bias))
    return x + functional.linear(hidden, adapter.up, adapter.up_bias)


def attend(query: Tensor, tokens: Tensor, heads: int) -> Tensor:
    """`query` [N, D] over [query ; tokens] (N + L tokens), no projections, scores scaled by 1/sqrt(D): [B, N, D]."""
    batch, length, width = tokens.shape
    rows = query.shape[0]
    memory = torch.cat([query.expand(batch, rows, width), tokens], dim=1).view(batch, rows + length, heads, -1).transpose(1, 2)
    asked = query.view(rows, heads, -1).transpose(0, 1)
    probabilities = (asked @ memory.transpose(-1, -2) / math.sqrt(width)).softmax(dim=-1)
    return (probabilities @ memory).transpose(1, 2).reshape(batch, rows, width)


def coefficient(x: Tensor, y: Tensor, adapter: NaiveAdapter, heads: int, weighting: str, attend_over: str) -> Tensor:
    """α: [B, 1] for `whole`, [B, D] for `dimension`."""
    if adapter.query is None or adapter.key is None:
        return x.new_ones(x.shape[0], 1)
    outcome = attend(adapter.query, y if attend_over == "output" else x, heads)
    if weighting == "whole":
        cosine = functional.cosine_similarity(outcome, adapter.key, dim=-1)
    else:
        cosine = functional.cosine_similarity(outcome, adapter.key.expand_as(outcome), dim=-2)
    return (cosine + 1) / 2


def naive_site(
    x: Tensor,
    adapters: list[NaiveAdapter],
    *,
    heads: int,
    weighting: str = "whole",
    attend_over: str = "output",
    outer_residual: bool = False,
) -> tuple[Tensor, list[Tensor]]:
    """Σ_i α_i y_i of x [B, L, D] and the list of α_i ([B, 1] or [B, D]); x itself when there is no adapter."""
    if not adapters:
        return x, []
    mixed = x if outer_residual else torch.zeros_like(x)
    alphas = []
    for adapter in adapters:
        y = adapt(x, adapter)
        alpha = coefficient(x, y, adapter, heads, weighting, attend_over)
        mixed = mixed + alpha[:, None, :] * y
        alphas.append(alpha)
    return mixed, alphas


def naive_penalty(rows: list[Tensor], normalize: bool = False) -> Tensor:
    """mean((t tᵀ − I)²) / (n·m) over n flattened vectors of m numbers each."""
    t = torch.stack([row.flatten() for row in rows])
    if normalize:
        t = t / t.norm(dim=1, keepdim=True).clamp(min=1e-12)
    gram = t @ t.T
    return (gram - torch.eye(len(rows), dtype=t.dtype)).square().mean() / t.numel()

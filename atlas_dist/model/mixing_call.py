"""One call of `mixing_op.mix` in the shapes that its arithmetic wants, and the combination Σ_i α_i y_i with its gradients.

Notation as in mixing_op.py: B samples, L tokens, D hidden width, H heads, T adapters of width r, N query rows, A coefficients an
adapter (1 for `whole` and `plain`, D for `dimension`). Gradients are named after what they are gradients of.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, unflatten

from atlas_dist.model.mixing_spec import MixRule


class Stack(NamedTuple):
    """The weights of T stacked adapters: `down` [T, r, D], `down_bias` [T, r], `up` [T, D, r], `up_bias` [T, D], `query` and
    `key` [T, D] or [T, N, D]; both None for `plain` (α = 1)."""

    down: Tensor
    down_bias: Tensor
    up: Tensor
    up_bias: Tensor
    query: Tensor | None
    key: Tensor | None


@dataclass(frozen=True)
class Call:
    """The input and the weights of one call: views in the dtype of `x` where possible, small copies otherwise."""

    x: Tensor
    """[B, L, D], contiguous"""
    down: Tensor
    """[T·r, D]"""
    down_bias: Tensor
    """[T·r]"""
    up: Tensor
    """[T, H, D/H, r]"""
    up_bias: Tensor
    """[T, D]"""
    query: Tensor | None
    """[T, H, N, D/H]"""
    key: Tensor | None
    """[T, N, D] in the statistics' dtype"""
    rule: MixRule

    @staticmethod
    def prepare(x: Tensor, stack: Stack, rule: MixRule) -> Call:
        """`x` [B, L, D] contiguous."""
        count, rank, width = stack.down.shape
        dtype, heads = x.dtype, rule.heads
        query = key = None
        if stack.query is not None and stack.key is not None:
            query = stack.query.to(dtype).view(count, -1, heads, width // heads).transpose(1, 2).contiguous()
            key = stack.key.to(torch.promote_types(dtype, torch.float32)).view(count, -1, width)
        return Call(
            x=x,
            down=stack.down.to(dtype).view(count * rank, width),
            down_bias=stack.down_bias.to(dtype).view(count * rank),
            up=stack.up.to(dtype).view(count, heads, width // heads, rank),
            up_bias=stack.up_bias.to(dtype),
            query=query,
            key=key,
            rule=rule,
        )

    @property
    def count(self) -> int:
        """T"""
        return self.up.shape[0]

    @property
    def heads(self) -> int:
        """H"""
        return self.up.shape[1]

    @property
    def rank(self) -> int:
        """r"""
        return self.up.shape[-1]

    @property
    def stat_dtype(self) -> torch.dtype:
        """Of softmax, cosine and α: float32 at least."""
        return torch.promote_types(self.x.dtype, torch.float32)

    @property
    def scale(self) -> float:
        """1/sqrt(D), not of the head's width: as released."""
        return 1.0 / math.sqrt(self.x.shape[-1])

    def by_adapter(self, hidden: Tensor) -> Tensor:
        """[B, L, T·r] -> [B, L, T, r], a view."""
        return unflatten(hidden, -1, (self.count, self.rank))

    def by_head(self, features: Tensor) -> Tensor:
        """[..., D] -> [..., H, D/H], a view."""
        return unflatten(features, -1, (self.heads, -1))

    def weigh(self, hidden: Tensor, alpha: Tensor) -> Tensor:
        """h_i *= α_i in place and back again; hidden [B, L, T·r], alpha [B, T, 1]."""
        self.by_adapter(hidden).mul_(alpha[:, None])
        return hidden

    def up_columns(self) -> Tensor:
        """[U_1 … U_T] side by side, [D, T·r]: for T > 1 a copy, made when needed and dropped soon (it is as large as x)."""
        return self.up.flatten(1, 2).transpose(0, 1).flatten(1)


def combine(call: Call, hidden: Tensor, alpha: Tensor) -> Tensor:
    """Σ_i α_i y_i = (Σ α_i) x + Σ α_i (U_i h_i + c_i): one GEMM over all adapters where α_i is a number.

    Args:
        hidden: h [B, L, T·r]; overwritten.
        alpha: [B, T, 1], or [B, 1, D] for one adapter.

    Returns:
        [B, L, D].
    """
    alpha = alpha.to(call.x.dtype)
    if alpha.shape[-1] > 1:
        return _output(call, hidden).mul_(alpha)
    shift = (alpha * call.up_bias).sum(dim=1)[:, None]
    mixed = torch.addcmul(shift, call.x, alpha.sum(dim=1)[:, None])
    mixed.flatten(0, 1).addmm_(call.weigh(hidden, alpha).flatten(0, 1), call.up_columns().t())
    return mixed


class CombineGrads(NamedTuple):
    """`hidden` [B, L, T·r], `alpha` [B, T, A], `up` [T, D, r] or None, `up_bias` [T, D]. x's share is grad · Σ α_i."""

    hidden: Tensor
    alpha: Tensor
    up: Tensor | None
    up_bias: Tensor


def combine_backward(call: Call, hidden: Tensor, alpha: Tensor, grad: Tensor, *, need_up: bool) -> CombineGrads:
    """Through `combine`; overwrites `hidden` [B, L, T·r]. `grad`: of the mixture, [B, L, D] contiguous."""
    weight = alpha.to(grad.dtype)
    grad_up_bias = (alpha * grad.sum(dim=1, dtype=call.stat_dtype)[:, None]).sum(dim=0)
    back = _combine_by_feature if alpha.shape[-1] > 1 else _combine_whole
    grad_hidden, grad_alpha, grad_up = back(call, hidden, weight, grad, need_up)
    return CombineGrads(grad_hidden, grad_alpha, grad_up, grad_up_bias)


def _combine_whole(
    call: Call, hidden: Tensor, alpha: Tensor, grad: Tensor, need_up: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Gradients of h, α and U, for α [B, T, 1]."""
    grad_hidden = grad @ call.up_columns()
    grad_up = None
    if need_up:
        weighted = call.weigh(hidden.clone(), alpha).flatten(0, 1)
        grad_up = call.by_adapter(grad.flatten(0, 1).t() @ weighted).transpose(0, 1)
    through_hidden = call.by_adapter(hidden.mul_(grad_hidden)).sum(dim=(1, 3), dtype=call.stat_dtype)[..., None]
    through_x = grad.flatten(1)[:, None] @ call.x.flatten(1)[..., None]  # one dot product a sample, no temporary
    through_bias = grad.sum(dim=1, dtype=call.stat_dtype) @ call.up_bias.to(call.stat_dtype).t()
    grad_alpha = through_hidden + through_x.to(call.stat_dtype) + through_bias[..., None]
    return call.weigh(grad_hidden, alpha), grad_alpha, grad_up


def _combine_by_feature(
    call: Call, hidden: Tensor, alpha: Tensor, grad: Tensor, need_up: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Gradients of h, α and U, for α [B, 1, D] of one adapter."""
    grad_alpha = (_output(call, hidden).mul_(grad)).sum(dim=1, keepdim=True, dtype=call.stat_dtype)
    weighted = grad * alpha
    grad_up = (weighted.flatten(0, 1).t() @ hidden.flatten(0, 1))[None] if need_up else None
    return weighted @ call.up_columns(), grad_alpha, grad_up


def _output(call: Call, hidden: Tensor) -> Tensor:
    """y of the one adapter, [B, L, D]."""
    output = call.x + call.up_bias
    output.flatten(0, 1).addmm_(hidden.flatten(0, 1), call.up_columns().t())
    return output

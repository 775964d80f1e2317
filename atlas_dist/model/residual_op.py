"""Σ_i α_i Δ_i(x): what several adapters add to a stream that goes on unscaled, as one autograd operation.

    Δ_i(x) = U_i silu(V_i x + b_i) + c_i          an adapter without its residual
    out    = x + Σ_i α_i Δ_i(x)                   (docs/method.md, One site)

Notation: B samples, L tokens, D hidden width, r adapter width, T adapters; α [B, T] is model/experience.py's, or 1.
No Δ_i [B, L, D] is ever formed: everything an adapter adds lives in its r-wide bottleneck h_i, so the sum is one product
[α_1 h_1 … α_T h_T] [U_1; …; U_T] and a shift Σ α_i c_i. Kept for backward: x, α and the pre-activations [B, L, T·r].
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, unflatten
from torch.nn import functional


class ResidualStack(NamedTuple):
    """The weights of T stacked adapters: `down` V [T, r, D], `down_bias` b [T, r], `up` U [T, D, r], `up_bias` c [T, D]."""

    down: Tensor
    down_bias: Tensor
    up: Tensor
    up_bias: Tensor


def add_residuals(x: Tensor, stack: ResidualStack, alpha: Tensor | None = None, onto: Tensor | None = None) -> Tensor:
    """x + Σ_i α_i Δ_i(x), [B, L, D].

    Args:
        x: [B, L, D]; the products run in its dtype.
        stack: T >= 1 adapters.
        alpha: [B, T], or None where every coefficient is 1.
        onto: what the sum is added to instead of x, [B, L, D]: another group's result.

    Gradients flow to x, to α, to `onto` and to whichever weights require them.
    """
    result: Tensor = _AddResiduals.apply(x, onto, alpha, *stack)  # type: ignore[no-untyped-call]
    return result


class _AddResiduals(torch.autograd.Function):
    """Forward and backward of `add_residuals`, once differentiable."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        onto: Tensor | None,
        alpha: Tensor | None,
        down: Tensor,
        down_bias: Tensor,
        up: Tensor,
        up_bias: Tensor,
    ) -> Tensor:
        x = x.contiguous()
        stream = x if onto is None else onto.contiguous()
        with _own_dtypes(x):
            down_rows, columns = _rows(down, x.dtype), _columns(up, x.dtype)
            bottleneck = functional.linear(x, down_rows, down_bias.to(x.dtype).flatten())
            hidden = functional.silu(bottleneck)
            if alpha is None:
                mixed = stream + up_bias.to(x.dtype).sum(dim=0)
            else:
                weights = alpha.to(x.dtype)
                _weigh(hidden, weights)
                mixed = stream + (weights @ up_bias.to(x.dtype))[:, None]
            mixed.flatten(0, 1).addmm_(hidden.flatten(0, 1), columns.t())
        ctx.save_for_backward(x, alpha, down, up, up_bias, bottleneck)
        ctx.own_stream = onto is None
        return mixed

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, alpha, down, up, up_bias, bottleneck = ctx.saved_tensors
        need_x, need_onto, need_alpha, need_down, need_down_bias, need_up, need_up_bias = ctx.needs_input_grad
        count, rank = down.shape[:2]
        grad_x = grad_alpha = grad_down = grad_down_bias = grad_up = grad_up_bias = None
        with _own_dtypes(x):
            grad = grad.contiguous()
            rows, tokens = grad.flatten(0, 1), x.flatten(0, 1)
            grad_hidden = grad @ _columns(up, x.dtype)
            wide = torch.promote_types(x.dtype, torch.float32)
            if need_alpha or need_up:
                hidden = functional.silu(bottleneck)
                if need_up:
                    weighted = hidden if alpha is None else _weigh(hidden.clone(), alpha)
                    by_adapter = (rows.t() @ weighted.flatten(0, 1)).view(-1, count, rank)
                    grad_up = by_adapter.transpose(0, 1).to(up.dtype)
                if need_alpha:
                    by_hidden = unflatten(hidden.mul_(grad_hidden), -1, (count, rank)).sum(dim=(1, 3), dtype=wide)
                    grad_alpha = by_hidden + grad.sum(dim=1, dtype=wide) @ up_bias.to(wide).t()
                    grad_alpha = grad_alpha.to(alpha.dtype)
                del hidden
            if need_up_bias:
                total = grad.sum(dim=1, dtype=wide)
                shared = total.sum(dim=0).expand(count, -1) if alpha is None else alpha.to(wide).t() @ total
                grad_up_bias = shared.to(up_bias.dtype)
            if need_x or need_down or need_down_bias:
                if alpha is not None:
                    _weigh(grad_hidden, alpha)
                torch.ops.aten.silu_backward.grad_input(grad_hidden, bottleneck, grad_input=grad_hidden)
                back = grad_hidden.flatten(0, 1)
                if need_x:
                    through = _rows(down, x.dtype)
                    grad_x = (torch.addmm(rows, back, through) if ctx.own_stream else back @ through).view_as(x)
                if need_down:
                    grad_down = (back.t() @ tokens).view_as(down).to(down.dtype)
                if need_down_bias:
                    grad_down_bias = back.sum(dim=0, dtype=wide).view(count, rank).to(down.dtype)
        return grad_x, grad if need_onto else None, grad_alpha, grad_down, grad_down_bias, grad_up, grad_up_bias


def _weigh(hidden: Tensor, alpha: Tensor) -> Tensor:
    """h_i *= α_i in place; hidden [B, L, T·r], alpha [B, T]."""
    count = alpha.shape[1]
    unflatten(hidden, -1, (count, -1)).mul_(alpha.to(hidden.dtype)[:, None, :, None])
    return hidden


def _rows(down: Tensor, dtype: torch.dtype) -> Tensor:
    """All V_i above each other, [T·r, D]."""
    return down.to(dtype).flatten(0, 1)


def _columns(up: Tensor, dtype: torch.dtype) -> Tensor:
    """[U_1 … U_T] side by side, [D, T·r]: for T > 1 a copy, which is smaller than x unless T·r > B·L."""
    return up.to(dtype).transpose(0, 1).flatten(1)


def _own_dtypes(x: Tensor) -> torch.autocast:
    """Autocast off: this operation chooses its dtypes itself, the same in forward and backward."""
    return torch.autocast(x.device.type, enabled=False)

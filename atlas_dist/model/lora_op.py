"""Σ_i α_i s_i B_i A_i x: what several LoRA adapters add to a linear layer's output, as one autograd operation.

    out = onto + [w_1 A_1 x … w_R A_R x] · [B_1 … B_R]ᵀ        (docs/method.md, LoRA)

Notation: D_in and D_out of the layer, R the ranks of all adapters together, w [R] the weight α_i s_i of each row's adapter. No
single adapter's output [B, L, D_out] is ever formed, however many there are: one product with all A stacked, one with all B. Kept
for backward is what the gradients that are asked for need: of frozen adapters the R-wide product alone, for their coefficients;
the layer's input only where an A trains.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional


def add_lora(onto: Tensor, x: Tensor, down: Tensor, up: Tensor, weight: Tensor) -> Tensor:
    """onto + ((x · downᵀ) ∘ weight) · upᵀ, [..., D_out] in the dtype of `onto`.

    Args:
        onto: [..., D_out], the layer's own output; the products run in its dtype.
        x: [..., D_in], the layer's input.
        down: all A above each other, [R, D_in], R >= 1.
        up: all B side by side, [D_out, R].
        weight: [R], float32 at least.

    Gradients flow to whichever of the five require them.
    """
    result: Tensor = _AddLora.apply(onto, x, down, up, weight)  # type: ignore[no-untyped-call]
    return result


class _AddLora(torch.autograd.Function):
    """Forward and backward of `add_lora`, once differentiable."""

    @staticmethod
    def forward(ctx: Any, onto: Tensor, x: Tensor, down: Tensor, up: Tensor, weight: Tensor) -> Tensor:
        _, _, need_down, need_up, need_weight = ctx.needs_input_grad
        dtype, rank = onto.dtype, len(down)
        with _own_dtypes(onto):
            x = x.to(dtype)
            hidden = functional.linear(x, down.to(dtype)).view(-1, rank)
            kept = hidden if need_weight or need_up else None
            weighted = hidden * weight.to(dtype) if kept is not None else hidden.mul_(weight.to(dtype))
            mixed = torch.addmm(onto.reshape(-1, onto.shape[-1]), weighted, up.to(dtype).t()).view(onto.shape)
        ctx.save_for_backward(x if need_down else None, kept, down, up, weight)
        ctx.shape = x.shape
        return mixed

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, hidden, down, up, weight = ctx.saved_tensors
        need_onto, need_x, need_down, need_up, need_weight = ctx.needs_input_grad
        grad_x = grad_down = grad_up = grad_weight = None
        dtype = grad.dtype
        with _own_dtypes(grad):
            rows = grad.reshape(-1, grad.shape[-1])
            if need_up:
                grad_up = (rows.t() @ (hidden * weight.to(dtype))).to(up.dtype)
            if need_x or need_down or need_weight:
                grad_hidden = rows @ up.to(dtype)
                if need_weight:
                    grad_weight = (hidden * grad_hidden).sum(dim=0, dtype=weight.dtype)
                grad_hidden.mul_(weight.to(dtype))
                if need_x:
                    grad_x = (grad_hidden @ down.to(dtype)).view(ctx.shape)
                if need_down:
                    grad_down = (grad_hidden.t() @ x.reshape(-1, x.shape[-1])).to(down.dtype)
        return grad if need_onto else None, grad_x, grad_down, grad_up, grad_weight


def _own_dtypes(x: Tensor) -> torch.autocast:
    """Autocast off: this operation chooses its dtypes itself, the same in forward and backward."""
    return torch.autocast(x.device.type, enabled=False)

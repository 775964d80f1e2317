"""The arithmetic of one mixing site: a stack of adapters, weighted per sample, without ever forming one adapter's output.

docs/method.md, The cheap form (arXiv 2410.10923, section 3), in one differentiable operation, `mix`. Notation: B samples, L
tokens, D hidden width, H heads of width D/H, T adapters of width r, N query rows (1 for `whole`), A coefficients an adapter (1
for `whole`, D for `dimension`). What makes it cheap:

- one GEMM computes the bottlenecks of all adapters, another brings all of them back; α is folded into the r-wide side
  (mixing_call.py), and attention needs y_i only through the bottleneck (mixing_attend.py);
- forward keeps `x`, the pre-activations [B, L, T·r] and α, nothing else; backward computes activations and attention again,
  which costs a few per cent of the GEMMs;
- what is as large as the bottleneck is overwritten in place or dropped as soon as it was used;
- gradients of weights are computed only where asked for: frozen adapters cost what their input's gradient costs.

It is one `autograd.Function` of the parameters themselves (no views outside), so that ZeRO-3 may partition them between forward
and backward. Softmax and cosine run in float32 at least; the GEMMs run in the dtype of `x`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn import functional

from atlas_dist.model.mixing_attend import AttendGrads, attend, attend_backward, coefficient
from atlas_dist.model.mixing_call import Call, CombineGrads, Stack, combine, combine_backward
from atlas_dist.model.mixing_spec import MixRule


def mix(x: Tensor, stack: Stack, rule: MixRule) -> tuple[Tensor, Tensor]:
    """Σ_i α_i y_i of the site's input.

    Args:
        x: [B, L, D].
        stack: T >= 1 adapters of one width r.
        rule: see MixRule.

    Returns:
        The mixture [B, L, D] in the dtype of `x`, and α [B, T] (`whole`, `plain`) or [B, T, D] (`dimension`), float32 at
        least, without gradient.
    """
    mixed, alpha = _Mix.apply(x, *stack, rule)  # type: ignore[no-untyped-call]
    return mixed, alpha if rule.per_feature and stack.query is not None else alpha.squeeze(-1)


class _Mix(Function):
    """Forward and backward of `mix`; α leaves as [B, T, A]."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        down: Tensor,
        down_bias: Tensor,
        up: Tensor,
        up_bias: Tensor,
        query: Tensor | None,
        key: Tensor | None,
        rule: MixRule,
    ) -> tuple[Tensor, Tensor]:
        stack = Stack(down, down_bias, up, up_bias, query, key)
        x = x.contiguous()
        mixed, alphas, bottlenecks = None, [], []
        with _own_dtypes(x):
            for part in _parts(stack, rule):
                part_mixed, part_alpha, bottleneck = _forward(Call.prepare(x, part, rule))
                mixed = part_mixed if mixed is None else mixed.add_(part_mixed)
                alphas.append(part_alpha)
                bottlenecks.append(bottleneck)
        assert mixed is not None, "a stack has at least one adapter"
        alpha = torch.cat(alphas, dim=1)
        ctx.rule = rule
        ctx.save_for_backward(x, alpha, *stack, *bottlenecks)
        ctx.mark_non_differentiable(alpha)
        ctx.set_materialize_grads(False)
        return mixed, alpha

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, ...]:
        if grad is None:
            return (None,) * 8
        x, alpha, *rest = ctx.saved_tensors
        weights, bottlenecks = Stack(*rest[:6]), rest[6:]
        need_x, *needs = ctx.needs_input_grad[:7]
        grad, grad_x, grads = grad.contiguous(), None, []
        with _own_dtypes(x):
            alphas = torch.chunk(alpha, len(bottlenecks), dim=1)
            for part, bottleneck, part_alpha in zip(_parts(weights, ctx.rule), bottlenecks, alphas, strict=True):
                call = Call.prepare(x, part, ctx.rule)
                part_x, part_grads = _backward(call, bottleneck, part_alpha, grad, need_x, Stack(*needs))
                grad_x = part_x if grad_x is None or part_x is None else grad_x.add_(part_x)
                grads.append(part_grads)
        fitted = [
            _join(pieces).view(weight.shape).to(weight.dtype) if need and weight is not None else None
            for pieces, weight, need in zip(zip(*grads, strict=True), weights, needs, strict=True)
        ]
        return grad_x, *fitted, None


def _parts(stack: Stack, rule: MixRule) -> list[Stack]:
    """What one call of the arithmetic takes on: all adapters at once, or one at a time.

    One GEMM over all adapters needs α_i to be a number. With a number a feature, and 24 query rows whose attention [24·H, L] is
    larger than the bottleneck, one adapter at a time keeps the memory of one adapter.
    """
    down, down_bias, up, up_bias, query, key = stack
    if query is None or key is None or not rule.per_feature:
        return [stack]
    return [Stack(*one) for one in zip(*(torch.split(t, 1) for t in (down, down_bias, up, up_bias, query, key)), strict=True)]


def _forward(call: Call) -> tuple[Tensor, Tensor, Tensor]:
    """The mixture [B, L, D], α [B, T, A] and the pre-activations [B, L, T·r], which backward starts from."""
    bottleneck = functional.linear(call.x, call.down, call.down_bias)
    hidden = functional.silu(bottleneck)
    if call.query is None:
        alpha = call.x.new_ones((len(call.x), call.count, 1), dtype=call.stat_dtype)
    else:
        alpha = coefficient(call, attend(call, _batched(call, hidden)).outcome)
    return combine(call, hidden, alpha), alpha, bottleneck


def _backward(
    call: Call, bottleneck: Tensor, alpha: Tensor, grad: Tensor, need_x: bool, needs: Stack
) -> tuple[Tensor | None, list[Tensor | None]]:
    """Gradients of x and, in the order of Stack, of the weights. `needs` says which; others may be None or come along."""
    need_up = bool(needs.up or needs.up_bias)
    hidden = functional.silu(bottleneck)
    batched = None if call.query is None else _batched(call, hidden)
    combined = combine_backward(call, hidden, alpha, grad, need_up=need_up)
    del hidden
    attended = None
    if batched is not None:
        attended = attend_backward(call, batched, combined.alpha, need_query=bool(needs.query), need_up=need_up)
    del batched

    grad_x = grad_down = grad_down_bias = None
    if need_x:
        grad_x = grad * alpha.sum(dim=1)[:, None].to(grad.dtype)
        if attended is not None:
            call.by_head(grad_x).add_(attended.tokens.transpose(1, 2))
    if need_x or needs.down or needs.down_bias:
        grad_bottleneck = _bottleneck_backward(call, bottleneck, combined, attended).flatten(0, 1)
        if grad_x is not None:
            grad_x.flatten(0, 1).addmm_(grad_bottleneck, call.down)
        grad_down = grad_bottleneck.t() @ call.x.flatten(0, 1) if needs.down else None
        grad_down_bias = grad_bottleneck.sum(dim=0)
    if attended is None:
        return grad_x, [grad_down, grad_down_bias, combined.up, combined.up_bias, None, None]
    grad_up, grad_up_bias = _add(combined.up, attended.up), _add(combined.up_bias, attended.up_bias)
    return grad_x, [grad_down, grad_down_bias, grad_up, grad_up_bias, attended.query, attended.key]


def _bottleneck_backward(call: Call, bottleneck: Tensor, combined: CombineGrads, attended: AttendGrads | None) -> Tensor:
    """Through silu, in place: the gradient of the pre-activations [B, L, T·r] takes the memory of that of the activations."""
    grad = combined.hidden
    if attended is not None and attended.hidden is not None:
        call.by_adapter(grad).transpose(1, 2).add_(attended.hidden)
    torch.ops.aten.silu_backward.grad_input(grad, bottleneck, grad_input=grad)
    return grad


def _batched(call: Call, hidden: Tensor) -> Tensor:
    """[B, L, T·r] -> a contiguous copy [B, T, L, r], whose samples and adapters are one batch dimension for matrix products.

    A copy also for T = 1, where the layouts agree: the original is about to be overwritten.
    """
    return call.by_adapter(hidden).transpose(1, 2).clone(memory_format=torch.contiguous_format)


def _join(pieces: tuple[Tensor | None, ...]) -> Tensor:
    """The gradients of all parts, side by side; asked for, hence there."""
    return torch.cat([piece for piece in pieces if piece is not None])


def _add(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    return a if b is None else b if a is None else a + b


def _own_dtypes(x: Tensor) -> torch.autocast:
    """Autocast off: this operation chooses its dtypes itself, the same in forward and backward."""
    return torch.autocast(x.device.type, enabled=False)

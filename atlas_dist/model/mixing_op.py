"""The arithmetic of one mixing site: a stack of adapters, weighted per sample, without ever forming one adapter's output.

METHOD.md ("The exact cheap form"; arXiv 2410.10923, section 3) in one differentiable operation, `mix`. Notation: B samples, L
tokens, D hidden width, H heads of width D/H, T adapters of width r, N query rows (1 for `whole`), A coefficients an adapter (1
for `whole`, D for `dimension`). What makes it cheap:

- one GEMM computes the bottlenecks of all adapters, another brings all of them back; α is folded into the r-wide side;
- attention over [q_i ; y_i] needs scores and weighted sums of y_i = x + U_i h_i + c_i only, and both pass through the bottleneck;
- forward keeps `x` and the pre-activations [B, L, T·r] and nothing else; backward recomputes the activations, the
  attention and α, which costs a few per cent of the GEMMs and saves everything that grows with T and is not needed elsewhere;
- gradients of weights are computed only where asked for, so that frozen adapters cost what their input's gradient costs.

It is one `autograd.Function` of the parameters themselves (no views outside), so that ZeRO-3 may partition them between forward
and backward. Softmax and cosine run in float32 at least; the GEMMs run in the dtype of `x`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, unflatten
from torch.autograd import Function
from torch.nn import functional

COSINE_EPS = 1e-8
"""As `torch.nn.functional.cosine_similarity`, which the released code calls."""


@dataclass(frozen=True)
class MixRule:
    """What does not vary from call to call.

    Args:
        heads: H; divides D.
        per_feature: α is one number a feature (`dimension`) instead of one a sample (`whole`).
        over_output: the query attends over the adapter's output y_i (the released code) instead of the site's input x (the
            paper's figure).
    """

    heads: int
    per_feature: bool = False
    over_output: bool = True


class Stack(NamedTuple):
    """The weights of T stacked adapters: `down` [T, r, D], `down_bias` [T, r], `up` [T, D, r], `up_bias` [T, D], `query` and
    `key` [T, D] or [T, N, D]; both None for `plain` (α = 1)."""

    down: Tensor
    down_bias: Tensor
    up: Tensor
    up_bias: Tensor
    query: Tensor | None
    key: Tensor | None


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
        with _exact_dtype(x):
            x = x.contiguous()
            call = _Call.prepare(x, stack, rule)
            bottleneck = functional.linear(x, call.down, call.down_bias)
            hidden = functional.silu(bottleneck)
            if call.query is None:
                alpha = x.new_ones((x.shape[0], call.count, 1), dtype=call.stat_dtype)
            else:
                alpha = call.coefficient(call.attend(call.by_adapter(hidden)).outcome)
            mixed = call.combine(hidden, alpha)
        ctx.rule = rule
        ctx.save_for_backward(x, bottleneck, alpha, *stack)
        ctx.mark_non_differentiable(alpha)
        ctx.set_materialize_grads(False)
        return mixed, alpha

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, ...]:
        if grad is None:
            return (None,) * 8
        x, bottleneck, alpha, *weights = ctx.saved_tensors
        needs = Stack(*ctx.needs_input_grad[1:7])
        with _exact_dtype(x):
            call = _Call.prepare(x, Stack(*weights), ctx.rule)
            grad_x, grads = _backward(call, bottleneck, alpha, grad.contiguous(), ctx.needs_input_grad[0], needs)
        shaped = [
            None if g is None or not need else g.reshape(w.shape).to(w.dtype)
            for g, w, need in zip(grads, weights, needs, strict=True)
        ]
        return grad_x, *shaped, None


class _Attention(NamedTuple):
    """What attending yields. `own`, `seen`: probabilities of the query rows [B, T, H, N, N] and of the tokens [B, T, H, N, L];
    `summary` Σ_l p_l h_l [B, T, H, N, r], None when attending over the input; `outcome` o [B, T, H, N, D/H]; `folded` U_iᵀ q_i
    per head [T, H, N, r]; `tokens`: x by heads [B, H, L, D/H]."""

    own: Tensor
    seen: Tensor
    summary: Tensor | None
    outcome: Tensor
    folded: Tensor | None
    tokens: Tensor


@dataclass(frozen=True)
class _Call:
    """One call's input and its weights in the shapes and the dtype that the arithmetic wants (views where possible)."""

    x: Tensor
    """[B, L, D]"""
    down: Tensor
    """[T·r, D]"""
    down_bias: Tensor
    """[T·r]"""
    up_heads: Tensor
    """[T, H, D/H, r]"""
    up_bias: Tensor
    """[T, D]"""
    query: Tensor | None
    """[T, H, N, D/H]"""
    key: Tensor | None
    """[T, N, D] in the statistics' dtype"""
    rule: MixRule

    @staticmethod
    def prepare(x: Tensor, stack: Stack, rule: MixRule) -> _Call:
        count, rank, width = stack.down.shape
        dtype, heads = x.dtype, rule.heads
        query = key = None
        if stack.query is not None and stack.key is not None:
            query = stack.query.to(dtype).view(count, -1, heads, width // heads).transpose(1, 2).contiguous()
            key = stack.key.to(torch.promote_types(dtype, torch.float32)).view(count, -1, width)
        return _Call(
            x=x,
            down=stack.down.to(dtype).view(count * rank, width),
            down_bias=stack.down_bias.to(dtype).view(count * rank),
            up_heads=stack.up.to(dtype).view(count, heads, width // heads, rank),
            up_bias=stack.up_bias.to(dtype),
            query=query,
            key=key,
            rule=rule,
        )

    @property
    def count(self) -> int:
        """T"""
        return self.up_heads.shape[0]

    @property
    def rank(self) -> int:
        """r"""
        return self.up_heads.shape[-1]

    @property
    def stat_dtype(self) -> torch.dtype:
        """Of softmax, cosine and α."""
        return torch.promote_types(self.x.dtype, torch.float32)

    @property
    def scale(self) -> float:
        """1/sqrt(D), not of the head's width: as released."""
        return 1.0 / math.sqrt(self.x.shape[-1])

    @property
    def cosine_dim(self) -> int:
        """Of o [B, T, N, D]: over the rows for each feature, or over the features."""
        return -2 if self.rule.per_feature else -1

    def by_adapter(self, hidden: Tensor) -> Tensor:
        """[B, L, T·r] -> a copy [B, T, L, r], contiguous: samples and adapters are then one batch dimension."""
        return unflatten(hidden, -1, (self.count, self.rank)).transpose(1, 2).clone(memory_format=torch.contiguous_format)

    def attend(self, hidden: Tensor) -> _Attention:
        """Each adapter's query over [q_i ; y_i], y_i = x + U_i h_i + c_i never formed. `hidden`: h [B, T, L, r]."""
        assert self.query is not None
        (batch, length, _), (count, heads, rows, _) = self.x.shape, self.query.shape
        tokens = unflatten(self.x, -1, (heads, -1)).transpose(1, 2).contiguous()
        asked = self.query.transpose(0, 1).flatten(1, 2)
        scores = unflatten(asked @ tokens.transpose(-1, -2), 2, (count, rows)).transpose(1, 2)
        folded = None
        if self.rule.over_output:
            folded = self.query @ self.up_heads
            through = folded.flatten(1, 2) @ hidden.transpose(-1, -2)
            scores = unflatten(through, 2, (heads, rows)).add_(scores).add_(self.dot_up_bias(self.query))
        own = (self.query @ self.query.transpose(-1, -2)).expand(batch, -1, -1, -1, -1)
        probabilities = torch.cat([own, scores], dim=-1).mul_(self.scale).softmax(dim=-1, dtype=self.stat_dtype)
        own, seen = torch.split(probabilities.to(self.x.dtype), [rows, length], dim=-1)

        outcome = torch.einsum("bthnm,thmd->bthnd", own, self.query)
        outcome += unflatten(_by_head(seen) @ tokens, 2, (count, rows)).transpose(1, 2)
        summary = None
        if self.rule.over_output:
            summary = unflatten(seen.flatten(2, 3) @ hidden, 2, (heads, rows))
            outcome += torch.einsum("bthnr,thdr->bthnd", summary, self.up_heads)
            outcome += seen.sum(dim=-1, keepdim=True) * self.up_bias_by_head()
        return _Attention(own, seen, summary, outcome, folded, tokens)

    def coefficient(self, outcome: Tensor) -> Tensor:
        """α_i = (cos(o_i, k_i) + 1) / 2 as [B, T, A] from o [B, T, H, N, D/H]."""
        assert self.key is not None
        unit, _ = _unit(self._concatenate(outcome), self.cosine_dim)
        key, _ = _unit(self.key, self.cosine_dim)
        return ((unit * key).sum(dim=self.cosine_dim) + 1) / 2

    def coefficient_backward(self, outcome: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
        """Gradients of o (by heads, in x's dtype) and of the keys from that of α [B, T, A]."""
        assert self.key is not None
        dim = self.cosine_dim
        unit, length = _unit(self._concatenate(outcome), dim)
        key, key_length = _unit(self.key, dim)
        cosine = (unit * key).sum(dim=dim, keepdim=True)
        grad = grad.unsqueeze(dim) / 2
        grad_outcome = (key - cosine * unit) * (grad / length)
        grad_key = ((unit - cosine * key) * grad).sum(dim=0) / key_length
        by_head = unflatten(grad_outcome.to(self.x.dtype), -1, (self.rule.heads, -1)).transpose(2, 3)
        return by_head.contiguous(), grad_key

    def combine(self, hidden: Tensor, alpha: Tensor) -> Tensor:
        """(Σ α_i) x + Σ α_i (U_i h_i + c_i): one GEMM over all adapters. Overwrites `hidden` [B, L, T·r]."""
        alpha = alpha.to(self.x.dtype)
        shift = (alpha * self.up_bias).sum(dim=1)[:, None]
        mixed = torch.addcmul(shift, self.x, alpha.sum(dim=1)[:, None])
        if alpha.shape[-1] == 1:
            self.weigh(hidden, alpha)
            mixed.flatten(0, 1).addmm_(hidden.flatten(0, 1), self.up_columns().t())
        else:
            mixed.baddbmm_(hidden, self.weighted_up(alpha).transpose(1, 2))
        return mixed

    def up_columns(self) -> Tensor:
        """[U_1 … U_T] side by side, a copy [D, T·r]; made when needed, because it is as large as the bottleneck."""
        return self.up_heads.flatten(1, 2).transpose(0, 1).flatten(1)

    def weigh(self, hidden: Tensor, alpha: Tensor) -> Tensor:
        """h_i *= α_i in place; hidden [B, L, T·r], alpha [B, T, 1]."""
        unflatten(hidden, -1, (self.count, self.rank)).mul_(alpha[:, None])
        return hidden

    def weighted_up(self, alpha: Tensor) -> Tensor:
        """α_i ⊙ U_i of each sample, [B, D, T·r], from α [B, T, D]."""
        return (alpha.transpose(1, 2)[..., None] * self.up_heads.flatten(1, 2).transpose(0, 1)).flatten(2)

    def up_bias_by_head(self) -> Tensor:
        return unflatten(self.up_bias, -1, (self.rule.heads, 1, -1))

    def dot_up_bias(self, by_head: Tensor) -> Tensor:
        """· c_i of each head: [..., T, H, N, D/H] -> [..., T, H, N, 1]."""
        return (by_head * self.up_bias_by_head()).sum(dim=-1, keepdim=True)

    def _concatenate(self, outcome: Tensor) -> Tensor:
        """Heads side by side: [B, T, H, N, D/H] -> [B, T, N, D], in the statistics' dtype."""
        return outcome.transpose(2, 3).flatten(3).to(self.stat_dtype)


def _backward(
    call: _Call, bottleneck: Tensor, alpha: Tensor, grad: Tensor, need_x: bool, needs: Stack
) -> tuple[Tensor | None, list[Tensor | None]]:
    """Gradient of x and, in the order of Stack, of the weights (None where not needed)."""
    need_up = bool(needs.up or needs.up_bias)
    hidden = functional.silu(bottleneck)
    by_adapter = None if call.query is None else call.by_adapter(hidden)
    back = _combine_backward(call, hidden, alpha, grad, need_up=need_up)
    del hidden
    grad_hidden, grad_up, grad_up_bias, grad_query, grad_key = back.hidden, back.up, back.up_bias, None, None
    grad_tokens = None
    if by_adapter is not None:
        attended = _attend_backward(call, by_adapter, back.alpha, need_query=bool(needs.query), need_up=need_up)
        del by_adapter
        grad_query, grad_key = attended.query, attended.key
        grad_tokens = attended.tokens
        if attended.hidden is not None:
            unflatten(grad_hidden, -1, (call.count, call.rank)).transpose(1, 2).add_(attended.hidden)
        if grad_up is not None and attended.up is not None and attended.up_bias is not None:
            grad_up += attended.up
            grad_up_bias = grad_up_bias + attended.up_bias
        del attended
    grad_x = grad_down = grad_down_bias = None
    if need_x:
        grad_x = grad * alpha.sum(dim=1)[:, None].to(grad.dtype)
        if grad_tokens is not None:
            unflatten(grad_x, -1, (call.rule.heads, -1)).add_(grad_tokens.transpose(1, 2))
    if need_x or needs.down or needs.down_bias:
        torch.ops.aten.silu_backward.grad_input(grad_hidden, bottleneck, grad_input=grad_hidden)
        grad_bottleneck = grad_hidden.flatten(0, 1)
        if grad_x is not None:
            grad_x.flatten(0, 1).addmm_(grad_bottleneck, call.down)
        if needs.down:
            grad_down = grad_bottleneck.t() @ call.x.flatten(0, 1)
        if needs.down_bias:
            grad_down_bias = grad_bottleneck.sum(dim=0)
    return grad_x, [grad_down, grad_down_bias, grad_up, grad_up_bias, grad_query, grad_key]


class _CombineGrads(NamedTuple):
    """`hidden` [B, L, T·r], `alpha` [B, T, A], `up` [T, D, r] or None, `up_bias` [T, D]."""

    hidden: Tensor
    alpha: Tensor
    up: Tensor | None
    up_bias: Tensor


def _combine_backward(call: _Call, hidden: Tensor, alpha: Tensor, grad: Tensor, *, need_up: bool) -> _CombineGrads:
    """Through `_Call.combine`. Overwrites `hidden` [B, L, T·r]."""
    stat = call.stat_dtype
    weight = alpha.to(grad.dtype)
    total = grad.sum(dim=1, dtype=stat)
    grad_up_bias = (alpha * total[:, None]).sum(dim=0)
    grad_alpha = total[:, None] * call.up_bias
    grad_up = None
    if alpha.shape[-1] == 1:
        grad_hidden = grad @ call.up_columns()
        if need_up:
            weighted = call.weigh(hidden.clone(), weight).flatten(0, 1)
            grad_up = unflatten(grad.flatten(0, 1).t() @ weighted, -1, (call.count, -1)).transpose(0, 1).contiguous()
        per_adapter = unflatten(hidden.mul_(grad_hidden), -1, (call.count, call.rank)).sum(dim=(1, 3), dtype=stat)
        through_x = (grad.flatten(1)[:, None] @ call.x.flatten(1)[..., None]).to(stat)  # a dot product a sample, no temporary
        grad_alpha = grad_alpha.sum(dim=-1, keepdim=True) + per_adapter[..., None] + through_x
        call.weigh(grad_hidden, weight)
    else:
        product = unflatten(grad.transpose(1, 2) @ hidden, -1, (call.count, call.rank))
        through = (product * call.up_heads.flatten(1, 2).transpose(0, 1)).sum(dim=-1, dtype=stat)
        grad_alpha = grad_alpha + through.transpose(1, 2) + (grad * call.x).sum(dim=1, dtype=stat)[:, None]
        grad_hidden = grad @ call.weighted_up(weight)
        if need_up:
            grad_up = torch.einsum("bdtr,btd->tdr", product, weight)
    return _CombineGrads(grad_hidden, grad_alpha, grad_up, grad_up_bias)


class _AttendGrads(NamedTuple):
    """`tokens` [B, H, L, D/H], `hidden` [B, T, L, r], `query` [T, N, D], `key` [T, N, D], `up` [T, D, r], `up_bias` [T, D]."""

    tokens: Tensor
    hidden: Tensor | None
    query: Tensor | None
    key: Tensor
    up: Tensor | None
    up_bias: Tensor | None


def _attend_backward(call: _Call, hidden: Tensor, grad_alpha: Tensor, *, need_query: bool, need_up: bool) -> _AttendGrads:
    """Through α = (cos(o, k) + 1)/2, o = P [q ; y] and P = softmax of the scores, to everything below; `hidden` [B, T, L, r]."""
    assert call.query is not None
    own, seen, summary, outcome, folded, tokens = call.attend(hidden)
    heads, rows = call.rule.heads, call.query.shape[2]
    grad_outcome, grad_key = call.coefficient_backward(outcome, grad_alpha)

    # Softmax: dS = P (dP - Σ P dP), and Σ P dP = o · do because o = Σ P v.
    grad_own = torch.einsum("bthnd,thmd->bthnm", grad_outcome, call.query)
    grad_seen = unflatten(_by_head(grad_outcome) @ tokens.transpose(-1, -2), 2, (call.count, rows)).transpose(1, 2)
    grad_summary = None
    if summary is not None:
        grad_summary = torch.einsum("bthnd,thdr->bthnr", grad_outcome, call.up_heads)
        through = unflatten(grad_summary.flatten(2, 3) @ hidden.transpose(-1, -2), 2, (heads, rows))
        grad_seen = through.add_(grad_seen).add_(call.dot_up_bias(grad_outcome))
    expected = (grad_outcome * outcome).sum(dim=-1, keepdim=True)
    grad_own = own * (grad_own - expected) * call.scale
    grad_scores = seen * (grad_seen - expected) * call.scale
    grad_hidden = grad_query = grad_up = grad_up_bias = scored = None

    # What tokens and hidden states receive as values (P do) and as keys (dS q) is one product over both kinds of rows.
    asked = call.query.transpose(0, 1).flatten(1, 2)
    by_head = _by_head(grad_scores)
    both = torch.cat([_by_head(seen), by_head], dim=2)
    received = torch.cat([_by_head(grad_outcome), asked.expand(len(both), -1, -1, -1)], dim=2)
    grad_tokens = both.transpose(-1, -2) @ received
    mass = grad_scores.sum(dim=(0, 4))[..., None]
    if grad_summary is not None and folded is not None:
        both = torch.cat([seen, grad_scores], dim=2).flatten(2, 3)
        received = torch.cat([grad_summary, folded.expand_as(grad_summary)], dim=2).flatten(2, 3)
        grad_hidden = both.transpose(-1, -2) @ received
        if need_query or need_up:
            scored = unflatten((grad_scores.flatten(2, 3) @ hidden).sum(dim=0), 1, (heads, rows))
    if need_up:
        weighed = (seen.sum(dim=-1, keepdim=True) * grad_outcome).sum(dim=0)
    if need_up and summary is not None and scored is not None:
        grad_up = torch.einsum("bthnd,bthnr->thdr", grad_outcome, summary)
        grad_up += torch.einsum("thnd,thnr->thdr", call.query, scored)
        grad_up = grad_up.flatten(1, 2)
        grad_up_bias = (weighed + mass * call.query).sum(dim=2).flatten(1)
    if need_query:
        pairs = grad_own.sum(dim=0)
        grad_query = (pairs + pairs.transpose(-1, -2)) @ call.query
        grad_query += torch.einsum("bthnm,bthnd->thmd", own, grad_outcome)
        grad_query += unflatten((by_head @ tokens).sum(dim=0), 1, (call.count, rows)).transpose(0, 1)
        if scored is not None:
            grad_query += scored @ call.up_heads.transpose(-1, -2)
            grad_query += mass * call.up_bias_by_head()
        grad_query = grad_query.transpose(1, 2).flatten(2)
    return _AttendGrads(grad_tokens, grad_hidden, grad_query, grad_key, grad_up, grad_up_bias)


def _by_head(rows: Tensor) -> Tensor:
    """[B, T, H, N, M] -> [B, H, T·N, M]: the rows of all adapters that share a head's tokens."""
    return rows.transpose(1, 2).flatten(2, 3)


def _unit(vectors: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """Unit vectors along `dim` and the lengths (kept dimension), lengths clamped from below as cosine_similarity does."""
    length = torch.linalg.vector_norm(vectors, dim=dim, keepdim=True).clamp(min=COSINE_EPS)
    return vectors / length, length


def _exact_dtype(x: Tensor) -> torch.autocast:
    """Autocast off: this file chooses its dtypes itself, the same in forward and backward."""
    return torch.autocast(x.device.type, enabled=False)

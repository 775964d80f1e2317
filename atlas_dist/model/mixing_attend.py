"""Where α comes from: each adapter's query attends over [q_i ; y_i], and the outcome is compared with the adapter's key.

y_i = x + U_i h_i + c_i is never formed. A score q·y_l is q·x_l + (Uᵀq)·h_l + q·c, and a weighted sum of the y_l is
Σ p_l x_l + U (Σ p_l h_l) + (Σ p_l) c: both pass through the bottleneck (docs/method.md, The cheap form). Notation as in
mixing_op.py; P are attention probabilities, S scores, o the outcome.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, unflatten

from atlas_dist.model.mixing_call import Call

COSINE_EPS = 1e-8
"""As `torch.nn.functional.cosine_similarity`, which the released code calls."""


class Attention(NamedTuple):
    """What attending yields.

    `own`, `seen`: probabilities of the query's rows [B, T, H, N, N] and of the tokens [B, T, H, N, L]; `outcome`: o
    [B, T, H, N, D/H]; `tokens`: x by heads [B, H, L, D/H]; `folded`: U_iᵀ q_i of each head [T, H, N, r], and `summary`:
    Σ_l p_l h_l [B, T, H, N, r], both None when attending over the input.
    """

    own: Tensor
    seen: Tensor
    outcome: Tensor
    tokens: Tensor
    folded: Tensor | None
    summary: Tensor | None


def attend(call: Call, hidden: Tensor) -> Attention:
    """Each adapter's query over [q_i ; y_i] (or [q_i ; x]), all adapters and heads at once; `hidden`: h [B, T, L, r]."""
    assert call.query is not None, "plain adapters have no query"
    (batch, length, _), (count, heads, rows, _) = call.x.shape, call.query.shape
    tokens = call.by_head(call.x).transpose(1, 2).contiguous()
    scores = _by_adapter(_asked(call) @ tokens.transpose(-1, -2), count)
    folded = summary = None
    if call.rule.over_output:
        folded = call.query @ call.up
        through = folded.flatten(1, 2) @ hidden.transpose(-1, -2)
        scores = unflatten(through, 2, (heads, rows)).add_(scores).add_(_dot_bias(call, call.query))
    own = (call.query @ call.query.transpose(-1, -2)).expand(batch, -1, -1, -1, -1)
    probabilities = torch.cat([own, scores], dim=-1).mul_(call.scale).softmax(dim=-1, dtype=call.stat_dtype)
    own, seen = torch.split(probabilities.to(call.x.dtype), [rows, length], dim=-1)

    outcome = torch.einsum("bthnm,thmd->bthnd", own, call.query)
    outcome += _by_adapter(_by_head(seen) @ tokens, count)
    if call.rule.over_output:
        summary = unflatten(seen.flatten(2, 3) @ hidden, 2, (heads, rows))
        outcome += torch.einsum("bthnr,thdr->bthnd", summary, call.up)
        outcome += seen.sum(dim=-1, keepdim=True) * _bias_by_head(call)
    return Attention(own, seen, outcome, tokens, folded, summary)


def coefficient(call: Call, outcome: Tensor) -> Tensor:
    """α_i = (cos(o_i, k_i) + 1) / 2, [B, T, A], from o [B, T, H, N, D/H]."""
    assert call.key is not None
    unit, _ = _unit(_concatenate(call, outcome), _cosine_dim(call))
    key, _ = _unit(call.key, _cosine_dim(call))
    return ((unit * key).sum(dim=_cosine_dim(call)) + 1) / 2


class AttendGrads(NamedTuple):
    """`tokens` [B, H, L, D/H]; `hidden` [B, T, L, r], None when attending over the input; `query`, `key` [T, N, D];
    `up` [T, D, r] and `up_bias` [T, D]. Those not asked for are None."""

    tokens: Tensor
    hidden: Tensor | None
    query: Tensor | None
    key: Tensor
    up: Tensor | None
    up_bias: Tensor | None


def attend_backward(call: Call, hidden: Tensor, grad_alpha: Tensor, *, need_query: bool, need_up: bool) -> AttendGrads:
    """Through `coefficient` and `attend`, which is computed again, from the gradient of α [B, T, A]."""
    seen = attend(call, hidden)
    grad_outcome, grad_key = _coefficient_backward(call, seen.outcome, grad_alpha)
    grad_own, grad_scores, grad_summary = _scores_backward(call, seen, hidden, grad_outcome)
    grad_tokens, grad_hidden = _memory_backward(call, seen, grad_outcome, grad_scores, grad_summary)
    scored = None
    if seen.summary is not None and (need_query or need_up):
        scored = unflatten((grad_scores.flatten(2, 3) @ hidden).sum(dim=0), 1, grad_scores.shape[2:4])
    mass = grad_scores.sum(dim=(0, 4))[..., None]
    grad_query = _query_backward(call, seen, grad_outcome, grad_own, grad_scores, mass, scored) if need_query else None
    grad_up = grad_up_bias = None
    if need_up and scored is not None:
        grad_up, grad_up_bias = _up_backward(call, seen, grad_outcome, mass, scored)
    return AttendGrads(grad_tokens, grad_hidden, grad_query, grad_key, grad_up, grad_up_bias)


def _coefficient_backward(call: Call, outcome: Tensor, grad_alpha: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of o (by heads, in x's dtype) and of the keys."""
    assert call.key is not None
    dim = _cosine_dim(call)
    unit, length = _unit(_concatenate(call, outcome), dim)
    key, key_length = _unit(call.key, dim)
    cosine = (unit * key).sum(dim=dim, keepdim=True)
    grad = grad_alpha.unsqueeze(dim) / 2
    grad_outcome = (key - cosine * unit) * (grad / length)
    grad_key = ((unit - cosine * key) * grad).sum(dim=0) / key_length
    return call.by_head(grad_outcome.to(call.x.dtype)).transpose(2, 3).contiguous(), grad_key


def _scores_backward(call: Call, seen: Attention, hidden: Tensor, grad_outcome: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
    """Through the softmax: gradients of the own scores, of the tokens' scores (before scaling), and of `summary`.

    dS = P (dP - Σ P dP), where Σ P dP = o · do because o = Σ P v.
    """
    grad_own = torch.einsum("bthnd,thmd->bthnm", grad_outcome, call.query)
    grad_seen = _by_adapter(_by_head(grad_outcome) @ seen.tokens.transpose(-1, -2), call.count)
    grad_summary = None
    if seen.summary is not None:
        grad_summary = torch.einsum("bthnd,thdr->bthnr", grad_outcome, call.up)
        through = grad_summary.flatten(2, 3) @ hidden.transpose(-1, -2)
        grad_seen = unflatten(through, 2, grad_seen.shape[2:4]).add_(grad_seen).add_(_dot_bias(call, grad_outcome))
    expected = (grad_outcome * seen.outcome).sum(dim=-1, keepdim=True)
    grad_own = seen.own * (grad_own - expected) * call.scale
    return grad_own, seen.seen * (grad_seen - expected) * call.scale, grad_summary


def _memory_backward(
    call: Call, seen: Attention, grad_outcome: Tensor, grad_scores: Tensor, grad_summary: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """What tokens and hidden states receive, as values (P do) and as keys (dS q): one product over both kinds of rows."""
    rows = torch.cat([_by_head(seen.seen), _by_head(grad_scores)], dim=2)
    asked = _asked(call).expand(len(rows), -1, -1, -1)
    grad_tokens = rows.transpose(-1, -2) @ torch.cat([_by_head(grad_outcome), asked], dim=2)
    if grad_summary is None or seen.folded is None:
        return grad_tokens, None
    rows = torch.cat([seen.seen, grad_scores], dim=2).flatten(2, 3)
    received = torch.cat([grad_summary, seen.folded.expand_as(grad_summary)], dim=2).flatten(2, 3)
    return grad_tokens, rows.transpose(-1, -2) @ received


def _query_backward(
    call: Call,
    seen: Attention,
    grad_outcome: Tensor,
    grad_own: Tensor,
    grad_scores: Tensor,
    mass: Tensor,
    scored: Tensor | None,
) -> Tensor:
    """Gradient of the queries [T, N, D]: they ask, and their rows are memory too.

    `mass`: Σ dS over samples and tokens [T, H, N, 1]; `scored`: Σ dS h over both [T, H, N, r].
    """
    assert call.query is not None
    pairs = grad_own.sum(dim=0)
    grad = (pairs + pairs.transpose(-1, -2)) @ call.query
    grad += torch.einsum("bthnm,bthnd->thmd", seen.own, grad_outcome)
    grad += _by_adapter((_by_head(grad_scores) @ seen.tokens).sum(dim=0, keepdim=True), call.count)[0]
    if scored is not None:
        grad += scored @ call.up.transpose(-1, -2) + mass * _bias_by_head(call)
    return grad.transpose(1, 2).flatten(2)


def _up_backward(call: Call, seen: Attention, grad_outcome: Tensor, mass: Tensor, scored: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of U [T, D, r] and c [T, D], to which both the scores and the outcome lead."""
    assert call.query is not None and seen.summary is not None
    grad_up = torch.einsum("bthnd,bthnr->thdr", grad_outcome, seen.summary)
    grad_up += torch.einsum("thnd,thnr->thdr", call.query, scored)
    weighed = (seen.seen.sum(dim=-1, keepdim=True) * grad_outcome).sum(dim=0)
    return grad_up.flatten(1, 2), (weighed + mass * call.query).sum(dim=2).flatten(1)


def _asked(call: Call) -> Tensor:
    """Every adapter's query rows head by head, [H, T·N, D/H]."""
    assert call.query is not None
    return call.query.transpose(0, 1).flatten(1, 2)


def _by_head(rows: Tensor) -> Tensor:
    """[B, T, H, N, M] -> [B, H, T·N, M]: the rows of all adapters that share a head's tokens."""
    return rows.transpose(1, 2).flatten(2, 3)


def _by_adapter(rows: Tensor, count: int) -> Tensor:
    """[B, H, T·N, M] -> [B, T, H, N, M], a view: the other way round."""
    return unflatten(rows, 2, (count, -1)).transpose(1, 2)


def _bias_by_head(call: Call) -> Tensor:
    """c as [T, H, 1, D/H]."""
    return call.by_head(call.up_bias)[:, :, None]


def _dot_bias(call: Call, rows: Tensor) -> Tensor:
    """· c_i of each head: [..., T, H, N, D/H] -> [..., T, H, N, 1]."""
    return (rows * _bias_by_head(call)).sum(dim=-1, keepdim=True)


def _concatenate(call: Call, outcome: Tensor) -> Tensor:
    """Heads side by side: [B, T, H, N, D/H] -> [B, T, N, D], in the statistics' dtype."""
    return outcome.transpose(2, 3).flatten(3).to(call.stat_dtype)


def _cosine_dim(call: Call) -> int:
    """Of [B, T, N, D]: the cosine runs over the rows, feature by feature, or over the features of the one row."""
    return -2 if call.rule.per_feature else -1


def _unit(vectors: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """Unit vectors along `dim` and the lengths (kept dimension), clamped from below as cosine_similarity does."""
    length = torch.linalg.vector_norm(vectors, dim=dim, keepdim=True).clamp(min=COSINE_EPS)
    return vectors / length, length

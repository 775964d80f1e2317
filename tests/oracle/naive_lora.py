"""A linear layer with LoRA adapters as docs/method.md, LoRA states it, one adapter after the other: the oracle. Nothing of
`atlas_dist` is imported."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor


def naive_lora(
    x: Tensor,
    output: Tensor,
    adapters: Sequence[tuple[Tensor, Tensor, float]],
    alpha: Sequence[Tensor | float],
) -> Tensor:
    """output + Σ α_i s_i B_i A_i x for x [..., D_in], output [..., D_out]; each adapter is (A [r, D_in], B [D_out, r], s)."""
    for (a, b, scale), weight in zip(adapters, alpha, strict=True):
        output = output + weight * scale * ((x @ a.T) @ b.T)
    return output

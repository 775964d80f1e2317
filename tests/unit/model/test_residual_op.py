"""x + Σ α_i Δ_i(x) in its cheap form, against one adapter after the other and autograd."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from atlas_dist.model.residual_op import ResidualStack, add_residuals


def naive(x: Tensor, stack: ResidualStack, alpha: Tensor | None) -> Tensor:
    """The formula of the module, every Δ_i formed."""
    out = x
    for i, (down, down_bias, up, up_bias) in enumerate(zip(*stack, strict=True)):
        delta = functional.linear(functional.silu(functional.linear(x, down, down_bias)), up, up_bias)
        out = out + (delta if alpha is None else alpha[:, i, None, None] * delta)
    return out


def drawn(batch: int, length: int, width: int, rank: int, count: int, seed: int = 0, dtype: torch.dtype = torch.float64):
    """x, a stack and α that all require gradients."""
    generator = torch.Generator().manual_seed(seed)
    shapes = ((batch, length, width), (batch, count), (count, rank, width), (count, rank), (count, width, rank), (count, width))
    x, alpha, *weights = (torch.randn(s, generator=generator, dtype=torch.float64).to(dtype).requires_grad_() for s in shapes)
    return x, ResidualStack(*weights), alpha


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 3), st.integers(1, 5), st.sampled_from([4, 8]), st.integers(1, 3), st.integers(1, 4), st.booleans())
def test_output_and_gradients_are_those_of_the_formula(b: int, n: int, d: int, r: int, t: int, weighted: bool) -> None:
    x, stack, alpha = drawn(b, n, d, r, t)
    given_alpha = alpha if weighted else None
    inputs = [x, *stack, *([alpha] if weighted else [])]
    ours, theirs = add_residuals(x, stack, given_alpha), naive(x, stack, given_alpha)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    out = torch.randn(ours.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for mine, wanted in zip(
        torch.autograd.grad((ours * out).sum(), inputs), torch.autograd.grad((theirs * out).sum(), inputs), strict=True
    ):
        torch.testing.assert_close(mine, wanted, rtol=1e-11, atol=1e-11)


def test_the_sum_can_go_onto_another_stream() -> None:
    x, stack, alpha = drawn(2, 3, 4, 2, 2)
    onto = torch.randn_like(x).requires_grad_()
    ours = add_residuals(x, stack, alpha, onto)
    torch.testing.assert_close(ours, onto + naive(x, stack, alpha) - x)
    assert torch.autograd.gradcheck(lambda *t: add_residuals(t[0], stack, t[1], t[2]), (x, alpha, onto))


def test_gradients_agree_with_finite_differences() -> None:
    x, stack, alpha = drawn(2, 3, 4, 2, 2)
    assert torch.autograd.gradcheck(lambda x, a, *w: add_residuals(x, ResidualStack(*w), a), (x, alpha, *stack))


@pytest.mark.parametrize("asked", [*range(6), ()])
def test_only_what_is_asked_for_gets_a_gradient(asked: object) -> None:
    x, stack, alpha = drawn(2, 3, 4, 2, 2)
    tensors = [x, alpha, *stack]
    chosen = [tensors[asked]] if isinstance(asked, int) else []
    for tensor in tensors:
        tensor.requires_grad_(any(tensor is c for c in chosen))
    out = add_residuals(x, stack, alpha)
    assert out.requires_grad == bool(chosen)
    if chosen:
        out.sum().backward()
    assert [t.grad is not None for t in tensors] == [any(t is c for c in chosen) for t in tensors]


def test_zero_coefficients_leave_the_stream_alone() -> None:
    x, stack, alpha = drawn(2, 3, 4, 2, 3)
    assert torch.equal(add_residuals(x, stack, torch.zeros_like(alpha)), x)


def test_bfloat16_stays_near_float32_and_its_coefficients_keep_their_dtype() -> None:
    x, stack, alpha = drawn(2, 6, 16, 4, 3, dtype=torch.float32)
    low = x.detach().to(torch.bfloat16).requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ours = add_residuals(low, stack, alpha)
    assert ours.dtype is torch.bfloat16
    torch.testing.assert_close(ours.float(), naive(x, stack, alpha), rtol=0.05, atol=0.5)
    ours.float().sum().backward()
    assert alpha.grad is not None and alpha.grad.dtype is torch.float32
    assert low.grad is not None and low.grad.dtype is torch.bfloat16
    assert stack.up.grad is not None and stack.up.grad.dtype is torch.float32

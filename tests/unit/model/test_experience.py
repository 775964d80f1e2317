"""A site of ATLAS's default form: the stream keeps its scale, earlier adapters are weighed, the task's own has weight 1."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from atlas_dist.model.experience import CLAMP, Coefficients, ExperienceSite
from atlas_dist.model.mixing_spec import MixingSpec, Weighting

WIDTH, RANK = 8, 3


def spec(*, per_sample: bool = False) -> MixingSpec:
    return MixingSpec(rank=RANK, weighting=Weighting.EXPERIENCE, per_sample=per_sample, zero_up=True)


def site(visible: int, *, grows: bool, per_sample: bool = False, seed: int = 0) -> ExperienceSite:
    """With every number drawn, in float64."""
    generator = torch.Generator().manual_seed(seed)
    made = ExperienceSite(WIDTH, 2, spec(per_sample=per_sample), visible=visible, grows=grows, generator=generator).double()
    with torch.no_grad():
        for tensor in (*made.parameters(), *made.buffers()):
            tensor.normal_(generator=generator)
        if made.frozen is not None and made.frozen.key is not None:
            made.frozen.key[:, 1].abs_().add_(0.5)
    return made


def delta(x: Tensor, made: ExperienceSite, kind: str, index: int) -> Tensor:
    """Δ_i(x) by the formula."""
    group = getattr(made, kind)
    hidden = functional.silu(functional.linear(x, group.down[index], group.down_bias[index]))
    return functional.linear(hidden, group.up[index], group.up_bias[index])


def by_the_formula(x: Tensor, made: ExperienceSite) -> tuple[Tensor, Tensor]:
    """Output and α, sample by sample."""
    outputs, alphas = [], []
    for row in x:
        out, alpha = row, []
        for i in range(0 if made.frozen is None else made.frozen.count):
            assert made.coefficients is not None and made.frozen is not None and made.frozen.key is not None
            a = made.coefficients.start[i]
            if made.coefficients.slope is not None:
                mean, spread = made.frozen.key[i]
                z = ((row.mean(0) - mean) / spread).clamp(-CLAMP, CLAMP)
                a = a + z @ made.coefficients.slope[i] / math.sqrt(WIDTH)
            alpha.append(a)
            out = out + a * delta(row, made, "frozen", i)
        if made.grown is not None:
            alpha.append(torch.ones_like(alpha[0]) if alpha else row.new_ones(()))
            out = out + delta(row, made, "grown", 0)
        outputs.append(out)
        alphas.append(torch.stack(alpha) if alpha else row.new_zeros(0))
    return torch.stack(outputs), torch.stack(alphas)


@pytest.mark.parametrize("per_sample", [False, True])
@pytest.mark.parametrize(("visible", "grows"), [(0, False), (0, True), (1, False), (3, False), (3, True)])
def test_a_site_computes_the_formula_and_its_gradients(visible: int, grows: bool, per_sample: bool) -> None:
    made = site(visible, grows=grows, per_sample=per_sample)
    x = torch.randn(2, 5, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).requires_grad_()
    wanted, alpha = by_the_formula(x, made)
    found = made(x)
    torch.testing.assert_close(found.mixed, wanted, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found.alpha, alpha, rtol=1e-12, atol=1e-12)
    if visible or grows:
        inputs = [x, *made.parameters()]
        weights = torch.randn(wanted.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
        ours = torch.autograd.grad((found.mixed * weights).sum(), inputs)
        theirs = torch.autograd.grad((wanted * weights).sum(), inputs)
        for mine, reference in zip(ours, theirs, strict=True):
            torch.testing.assert_close(mine, reference, rtol=1e-10, atol=1e-10)


def test_a_new_own_adapter_changes_nothing_at_first() -> None:
    """So stage two starts where stage one ended, and a task without experience where the backbone does."""
    generator = torch.Generator().manual_seed(0)
    made = ExperienceSite(WIDTH, 2, spec(), visible=0, grows=True, generator=generator)
    x = torch.randn(2, 5, WIDTH)
    assert torch.equal(made(x).mixed, x)


def test_no_adapter_that_helps_leaves_the_stream_as_it_is() -> None:
    made = site(3, grows=False)
    assert made.coefficients is not None
    with torch.no_grad():
        made.coefficients.start.zero_()
    x = torch.randn(2, 5, WIDTH, dtype=torch.float64)
    assert torch.equal(made(x).mixed, x)


def test_coefficients_start_as_equal_shares_of_one_and_alike_for_every_sample() -> None:
    made = Coefficients(4, WIDTH, per_sample=True)
    alpha = made(torch.randn(3, 5, WIDTH), torch.stack([torch.zeros(4, WIDTH), torch.ones(4, WIDTH)], dim=1))
    assert torch.equal(alpha, torch.full((3, 4), 0.25))


def test_a_sample_far_from_the_key_counts_as_three_spreads_away() -> None:
    made = Coefficients(1, WIDTH, per_sample=True)
    key = torch.stack([torch.zeros(1, WIDTH), torch.ones(1, WIDTH)], dim=1)
    assert made.slope is not None
    with torch.no_grad():
        made.slope.fill_(1.0)
    near, far = (made(torch.full((1, 2, WIDTH), value), key).item() for value in (3.0, 300.0))
    assert near == pytest.approx(1.0 + 3.0 * WIDTH / math.sqrt(WIDTH))
    assert far == pytest.approx(near)


def test_adapters_that_were_not_loaded_show_at_once() -> None:
    made = ExperienceSite(WIDTH, 2, spec(), visible=2, grows=False, generator=torch.Generator())
    assert made(torch.randn(1, 2, WIDTH)).mixed.isnan().all()

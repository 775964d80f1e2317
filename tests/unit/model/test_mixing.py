"""The cheap form against the oracle, and the promises a site makes about gradients, samples and later adapters."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from atlas_dist.errors import ConfigError
from atlas_dist.model.mixing import AdapterGroup, MixingSite, ortho_penalty
from atlas_dist.model.mixing_spec import AttendOver, MixingSpec, Weighting
from tests.oracle.naive_mixing import NaiveAdapter, naive_penalty, naive_site

EXACT = {"rtol": 0.0, "atol": 1e-11}


@dataclass(frozen=True)
class Shape:
    """A random site and its input."""

    spec: MixingSpec
    heads: int
    head_width: int
    frozen: int
    grows: bool
    batch: int
    length: int
    seed: int

    @property
    def width(self) -> int:
        return self.heads * self.head_width


specs = st.builds(
    MixingSpec,
    rank=st.integers(1, 5),
    weighting=st.sampled_from(Weighting),
    attend_over=st.sampled_from(AttendOver),
    outer_residual=st.booleans(),
    query_rows=st.integers(1, 4),
)
shapes = st.builds(
    Shape,
    spec=specs,
    heads=st.integers(1, 3),
    head_width=st.integers(1, 4),
    frozen=st.integers(0, 4),
    grows=st.booleans(),
    batch=st.integers(1, 3),
    length=st.integers(1, 6),
    seed=st.integers(0, 2**31),
)


def random_site(shape: Shape, dtype: torch.dtype = torch.float64) -> MixingSite:
    """A site with every parameter drawn from N(0, 0.5): larger than at the start, so that nothing is nearly linear."""
    generator = torch.Generator().manual_seed(shape.seed)
    site = MixingSite(shape.width, shape.heads, shape.spec, visible=shape.frozen, grows=shape.grows, generator=generator).to(
        dtype
    )
    with torch.no_grad():
        for parameter in site.parameters():
            parameter.normal_(0, 0.5, generator=generator)
    return site


def random_input(shape: Shape, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """x, which requires gradients, and a gradient for the output."""
    generator = torch.Generator().manual_seed(shape.seed + 1)
    size = (shape.batch, shape.length, shape.width)
    x, grad = (torch.randn(size, generator=generator, dtype=torch.float64).to(dtype) for _ in range(2))
    return x.requires_grad_(), grad


def naive_adapters(site: MixingSite) -> list[NaiveAdapter]:
    """The site's adapters for the oracle: views of the same parameters, so that gradients arrive at the same leaves."""
    rows = lambda t, i: None if t is None else t[i].view(-1, t.shape[-1])  # noqa: E731
    return [
        NaiveAdapter(g.down[i], g.down_bias[i], g.up[i], g.up_bias[i], rows(g.query, i), rows(g.key, i))
        for g in site.groups()
        for i in range(g.count)
    ]


def naive(site: MixingSite, x: Tensor, shape: Shape) -> tuple[Tensor, list[Tensor]]:
    spec = shape.spec
    return naive_site(
        x,
        naive_adapters(site),
        heads=shape.heads,
        weighting=spec.weighting.value,
        attend_over=spec.attend_over.value,
        outer_residual=spec.outer_residual,
    )


# ------------------------------------------------------------------------------------------------- equal to the naive form


@given(shapes)
@settings(max_examples=120, deadline=None)
def test_equals_the_naive_form_in_value_and_gradient(shape: Shape) -> None:
    site, (x, grad) = random_site(shape), random_input(shape)
    leaves = [x, *site.parameters()]
    output = site(x)
    expected, alphas = naive(site, x, shape)

    torch.testing.assert_close(output.mixed, expected, **EXACT)
    if alphas:
        torch.testing.assert_close(output.alpha.view(len(x), len(alphas), -1), torch.stack(alphas, dim=1), **EXACT)
    actual_grads = torch.autograd.grad(output.mixed, leaves, grad, allow_unused=True)
    expected_grads = torch.autograd.grad(expected, leaves, grad, allow_unused=True)
    for leaf, got, wanted in zip(leaves, actual_grads, expected_grads, strict=True):
        zero = torch.zeros_like(leaf)
        torch.testing.assert_close(zero if got is None else got, zero if wanted is None else wanted, **EXACT)


@given(shapes, st.data())
@settings(max_examples=60, deadline=None)
def test_any_subset_of_parameters_may_train(shape: Shape, data: st.DataObject) -> None:
    """Each gradient is right whatever else is asked for, and what is not asked for gets none."""
    site, (x, grad) = random_site(shape), random_input(shape)
    for parameter in site.parameters():
        parameter.requires_grad_(data.draw(st.booleans()))
    x.requires_grad_(data.draw(st.booleans()))
    output = site(x).mixed
    leaves = [leaf for leaf in (x, *site.parameters()) if leaf.requires_grad]
    assert output.requires_grad == bool(leaves)
    if not leaves:
        return
    output.backward(grad)
    got = [leaf.grad for leaf in leaves]
    wanted = torch.autograd.grad(naive(site, x, shape)[0], leaves, grad, allow_unused=True)
    for leaf, a, b in zip(leaves, got, wanted, strict=True):
        zero = torch.zeros_like(leaf)
        torch.testing.assert_close(zero if a is None else a, zero if b is None else b, **EXACT)
    assert all(p.grad is None for p in (x, *site.parameters()) if not p.requires_grad)


@given(shapes)
@settings(max_examples=30, deadline=None)
def test_splitting_into_frozen_and_grown_changes_nothing(shape: Shape) -> None:
    """T frozen adapters, or T - 1 frozen and one grown: the same mixture."""
    shape = replace(shape, frozen=max(shape.frozen, 2), grows=False)
    whole = random_site(shape)
    split = random_site(replace(shape, frozen=shape.frozen - 1, grows=True))
    with torch.no_grad():
        for name, stacked in whole.frozen.named_parameters():
            getattr(split.frozen, name).copy_(stacked[:-1])
            getattr(split.grown, name).copy_(stacked[-1:])
    x, _ = random_input(shape)
    torch.testing.assert_close(split(x).mixed, whole(x).mixed, **EXACT)
    torch.testing.assert_close(split(x).alpha, whole(x).alpha, **EXACT)
    torch.testing.assert_close(split(x).penalty - _key_penalty(split), whole(x).penalty, **EXACT)


def _key_penalty(site: MixingSite) -> Tensor:
    if site.frozen.key is None:
        return torch.zeros((), dtype=torch.float64)
    return ortho_penalty(torch.cat([site.frozen.key, site.grown.key]))


def test_numerical_gradients() -> None:
    shape = Shape(MixingSpec(rank=2, weighting=Weighting.DIMENSION, query_rows=2), 2, 2, 1, True, 2, 3, 5)
    site, (x, _) = random_site(shape), random_input(shape)
    names, tensors = zip(*site.named_parameters(), strict=True)

    def mixed(x: Tensor, *values: Tensor) -> Tensor:
        return torch.func.functional_call(site, dict(zip(names, values, strict=True)), (x,)).mixed

    torch.autograd.gradcheck(mixed, (x, *tensors))


# --------------------------------------------------------------------------------------------------------------- promises

WHOLE = Shape(MixingSpec(rank=3), heads=2, head_width=4, frozen=3, grows=True, batch=4, length=5, seed=11)
EVERY_WEIGHTING = [replace(WHOLE, spec=replace(WHOLE.spec, weighting=w, query_rows=3)) for w in Weighting]
by_weighting = pytest.mark.parametrize("shape", EVERY_WEIGHTING, ids=[s.spec.weighting for s in EVERY_WEIGHTING])


def test_no_adapters_is_the_identity() -> None:
    site = random_site(replace(WHOLE, frozen=0, grows=False))
    x, _ = random_input(WHOLE)
    output = site(x)
    assert output.mixed is x
    assert output.alpha.shape == (WHOLE.batch, 0)
    assert output.penalty.item() == 0


@by_weighting
def test_a_new_site_is_nearly_a_scaled_identity(shape: Shape) -> None:
    """Initial values (docs/method.md, One site): projections N(0, 0.02), biases 0, queries and keys N(0, 1)."""
    site = MixingSite(64, 4, replace(shape.spec, rank=48), visible=0, grows=True, generator=torch.Generator().manual_seed(0))
    group = site.grown
    assert group.down.std().item() == pytest.approx(0.02, rel=0.1)
    assert group.up.std().item() == pytest.approx(0.02, rel=0.1)
    assert not group.down_bias.any() and not group.up_bias.any()
    if group.query is not None:
        assert group.query.std().item() == pytest.approx(1.0, rel=0.3)
        assert group.key.std().item() == pytest.approx(1.0, rel=0.3)


def test_frozen_adapters_are_nan_until_loaded_but_queries_are_fresh() -> None:
    site = MixingSite(8, 2, MixingSpec(rank=3), visible=2, grows=False, generator=torch.Generator().manual_seed(0))
    assert site.frozen.down.isnan().all()
    assert site.frozen.query.isfinite().all()


def test_the_seed_decides_the_initial_values() -> None:
    sites = [
        MixingSite(8, 2, MixingSpec(rank=3), visible=0, grows=True, generator=torch.Generator().manual_seed(seed))
        for seed in (1, 1, 2)
    ]
    down = [site.grown.down for site in sites]
    assert torch.equal(down[0], down[1])
    assert not torch.equal(down[0], down[2])


@by_weighting
def test_stage_one_trains_queries_only(shape: Shape) -> None:
    site = random_site(replace(shape, grows=False))
    site.requires_grad_(False)
    if site.frozen.query is not None:
        site.frozen.query.requires_grad_()
    x, grad = random_input(shape)
    site(x).mixed.backward(grad)
    assert {n for n, p in site.named_parameters() if p.grad is not None} == (
        {"frozen.query"} if site.frozen.query is not None else set()
    )


@by_weighting
def test_frozen_weights_save_nothing_that_grows_faster_than_the_bottleneck(shape: Shape) -> None:
    """Between forward and backward only x, [B, L, T·r] pre-activations and α are kept, besides the parameters themselves."""
    site = random_site(shape).requires_grad_(False)
    x, _ = random_input(shape)
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.numel()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        site(x)
    batch, length, width = x.shape
    parameters = sum(p.numel() for p in site.parameters())
    count, alpha = shape.frozen + 1, width if shape.spec.weighting is Weighting.DIMENSION else 1
    assert sum(kept.values()) <= parameters + x.numel() + batch * count * (length * shape.spec.rank + alpha)


@by_weighting
def test_an_invisible_later_adapter_changes_no_bit(shape: Shape) -> None:
    """What an old task sees is the first T adapters; that a bank holds more does not touch them."""
    bank = random_site(replace(shape, frozen=5, grows=False)).frozen
    x, _ = random_input(shape)

    def of_first(count: int) -> Tensor:
        site = random_site(replace(shape, frozen=count, grows=False))
        with torch.no_grad():
            for name, stacked in bank.named_parameters():
                getattr(site.frozen, name).copy_(stacked[:count])
        return site(x).mixed

    before = of_first(3)
    assert not torch.equal(of_first(4), before)
    assert torch.equal(of_first(3), before)


@by_weighting
def test_samples_do_not_see_each_other(shape: Shape) -> None:
    site = random_site(shape)
    x, grad = random_input(shape)
    together = site(x)
    together.mixed.backward(grad)
    for i in range(len(x)):
        alone = x[i : i + 1].detach().requires_grad_()
        output = site(alone)
        output.mixed.backward(grad[i : i + 1])
        torch.testing.assert_close(output.mixed, together.mixed[i : i + 1], **EXACT)
        torch.testing.assert_close(output.alpha, together.alpha[i : i + 1], **EXACT)
        torch.testing.assert_close(alone.grad, x.grad[i : i + 1], **EXACT)


@by_weighting
def test_the_same_call_gives_the_same_bits(shape: Shape) -> None:
    site, (x, grad) = random_site(shape, torch.float32), random_input(shape, torch.float32)
    results = []
    for _ in range(2):
        x.grad = None
        output = site(x)
        output.mixed.backward(grad)
        results.append((output.mixed, output.alpha, x.grad))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@by_weighting
def test_non_contiguous_inputs_and_gradients(shape: Shape) -> None:
    site, (x, grad) = random_site(shape), random_input(shape)
    expected = torch.autograd.grad(site(x).mixed, x, grad)[0]
    turned = x.detach().transpose(0, 1).contiguous().transpose(0, 1).requires_grad_()
    strided = grad.transpose(0, 2).contiguous().transpose(0, 2)
    torch.testing.assert_close(torch.autograd.grad(site(turned).mixed, turned, strided)[0], expected, **EXACT)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@by_weighting
def test_a_gpu_computes_the_same(shape: Shape) -> None:
    site, (x, grad) = random_site(shape), random_input(shape)
    output = site(x)
    expected = torch.autograd.grad(output.mixed, [x, *site.parameters()], grad)
    site.cuda()
    there = x.detach().cuda().requires_grad_()
    moved = site(there)
    torch.testing.assert_close(moved.mixed.cpu(), output.mixed, **EXACT)
    for got, wanted in zip(torch.autograd.grad(moved.mixed, [there, *site.parameters()], grad.cuda()), expected, strict=True):
        torch.testing.assert_close(got.cpu(), wanted, **EXACT)


# -------------------------------------------------------------------------------------------------------------- precision


@by_weighting
def test_bfloat16_is_close_and_keeps_statistics_in_float32(shape: Shape) -> None:
    site, (x, grad) = random_site(shape, torch.float32), random_input(shape, torch.float32)
    exact = site(x)
    exact.mixed.backward(grad)
    low = x.detach().bfloat16().requires_grad_()
    rough = site(low)
    rough.mixed.backward(grad.bfloat16())
    assert rough.mixed.dtype is torch.bfloat16
    assert rough.alpha.dtype is torch.float32 and rough.penalty.dtype is torch.float32
    torch.testing.assert_close(rough.mixed.float(), exact.mixed, rtol=0.05, atol=0.1)
    torch.testing.assert_close(rough.alpha, exact.alpha, rtol=0.02, atol=0.02)
    torch.testing.assert_close(low.grad.float(), x.grad, rtol=0.1, atol=0.2)
    assert all(p.grad.dtype is torch.float32 for p in site.parameters())


def test_autocast_changes_nothing_for_float32_inputs() -> None:
    site, (x, _) = random_site(WHOLE, torch.float32), random_input(WHOLE, torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = site(x)
    assert torch.equal(inside.mixed, site(x).mixed)
    assert torch.equal(inside.penalty, site(x).penalty)


def test_compiles_to_the_same_values() -> None:
    site, (x, grad) = random_site(WHOLE), random_input(WHOLE)
    expected = torch.autograd.grad(site(x).mixed, x, grad)[0]
    compiled = torch.compile(site, backend="aot_eager")
    output = compiled(x)
    torch.testing.assert_close(output.mixed, site(x).mixed, **EXACT)
    torch.testing.assert_close(torch.autograd.grad(output.mixed, x, grad)[0], expected, **EXACT)


# ---------------------------------------------------------------------------------------------------------------- penalty


@given(st.integers(1, 5), st.integers(1, 6), st.booleans(), st.integers(0, 2**31))
@settings(deadline=None)
def test_penalty_equals_the_naive_form(n: int, m: int, normalize: bool, seed: int) -> None:
    rows = torch.randn(n, m, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    torch.testing.assert_close(ortho_penalty(rows, normalize=normalize), naive_penalty(list(rows), normalize), **EXACT)


def test_orthonormal_rows_have_no_penalty() -> None:
    assert ortho_penalty(torch.eye(3, 7)).item() == 0
    assert ortho_penalty(5 * torch.eye(3, 7), normalize=True).item() == pytest.approx(0, abs=1e-12)


def test_penalty_of_unnormalised_rows_dominates_at_first() -> None:
    """docs/method.md, One site: about 515 in the loss at n = 2 over 24 sites of D = 768."""
    generator = torch.Generator().manual_seed(0)
    total = sum(ortho_penalty(torch.randn(2, 768, generator=generator)).item() for _ in range(24))
    assert 0.1 * total == pytest.approx(515, rel=0.2)


def test_stage_one_penalises_queries_and_stage_two_keys_too() -> None:
    one, two = random_site(replace(WHOLE, grows=False)), random_site(WHOLE)
    x, _ = random_input(WHOLE)
    torch.testing.assert_close(one(x).penalty, ortho_penalty(one.frozen.query), **EXACT)
    queries = ortho_penalty(torch.cat([two.frozen.query, two.grown.query]))
    torch.testing.assert_close(two(x).penalty, queries + _key_penalty(two), **EXACT)


@pytest.mark.parametrize("frozen, grows", [(1, False), (0, True)])
def test_a_single_adapter_has_no_penalty(frozen: int, grows: bool) -> None:
    site = random_site(replace(WHOLE, frozen=frozen, grows=grows))
    assert site(random_input(WHOLE)[0]).penalty.item() == 0


def test_no_penalty_when_evaluating() -> None:
    assert random_site(WHOLE).eval()(random_input(WHOLE)[0]).penalty.item() == 0


# ----------------------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize("wrong", [{"rank": 0}, {"query_rows": 0}])
def test_impossible_specs_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match="Set it to at least 1"):
        MixingSpec(**wrong)


def test_heads_must_divide_the_width() -> None:
    with pytest.raises(ConfigError, match="not a multiple of the 3"):
        AdapterGroup(1, 8, 3, MixingSpec(rank=2), None)

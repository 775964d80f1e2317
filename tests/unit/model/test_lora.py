"""LoRA at linear layers: the stacked operation against one adapter after the other, sites, patterns, and what loads."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from atlas_dist.core.types import Role, TaskKind
from atlas_dist.errors import ConfigError, DataError
from atlas_dist.methods import make_method
from atlas_dist.model.atlas import AdaptedModel
from atlas_dist.model.backbone import load_backbone
from atlas_dist.model.heads import HeadSpec
from atlas_dist.model.lora import LoraSite, ranks_in
from atlas_dist.model.lora_op import add_lora
from atlas_dist.model.mixing_spec import LoraSpec, MixingSpec, Weighting
from atlas_dist.model.targets import target_paths
from tests.oracle.naive_lora import naive_lora

IN, OUT = 6, 5
HEAD = HeadSpec(TaskKind.SINGLE, 3)


def drawn(rank: int, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """onto, x, down, up, weight; all require gradients."""
    generator = torch.Generator().manual_seed(rank)
    shapes = ((2, 3, OUT), (2, 3, IN), (rank, IN), (OUT, rank), (rank,))
    return [torch.randn(s, generator=generator, dtype=torch.float64).to(dtype).requires_grad_() for s in shapes]


def test_gradients_agree_with_finite_differences() -> None:
    assert torch.autograd.gradcheck(add_lora, drawn(4))


@pytest.mark.parametrize("asked", range(5))
def test_only_what_is_asked_for_gets_a_gradient_and_it_is_the_same(asked: int) -> None:
    whole = drawn(4)
    add_lora(*whole).square().sum().backward()
    alone = [tensor.detach().clone().requires_grad_(number == asked) for number, tensor in enumerate(whole)]
    add_lora(*alone).square().sum().backward()
    assert [tensor.grad is not None for tensor in alone] == [number == asked for number in range(5)]
    torch.testing.assert_close(alone[asked].grad, whole[asked].grad, rtol=1e-12, atol=1e-12)


def test_frozen_adapters_keep_nothing_as_wide_as_the_layer() -> None:
    """Stage one: coefficients train, and the backbone below is frozen."""
    onto, x, down, up, weight = drawn(4)
    for tensor in (onto, down, up):
        tensor.requires_grad_(False)
    kept: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        add_lora(onto, x, down, up, weight)
    assert max(kept) <= max(2 * 3 * 4, down.numel(), up.numel()), "the R-wide product and the weights, not x or the output"


def test_bfloat16_gives_the_dtype_of_the_layer_and_full_precision_to_the_weights() -> None:
    onto, x, down, up, weight = drawn(4, torch.float32)
    half = add_lora(onto.bfloat16(), x, down, up, weight)
    assert half.dtype is torch.bfloat16
    torch.testing.assert_close(half.float(), add_lora(onto, x, down, up, weight), rtol=0.05, atol=0.1)
    half.float().sum().backward()
    assert weight.grad is not None and weight.grad.dtype is torch.float32


def site(ranks: Sequence[int], own: int | None, *, weighs: bool = True) -> LoraSite:
    """With every number drawn, in float64."""
    generator = torch.Generator().manual_seed(7)
    weighting = Weighting.EXPERIENCE if weighs else Weighting.PLAIN
    spec = MixingSpec(rank=2, weighting=weighting, per_sample=False, zero_up=True, lora=LoraSpec())
    made = LoraSite(nn.Linear(IN, OUT), spec, ranks=ranks, own=own, generator=generator).double()
    with torch.no_grad():
        for tensor in (*made.parameters(), *(b for n, b in made.named_buffers() if n.endswith("scale"))):
            tensor.normal_(generator=generator)
    return made


@settings(deadline=None, max_examples=30)
@given(st.lists(st.integers(0, 3), max_size=4), st.sampled_from([None, 0, 2]), st.booleans())
def test_a_site_computes_the_formula_and_its_gradients(ranks: list[int], own: int | None, weighs: bool) -> None:
    """Adapters of any ranks, some with nothing at this layer."""
    made = site(ranks, own, weighs=weighs)
    generator = torch.Generator().manual_seed(1)
    x, output = (torch.randn(2, 4, w, dtype=torch.float64, generator=generator).requires_grad_() for w in (IN, OUT))
    adapters, alpha = [], []
    for kind in ("frozen", "grown"):
        group, start = getattr(made, kind), 0
        for index, rank in enumerate(group.ranks if group is not None else ()):
            rows = slice(start, start := start + rank)
            adapters.append((group.down[rows], group.up[:, rows], float(group.scale[index])))
            weighed = made.coefficients is not None and kind == "frozen"
            alpha.append(made.coefficients.start[index] if weighed and made.coefficients is not None else 1.0)
    wanted, found = naive_lora(x, output, adapters, alpha), made(x, output)
    torch.testing.assert_close(found.mixed, wanted, rtol=1e-12, atol=1e-12)
    assert found.alpha.shape == (2, len(ranks) + (own is not None)), "as many columns at every layer"
    inputs = [t for t in (x, output, *made.parameters()) if t.numel()]
    ours = torch.autograd.grad(found.mixed.square().sum(), inputs, allow_unused=True)
    theirs = torch.autograd.grad(wanted.square().sum(), inputs, allow_unused=True)
    for mine, reference, tensor in zip(ours, theirs, inputs, strict=True):
        zero = torch.zeros_like(tensor)
        torch.testing.assert_close(zero if mine is None else mine, zero if reference is None else reference)


def test_a_new_adapter_changes_nothing_at_first_and_starts_as_pefts_does() -> None:
    spec = MixingSpec(rank=3, weighting=Weighting.PLAIN, zero_up=True, lora=LoraSpec(alpha=12, rslora=True))
    made = LoraSite(nn.Linear(100, OUT), spec, ranks=(), own=3, generator=torch.Generator().manual_seed(0))
    x, output = torch.randn(2, 3, 100), torch.randn(2, 3, OUT)
    assert torch.equal(made(x, output).mixed, output)
    assert made.grown is not None
    assert float(made.grown.scale) == pytest.approx(12 / math.sqrt(3))
    assert 0.05 < float(made.grown.down.detach().abs().max()) <= 0.1


def test_layers_are_named_as_in_peft() -> None:
    model = load_backbone("random-tiny").model
    assert target_paths(model, ("query",)) == tuple(f"encoder.layer.{n}.attention.attention.query" for n in range(2))
    assert target_paths(model, r"encoder\.layer\.1\..*dense") == tuple(
        f"encoder.layer.1.{end}" for end in ("attention.output.dense", "intermediate.dense", "output.dense")
    )
    assert target_paths(model, ()) == tuple(
        f"encoder.layer.{n}.{end}" for n in range(2) for end in ("attention.output.dense", "output.dense")
    )
    assert len(target_paths(model, "all-linear")) == 12
    assert "pooler.dense" in target_paths(model, ("dense",))


@pytest.mark.parametrize("targets", [("query", "nowhere"), r"layer\.99", "("])
def test_a_name_that_fits_nothing_is_refused(targets: tuple[str, ...] | str) -> None:
    with pytest.raises(ConfigError, match="target_modules") as caught:
        target_paths(load_backbone("random-tiny").model, targets)
    assert caught.value.fix


def batch(side: int, text: int = 6) -> dict[str, Tensor]:
    ids = torch.randint(5, 50, (2, 1, text), generator=torch.Generator().manual_seed(3))
    pixels = torch.randn(2, 1, 3, side, side, generator=torch.Generator().manual_seed(4))
    return {"input_ids": ids, "attention_mask": ids * 0 + 1, "token_type_ids": ids * 0, "pixel_values": pixels}


@pytest.mark.parametrize("name", ["random-tiny", "random-clip", "random-siglip", "random-smolvlm"])
def test_a_grown_adapter_is_seen_by_the_next_model_as_it_was(name: str) -> None:
    backbone = load_backbone(name)
    inputs = batch(backbone.image_size, backbone.text_length(6))
    targets = ("query", "value") if name == "random-tiny" else ("q_proj", "v_proj")
    alone = MixingSpec(rank=4, weighting=Weighting.PLAIN, lora=LoraSpec(targets, alpha=8))
    with AdaptedModel(backbone.model, HEAD, alone, visible=0, grows=True, seed=1) as model:
        trained = model.trainable_names({Role.ADAPTER})
        assert all(name.endswith(("grown.down", "grown.up")) for name in trained)
        wanted, adapter, head = model(inputs).logits, model.export_adapter(), model.export_head()
    assert set(ranks_in(adapter).values()) == {4}
    weighed = MixingSpec(rank=2, weighting=Weighting.EXPERIENCE, per_sample=False, lora=LoraSpec(alpha=1))
    with AdaptedModel(backbone.model, HEAD, weighed, visible=1, grows=True, seed=2, ranks=[ranks_in(adapter)]) as model:
        model.load_adapters([adapter])
        model.load_head(head)
        with torch.no_grad():
            for parameter in (p for n, p in model.named_parameters() if n.endswith("grown.up")):
                parameter.zero_()
        torch.testing.assert_close(model(inputs).logits, wanted, rtol=1e-5, atol=1e-6)
        assert len(model.alpha_report()) == len(model.export_coefficients()) > len(ranks_in(adapter)), "own layers and its"


def test_an_adapter_of_another_backbone_or_form_is_refused() -> None:
    backbone, spec = load_backbone("random-tiny"), MixingSpec(rank=2, weighting=Weighting.PLAIN, lora=LoraSpec())
    with pytest.raises(DataError, match="no linear layer of this backbone"):
        AdaptedModel(backbone.model, HEAD, spec, visible=1, grows=False, seed=0, ranks=[{"text_model.q_proj": 2}])
    with pytest.raises(DataError, match="no LoRA adapter"):
        ranks_in({"adapter/L0.aftattn/down.weight": torch.zeros(2, 2)})


def test_job_keys_name_the_form_only_where_it_is_lora() -> None:
    for name in ("atlas", "individual_adapters"):
        told = make_method(name, {"adapter": "bottleneck"})
        assert told.spec == make_method(name, {}).spec
        assert not {"adapter", "target_modules", "lora_alpha", "rslora"} & set(told.spec.settings)
        lora = make_method(name, {"adapter": "lora", "target_modules": ["query"]})
        assert lora.spec.settings["adapter"] == "lora" and lora.spec.settings["target_modules"] == ["query"]
    both = make_method("atlas", {"adapter": "lora", "rank": 4})
    assert both.spec.alone is not None
    assert both.spec.alone == make_method("individual_adapters", {"adapter": "lora", "rank": 4, "init": "zero"}).spec


@pytest.mark.parametrize(
    ("method", "given", "said"),
    [
        ("atlas", {"rslora": True}, "bottlenecks"),
        ("atlas", {"adapter": "lora", "per_sample": True}, "per_sample"),
        ("adapter_fusion", {"adapter": "lora"}, "no such setting"),
        ("atlas_paper", {"adapter": "lora"}, "no such setting"),
    ],
)
def test_what_lora_does_not_go_with_is_refused(method: str, given: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        make_method(method, given)


def test_an_adapter_that_has_nothing_at_a_layer_leaves_its_coefficient_alone() -> None:
    """An imported adapter may act on other layers than those beside it: its coefficient there gets a gradient of 0, not NaN."""
    layer = nn.Linear(IN, OUT)
    spec = MixingSpec(rank=2, weighting=Weighting.EXPERIENCE, per_sample=False, lora=LoraSpec(("x",)))
    site = LoraSite(layer, spec, ranks=[0, 2], own=None, generator=torch.Generator().manual_seed(0))
    assert site.frozen is not None and site.coefficients is not None
    for name, slot in site.frozen.slots("x", 1).items():
        slot[0].copy_(torch.ones_like(slot[0])) if not name.endswith("scale") else slot[0].fill_(1.0)
    x = torch.randn(2, 3, IN)
    site(x, layer(x)).mixed.square().sum().backward()
    gradient = site.coefficients.start.grad
    assert gradient is not None and gradient[0] == 0 and torch.isfinite(gradient).all() and gradient[1] != 0

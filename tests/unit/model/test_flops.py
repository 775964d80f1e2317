"""The arithmetic of a step: our sums against torch's own counter, on real forward and backward passes."""

from __future__ import annotations

import doctest
from collections.abc import Mapping

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from atlas_dist.core.types import Role, TaskKind
from atlas_dist.model import flops
from atlas_dist.model.atlas import AdaptedModel
from atlas_dist.model.backbone import load_backbone
from atlas_dist.model.backbone_refs import backbone_ref
from atlas_dist.model.flops import peak_flops, sample_flops
from atlas_dist.model.heads import HeadSpec
from atlas_dist.model.mixing import AdapterGroup
from atlas_dist.model.mixing_spec import LoraSpec, MixingSpec, Weighting
from atlas_dist.model.trained import freeze_to

TEXT, BATCH = 12, 3
ONE, TWO = {Role.QUERIES, Role.HEAD}, {Role.ADAPTER, Role.HEAD}
CASES = {
    "stage one": (TaskKind.SINGLE, 3, False, Weighting.WHOLE, ONE),
    "stage two": (TaskKind.SINGLE, 3, True, Weighting.WHOLE, TWO),
    "first task": (TaskKind.PAIR, 0, True, Weighting.WHOLE, TWO),
    "plain adapter": (TaskKind.CHOICE, 0, True, Weighting.PLAIN, TWO),
    "head only": (TaskKind.SINGLE, 0, False, Weighting.PLAIN, {Role.HEAD}),
    "whole backbone": (TaskKind.SINGLE, 0, False, Weighting.PLAIN, {Role.BACKBONE, Role.HEAD}),
}


def in_place(_: object, a: list[int], b: list[int], **__: object) -> int:
    """a @ b, added into a tensor that is there: torch's counter knows only the form that makes a new one."""
    return 2 * a[0] * a[1] * b[1]


IN_PLACE = {torch.ops.aten.addmm_: in_place}


def batch_of(spec: HeadSpec, side: int, text: int = TEXT) -> Mapping[str, Tensor]:
    ids = torch.randint(5, 50, (BATCH, spec.texts, text))
    pixels = torch.randn(BATCH, spec.images, 3, side, side)
    return {"input_ids": ids, "attention_mask": ids.new_ones(ids.shape), "token_type_ids": ids * 0, "pixel_values": pixels}


def counted(model: AdaptedModel, batch: Mapping[str, Tensor]) -> tuple[float, float]:
    """FLOPs of forward and backward as torch counts them; plain attention, whose products it sees on a CPU."""
    with FlopCounterMode(display=False, custom_mapping=IN_PLACE) as forward:
        logits = model(batch).logits
    with FlopCounterMode(display=False, custom_mapping=IN_PLACE) as backward:
        logits.sum().backward()
    return forward.get_total_flops(), backward.get_total_flops()


@pytest.mark.parametrize(
    ("name", "tiles"),
    [("random-tiny", 1), ("random-clip", 1), ("random-siglip", 1), ("random-smolvlm", 1), ("random-smolvlm", 2)],
)
@pytest.mark.parametrize("case", CASES)
def test_the_sums_are_what_torch_counts(case: str, name: str, tiles: int, monkeypatch: pytest.MonkeyPatch) -> None:
    kind, visible, grows, weighting, roles = CASES[case]
    monkeypatch.setattr("atlas_dist.model.vilt.functional.scaled_dot_product_attention", by_the_book)
    backbone, spec = load_backbone(backbone_ref(name, tiles=tiles)), HeadSpec(kind, 4)
    mixing = MixingSpec(rank=8, weighting=weighting)
    with AdaptedModel(backbone.model, spec, mixing, visible=visible, grows=grows, seed=0) as model:
        for group in model.modules():
            if isinstance(group, AdapterGroup):
                torch.nn.init.normal_(group.down, std=0.02)
                torch.nn.init.normal_(group.up, std=0.02)
        freeze_to(model, model.trainable_names(roles))
        text = backbone.text_length(TEXT)
        forward, backward = counted(model, batch_of(spec, backbone.image_size, text))
        ours = sample_flops(model, text)
    assert ours is not None
    assert forward / BATCH == pytest.approx(ours.forward, rel=0.02), "up to products of a few numbers a sample"
    # torch also counts what the sites compute again on their way back (their bottleneck's attention): work, not progress.
    assert 0.98 <= backward / BATCH / ours.backward <= 1.12


@pytest.mark.parametrize("roles", [{Role.ADAPTER}, {Role.BACKBONE}])
def test_the_tokens_of_an_answer_are_counted_with_the_layer_that_names_them(
    roles: set[Role], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("atlas_dist.model.vilt.functional.scaled_dot_product_attention", by_the_book)
    backbone, spec, most = load_backbone("random-smolvlm"), HeadSpec(TaskKind.GENERATE, 0), 5
    batch = batch_of(spec, backbone.image_size) | {"answers": torch.randint(5, 50, (BATCH, most))}
    mixing = MixingSpec(rank=8, weighting=Weighting.PLAIN)
    with AdaptedModel(backbone.model, spec, mixing, visible=0, grows=True, seed=0) as model:
        freeze_to(model, model.trainable_names(roles))
        forward, backward = counted(model, batch)
        ours = sample_flops(model, TEXT, most)
    assert forward / BATCH == pytest.approx(ours.forward, rel=0.02)
    assert backward / BATCH == pytest.approx(ours.backward, rel=0.05)


@pytest.mark.parametrize("grows", [False, True])
def test_lora_adapters_are_counted_layer_by_layer(grows: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("atlas_dist.model.vilt.functional.scaled_dot_product_attention", by_the_book)
    backbone, spec = load_backbone("random-tiny"), HeadSpec(TaskKind.SINGLE, 4)
    lora = MixingSpec(rank=8, weighting=Weighting.EXPERIENCE, per_sample=False, lora=LoraSpec())
    with AdaptedModel(backbone.model, spec, lora, visible=3, grows=grows, seed=0) as model:
        freeze_to(model, model.trainable_names(TWO if grows else {Role.COEFFICIENTS, Role.HEAD}))
        forward, backward = counted(model, batch_of(spec, backbone.image_size))
        ours = sample_flops(model, TEXT)
    assert forward / BATCH == pytest.approx(ours.forward, rel=0.02)
    assert 0.9 <= backward / BATCH / ours.backward <= 1.05, "the lowest layer's input needs no gradient"


def by_the_book(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None, dropout_p: float, **_: object) -> Tensor:
    scores = query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5
    return (scores if attn_mask is None else scores + attn_mask).softmax(dim=-1) @ value


def test_more_adapters_cost_more_and_a_frozen_one_less_than_one_that_trains() -> None:
    backbone = load_backbone("random-tiny")
    found = {}
    for visible, grows in ((1, False), (4, False), (0, True)):
        with AdaptedModel(
            backbone.model, HeadSpec(TaskKind.SINGLE, 4), MixingSpec(rank=8), visible=visible, grows=grows, seed=0
        ) as m:
            freeze_to(m, m.trainable_names(TWO if grows else ONE))
            needed = sample_flops(m, TEXT)
            assert needed is not None
            found[visible] = needed
    assert found[1].forward == found[0].forward < found[4].forward
    assert found[1].backward < found[0].backward


def test_nobody_knows_the_peak_of_a_cpu() -> None:
    assert peak_flops(torch.device("cpu"), bf16=True) is None


def test_the_table_knows_devices_by_how_their_names_begin() -> None:
    assert doctest.testmod(flops).failed == 0
    assert flops._peak("NVIDIA L40S", bf16=True) == 362e12
    assert flops._peak("NVIDIA L4", bf16=False) == 30.3e12
    assert flops._peak("NVIDIA A10G", bf16=True) is None, "not an A10"


def test_each_tile_costs_a_pass_of_the_picture_tower_and_its_tokens_in_the_language_model() -> None:
    needed = {}
    for tiles in (1, 2, 3):
        backbone = load_backbone(backbone_ref("random-smolvlm", tiles=tiles))
        with AdaptedModel(backbone.model, HeadSpec(TaskKind.SINGLE, 4), MixingSpec(rank=8), visible=0, grows=True, seed=0) as m:
            freeze_to(m, m.trainable_names(TWO))
            needed[tiles] = sample_flops(m, TEXT).total
    assert needed[2] > 3 * needed[1] and needed[3] > 1.7 * needed[2]

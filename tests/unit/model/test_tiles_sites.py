"""Adapters on a picture tower that sees every tile as a row of its own: a site sees the tokens of all tiles of a sample, its α is
the sample's, and what trains, is computed again, is served or is counted is so as with one tile."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from transformers import Idefics3Config, LlamaConfig

from atlas_dist.core.types import NO_TOKEN, Role, TaskKind
from atlas_dist.model.atlas import AdaptedModel
from atlas_dist.model.backbone import Backbone, load_backbone
from atlas_dist.model.backbone_refs import backbone_ref
from atlas_dist.model.backbones import ARCHITECTURES
from atlas_dist.model.experience import ExperienceSite
from atlas_dist.model.flops import sample_flops
from atlas_dist.model.fusion import FusionSite
from atlas_dist.model.heads import HeadSpec, answer_loss
from atlas_dist.model.layers import LayerRuns
from atlas_dist.model.lora import LoraSite
from atlas_dist.model.mixing import AdapterGroup, MixingSite
from atlas_dist.model.mixing_spec import AttendOver, LoraSpec, MixingSpec, Weighting
from atlas_dist.model.preprocessor import usual_form
from atlas_dist.model.site_hook import rows_apart, rows_joined
from atlas_dist.model.trained import freeze_to
from tests.kits.towers import texts
from tests.oracle.naive_mixing import NaiveAdapter, naive_site

ROWS, PATCHES, SAMPLES = 5, 16, 3
SINGLE = HeadSpec(TaskKind.SINGLE, 3)
WRITES = HeadSpec(TaskKind.GENERATE, 0)
PLAIN = MixingSpec(rank=4, weighting=Weighting.PLAIN)
LORA = MixingSpec(rank=4, weighting=Weighting.EXPERIENCE, per_sample=False, lora=LoraSpec(targets=("out_proj", "fc2", "proj")))


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return load_backbone(backbone_ref("random-smolvlm", tiles=2))


def batch(backbone: Backbone, head: HeadSpec, samples: int = SAMPLES) -> dict[str, Tensor]:
    many = texts(backbone, [("what is it?", f"answer {n}") for n in range(samples * head.texts)])
    split = {name: values.view(samples, head.texts, -1) for name, values in many.items()}
    side = backbone.image_size
    pictures = torch.randn(samples, head.images, 3, side, side, generator=torch.Generator().manual_seed(0)).clamp(-1, 1)
    answers = torch.tensor([[50, 60], [70, NO_TOKEN], [80, 90]])
    return {**split, "pixel_values": pictures, **({"answers": answers} if head.kind.generates else {})}


def filled(model: AdaptedModel) -> AdaptedModel:
    """Numbers instead of the NaN of what is not loaded yet, large enough to matter."""
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, value in (*model.sites.named_parameters(), *model.sites.named_buffers()):
            if value.is_floating_point() and ".fusion." not in name:
                value.normal_(0.0, 0.3, generator=draw)
                if name.endswith("key") and "frozen" in name:
                    value.abs_().add_(0.5)
    return model


def seen_at(model: AdaptedModel, given: dict[str, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
    """What goes through each site in one pass, in and out."""
    found: dict[str, tuple[Tensor, Tensor]] = {}

    def note(name: str) -> Callable[..., None]:
        def keep(_: nn.Module, inputs: tuple[Tensor, ...], output: object) -> None:
            found[name] = (inputs[-1], output.mixed)  # type: ignore[attr-defined]

        return keep

    handles = [site.register_forward_hook(note(name)) for name, site in model.named_sites()]
    model(given)
    for handle in handles:
        handle.remove()
    return found


@torch.no_grad()
@pytest.mark.parametrize("weighting", [Weighting.WHOLE, Weighting.DIMENSION])
@pytest.mark.parametrize("over", list(AttendOver))
def test_a_sites_mixture_is_that_of_a_loop_over_samples_with_all_their_tiles(
    backbone: Backbone, weighting: Weighting, over: AttendOver
) -> None:
    spec = MixingSpec(rank=4, weighting=weighting, attend_over=over, query_rows=3)
    with AdaptedModel(backbone.model, SINGLE, spec, visible=2, grows=False, seed=0) as model:
        given, layers = batch(backbone, SINGLE), {}
        filled(model).eval()
        places = {site.name: site for site in backbone.sites}
        assert {place.rows for name, place in places.items() if name.startswith("V")} == {ROWS}
        hooks = [
            backbone.model.get_submodule(place.path).register_forward_hook(
                lambda _m, _i, out, name=name: layers.update({name: out}), prepend=True
            )
            for name, place in places.items()
        ]
        found = seen_at(model, given)
        for hook in hooks:
            hook.remove()
        alpha = model.alpha_report()
        for name, site in model.named_sites():
            assert isinstance(site, MixingSite) and isinstance(site.frozen, AdapterGroup)
            group, place, output = site.frozen, places[name], layers[name]
            assert group.query is not None and group.key is not None
            adapters = [
                NaiveAdapter(d, b, u, c, q.view(-1, q.shape[-1]), k.view(-1, k.shape[-1]))
                for d, b, u, c, q, k in zip(
                    group.down, group.down_bias, group.up, group.up_bias, group.query, group.key, strict=True
                )
            ]
            assert len(output) == SAMPLES * place.rows
            for sample in range(SAMPLES):  # row by row out of the layer, one sample after the other
                tokens = torch.cat(list(output[sample * place.rows : (sample + 1) * place.rows]))[None]
                mixed, weights = naive_site(
                    tokens, adapters, heads=place.heads, weighting=weighting.value, attend_over=over.value
                )
                torch.testing.assert_close(found[name][1][sample], mixed[0], rtol=1e-4, atol=1e-4)
                ours = alpha[name][sample].view(2, -1)
                torch.testing.assert_close(ours, torch.cat(weights), rtol=1e-4, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize(
    ("spec", "kind", "fuses"),
    [
        (MixingSpec(rank=4), MixingSite, False),
        (MixingSpec(rank=4, weighting=Weighting.DIMENSION), MixingSite, False),
        (MixingSpec(rank=4, weighting=Weighting.EXPERIENCE), ExperienceSite, False),
        (PLAIN, FusionSite, True),
        (LORA, LoraSite, False),
    ],
)
def test_whatever_the_form_a_row_of_a_batch_is_a_sample_and_its_numbers_are_its_own(
    backbone: Backbone, spec: MixingSpec, kind: type[nn.Module], fuses: bool
) -> None:
    given = batch(backbone, SINGLE)
    with AdaptedModel(backbone.model, SINGLE, spec, visible=2, grows=not fuses, seed=0, fuses=fuses) as model:
        filled(model).eval()
        found = seen_at(model, given)
        logits, alpha = model(given).logits, model.alpha_report()
        assert {name for name, _ in model.named_sites() if "connector" in name} == (
            {"model.connector.modality_projection.proj"} if kind is LoraSite else set()
        )
        for name, site in model.named_sites():
            assert isinstance(site, kind) and len(alpha[name]) == len(found[name][0]) == SAMPLES
            if name.startswith("V") or "vision_model" in name:
                assert found[name][0].shape[1] == found[name][1].shape[1] == ROWS * PATCHES
        for sample in range(SAMPLES):
            alone = model({name: values[sample : sample + 1] for name, values in given.items()}).logits
            torch.testing.assert_close(alone[0], logits[sample], rtol=1e-4, atol=1e-4)
            for name, weights in model.alpha_report().items():
                torch.testing.assert_close(weights[0], alpha[name][sample], rtol=1e-4, atol=1e-4)


def test_rows_of_a_sample_come_together_and_apart_again_without_a_copy() -> None:
    tokens = torch.arange(2 * 3 * 4 * 5).view(6, 4, 5)
    together = rows_joined(tokens, 3)
    assert together.shape == (2, 12, 5) and together.data_ptr() == tokens.data_ptr()
    assert torch.equal(together[1, 4:8], tokens[4])
    assert torch.equal(rows_apart(together, 3), tokens)
    assert rows_joined(tokens, 1) is tokens is rows_apart(tokens, 1)


def gradients(backbone: Backbone, head: HeadSpec, spec: MixingSpec, runs: LayerRuns) -> dict[str, Tensor]:
    given = batch(backbone, head)
    with AdaptedModel(backbone.model, head, spec, visible=0, grows=True, seed=0, runs=runs) as model:
        freeze_to(model, model.trainable_names({Role.ADAPTER, Role.HEAD}))
        logits, _ = model.train()(given)
        loss = answer_loss(logits, given["answers"]) if head.kind.generates else logits.square().mean(1)
        loss.sum().backward()
        assert not [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
        return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("head", [SINGLE, WRITES])
@pytest.mark.parametrize("spec", [PLAIN, LORA])
def test_it_learns_the_same_to_the_last_bit_when_layers_are_computed_again(
    backbone: Backbone, head: HeadSpec, spec: MixingSpec
) -> None:
    plain, again = (gradients(backbone, head, spec, LayerRuns(recompute=recompute)) for recompute in (False, True))
    assert plain.keys() == again.keys() and all(torch.equal(plain[name], again[name]) for name in plain)
    assert any("V0" in name or "vision__model" in name for name in plain)


def test_a_backbone_that_trains_gets_a_gradient_everywhere() -> None:
    own = load_backbone(backbone_ref("random-smolvlm", tiles=2))
    with AdaptedModel(own.model, SINGLE, MixingSpec(rank=4), visible=0, grows=False, seed=0) as model:
        freeze_to(model, model.trainable_names({Role.BACKBONE, Role.HEAD}))
        logits, _ = model(batch(own, SINGLE))
        logits.square().sum().backward()
        assert not [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]


@pytest.mark.parametrize(("tiles", "tokens", "tera"), [(1, 64, 0.51), (2, 320, 2.5), (3, 640, 5.1), (4, 1088, 8.7)])
def test_what_tiles_cost_at_the_released_size(tiles: int, tokens: int, tera: float) -> None:
    """SmolVLM-256M without weights: picture tokens of the language model, and FLOPs (10^12) of a training step of a sample with
    an adapter of width 48 and a text of 40 tokens. The table in docs/method.md, A decoder."""
    idefics3 = ARCHITECTURES["idefics3"]
    llama = {"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "vocab_size": 49280, "pad_token_id": 2}
    heads = {"num_attention_heads": 9, "num_key_value_heads": 3, "max_position_embeddings": 8192}
    tower = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
    config = Idefics3Config(
        text_config=LlamaConfig(**llama, **heads).to_dict(),
        vision_config={**tower, "image_size": 512, "patch_size": 16},
        scale_factor=4,
        image_token_id=49190,
    )
    with torch.device("meta"):
        model = idefics3.model_class(config)
        idefics3.prepare(model)
    if tiles > 1:
        assert idefics3.tiling is not None
        idefics3.tiling.cut(model, replace(usual_form(idefics3), tiles=tiles))
    limits, (_, reads) = idefics3.limits(model), idefics3.towers(model)
    assert (limits.image_size, reads.own_tokens) == (512 * tiles, tokens)
    spec = MixingSpec(rank=48, weighting=Weighting.EXPERIENCE)
    with AdaptedModel(model, HeadSpec(TaskKind.SINGLE, 10), spec, visible=0, grows=True, seed=0) as adapted:
        freeze_to(adapted, adapted.trainable_names({Role.ADAPTER, Role.HEAD}))
        assert sample_flops(adapted, 40).total / 1e12 == pytest.approx(tera, rel=0.02)

"""What both architectures of two towers (CLIP, SigLIP) must do as backbones: towers of different shape, joined without
parameters; sites, every kind, training."""

from __future__ import annotations

import pytest
import torch

from atlas_dist.core.types import Role, TaskKind
from atlas_dist.model.atlas import AdaptedModel
from atlas_dist.model.backbone import Backbone, backbone_digest, load_backbone
from atlas_dist.model.backbone_refs import BACKBONES
from atlas_dist.model.backbones import ARCHITECTURES, architecture_of
from atlas_dist.model.heads import HeadSpec
from atlas_dist.model.mixing_spec import MixingSpec, Weighting
from atlas_dist.model.trained import freeze_to
from atlas_dist.train.context import store_products_in_bf16
from tests.kits.towers import PICTURE, TEXT, batch, pixels, texts

SPEC = MixingSpec(rank=4)


@pytest.fixture(scope="module", params=["random-clip", "random-siglip"])
def towers(request: pytest.FixtureRequest) -> Backbone:
    return load_backbone(request.param)


# ----------------------------------------------------------------------------------------------------------------- sites


def test_sites_are_found_in_the_order_data_flows_with_the_width_of_their_tower(towers: Backbone) -> None:
    names = [f"{t}{n}.{k}" for t, depth in (("T", 2), ("V", 3)) for n in range(depth) for k in ("aftattn", "aftmlp")]
    assert [site.name for site in towers.sites] == names
    assert {(s.name[0], s.width, s.heads, s.text_first) for s in towers.sites} == {("T", TEXT, 4, True), ("V", PICTURE, 6, False)}
    seen: list[tuple[str, int]] = []
    hooks = [
        towers.model.get_submodule(site.path).register_forward_hook(
            lambda _m, _i, out, name=site.name: seen.append((name, out.shape[-1]))
        )
        for site in towers.sites
    ]
    towers.encode(**texts(towers, [("in order",)]), pixel_values=pixels(1))
    for hook in hooks:
        hook.remove()
    assert seen == [(site.name, site.width) for site in towers.sites]


def test_a_site_is_what_is_added_to_the_residual_stream(towers: Backbone) -> None:
    """Silencing every site must leave each tower's embeddings untouched until its last LayerNorm."""
    given = texts(towers, [("nothing happens",)])
    model = towers.model
    modules = [model.get_submodule(site.path) for site in towers.sites]
    hooks = [module.register_forward_hook(lambda _module, _inputs, output: output * 0) for module in modules]
    (text, picture), _ = towers.encode_all(**given, pixel_values=pixels(1))
    for hook in hooks:
        hook.remove()
    embedded = model.text_model.embeddings(given["input_ids"])
    torch.testing.assert_close(text, model.text_model.final_layer_norm(embedded), rtol=0, atol=1e-6)
    seen, last = model.vision_model.embeddings(pixels(1)), model.vision_model.post_layernorm
    # CLIP has another norm above the embeddings, and pools before the last one.
    seen = model.vision_model.pre_layrnorm(seen) if towers.architecture is ARCHITECTURES["clip"] else last(seen)
    torch.testing.assert_close(picture, seen, rtol=0, atol=1e-6)


def test_the_digest_sees_the_configuration_inside_a_tower(towers: Backbone) -> None:
    other = load_backbone(towers.name)
    assert other.digest == towers.digest != load_backbone(towers.name, seed=1).digest
    other.model.config.text_config.transformers_version = "0.0"
    assert backbone_digest(other.model, other.tokenizer) == towers.digest
    other.model.config.vision_config.layer_norm_eps = 1e-3
    assert backbone_digest(other.model, other.tokenizer) != towers.digest


def test_every_parameter_that_a_backbone_method_trains_gets_a_gradient(towers: Backbone) -> None:
    own = load_backbone(towers.name)
    with AdaptedModel(own.model, HeadSpec(TaskKind.SINGLE, 3), SPEC, visible=0, grows=False, seed=0) as model:
        freeze_to(model, model.trainable_names({Role.BACKBONE, Role.HEAD}))
        logits, _ = model(batch(own, HeadSpec(TaskKind.SINGLE, 3)))
        logits.square().sum().backward()
        assert not [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
        assert model.export_backbone().keys() == {n for n, _ in own.model.named_parameters()}


@pytest.mark.parametrize("kind", [TaskKind.SINGLE, TaskKind.PAIR, TaskKind.CHOICE, TaskKind.ANSWERS])
@pytest.mark.parametrize("weighting", [w for w in Weighting if w is not Weighting.EXPERIENCE])
def test_every_kind_trains_under_every_weighting_and_travels(kind: TaskKind, weighting: Weighting, towers: Backbone) -> None:
    """Two towers of different width: shapes follow the site, heads the pooled output; what is exported computes the same bits."""
    head, spec = HeadSpec(kind, 2 if kind is TaskKind.PAIR else 3), MixingSpec(rank=4, weighting=weighting)
    with AdaptedModel(towers.model, head, spec, visible=0, grows=True, seed=1) as first:
        earlier = first.export_adapter()
    given = batch(towers, head)
    with AdaptedModel(towers.model, head, spec, visible=1, grows=True, seed=2) as model:
        model.load_adapters([earlier])
        freeze_to(model, model.trainable_names({Role.ADAPTER, Role.HEAD}))
        model.train()
        logits, penalty = model(given)
        (logits.square().sum() + penalty).backward()
        assert logits.shape == (3, head.classes)
        assert all(p.grad is not None and bool(p.grad.any()) for p in model.head.parameters())
        assert bool(penalty > 0) is (weighting is not Weighting.PLAIN)
        adapter, queries, tensors = model.export_adapter(), model.export_queries(), model.export_head()
    assert adapter["adapter/T0.aftmlp/up.weight"].shape == (TEXT, 4)
    assert adapter["adapter/V2.aftmlp/up.weight"].shape == (PICTURE, 4)
    assert next(iter(tensors.values())).shape[-1] in (head.images * towers.width, 2 * head.images * towers.width)
    answers = []
    for _ in range(2):
        with AdaptedModel(towers.model, head, spec, visible=2, grows=False, seed=3) as again:
            again.load_adapters([earlier, adapter])
            again.load_queries(queries)
            again.load_head(tensors)
            again.eval()
            with torch.no_grad():
                answers.append(again(given).logits)
            alpha = again.alpha_report()
    assert torch.equal(*answers)
    torch.testing.assert_close(answers[0], logits.detach(), rtol=1e-4, atol=1e-4)
    for site in towers.sites:
        wide = (site.width,) if weighting is Weighting.DIMENSION else ()
        assert alpha[site.name].shape == (3, 2, *wide)


def test_adapters_are_fused_at_sites_of_both_widths(towers: Backbone) -> None:
    head, spec = HeadSpec(TaskKind.SINGLE, 3), MixingSpec(rank=4, weighting=Weighting.PLAIN)
    with AdaptedModel(towers.model, head, spec, visible=0, grows=True, seed=1) as first:
        earlier = first.export_adapter()
    with AdaptedModel(towers.model, head, spec, visible=2, grows=False, seed=2, fuses=True) as model:
        model.load_adapters([earlier, earlier])
        logits, _ = model(batch(towers, head))
        fusion = model.export_fusion()
    assert bool(torch.isfinite(logits).all())
    assert fusion["fusion/T0.aftattn/value"].shape == (TEXT, TEXT)
    assert fusion["fusion/V0.aftattn/value"].shape == (PICTURE, PICTURE)


def test_a_step_in_bfloat16(towers: Backbone) -> None:
    own = load_backbone(towers.name)
    store_products_in_bf16(own.model)
    head = HeadSpec(TaskKind.CHOICE, 3)
    with AdaptedModel(own.model, head, SPEC, visible=0, grows=True, seed=1) as model:
        freeze_to(model, model.trainable_names({Role.ADAPTER, Role.HEAD}))
        model.train()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits, penalty = model(batch(own, head))
        (logits.float().square().sum() + penalty).backward()
        trained = [p for p in model.parameters() if p.requires_grad]
        assert all(p.grad is not None and bool(torch.isfinite(p.grad).all()) for p in trained)


def test_every_row_is_found_by_name_and_by_model(towers: Backbone) -> None:
    assert all(name == row.name for name, row in ARCHITECTURES.items())
    assert {ref.architecture for ref in BACKBONES.values()} == set(ARCHITECTURES)
    assert architecture_of(towers.model) is towers.architecture is ARCHITECTURES[towers.architecture.name]

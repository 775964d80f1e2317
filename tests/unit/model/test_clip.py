"""CLIP as a backbone: two towers of different shape, joined without parameters; strict loading; sites, lowest layers, every
kind."""

from __future__ import annotations

import string
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import CLIPModel, CLIPTokenizer

from atlas_dist.core.types import Role, TaskKind
from atlas_dist.data.decode import TextEncoder
from atlas_dist.errors import ConfigError, DataError
from atlas_dist.model.atlas import AdaptedModel
from atlas_dist.model.backbone import (
    BACKBONES,
    Backbone,
    BackboneRef,
    backbone_digest,
    backbone_ref,
    load_backbone,
    store_products_in_bf16,
)
from atlas_dist.model.backbones import ARCHITECTURES, architecture_of
from atlas_dist.model.heads import HeadSpec
from atlas_dist.model.mixing import MixingSpec, Weighting
from atlas_dist.model.trained import freeze_to
from tests.kits.waits import no_host_sync

TEXT, PICTURE, SHARED = 32, 48, 24  # widths of the random model's towers and of the space they share
SPEC = MixingSpec(rank=4)


@pytest.fixture(scope="module")
def clip() -> Backbone:
    return load_backbone("random-clip")


def pixels(count: int, seed: int = 0) -> Tensor:
    return torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(seed))


def texts(backbone: Backbone, given: list[tuple[str, ...]], length: int = 12) -> dict[str, Tensor]:
    """As the stream makes them: padded to a fixed length."""
    names = ("input_ids", "attention_mask", "token_type_ids")
    return dict(zip(names, map(torch.from_numpy, TextEncoder(backbone.tokenizer, length)(given)), strict=True))


def test_a_mask_of_pairs_is_what_transformers_makes_of_padding(clip: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU the text tower gets one, so that the host need not wait for the mask's values."""
    from atlas_dist.model.backbones import clip as module

    for given in ([("a cat",), ("what is to be seen here ?",)], [("aa",), ("bb",)]):
        inputs = {**texts(clip, given), "pixel_values": pixels(2)}
        with monkeypatch.context() as as_ever, torch.no_grad():
            wanted = clip.encode_all(**inputs)
            as_ever.setattr(module, "_text_mask", module._causal_pairs)
            with no_host_sync("cpu"):
                found = clip.encode_all(**inputs)
        torch.testing.assert_close(found.pooled, wanted.pooled, rtol=1e-5, atol=1e-5)
        # Of every token, padding included: adapters see all of them.
        torch.testing.assert_close(found.hidden[0], wanted.hidden[0], rtol=1e-5, atol=1e-5)


def clip_tokenizer() -> CLIPTokenizer:
    """CLIP's own kind, letter by letter: it pads with its end token, and has end tokens between two segments."""
    letters = list(string.ascii_lowercase + "?.")
    words = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={word: number for number, word in enumerate(words)}, merges=[])


def saved(folder: Path, backbone: Backbone) -> BackboneRef:
    backbone.model.save_pretrained(folder)
    backbone.tokenizer.save_pretrained(folder)
    return BackboneRef("saved", str(folder), architecture="clip")


def edit_weights(folder: Path, edit: dict[str, Tensor | None]) -> None:
    """Set, or with None remove, tensors of a saved checkpoint."""
    file = folder / "model.safetensors"
    weights = {**load_file(file), **edit}
    save_file({name: value for name, value in weights.items() if value is not None}, file, metadata={"format": "pt"})


# ----------------------------------------------------------------------------------------------------------------- sites


def test_sites_are_found_in_the_order_data_flows_with_the_width_of_their_tower(clip: Backbone) -> None:
    names = [f"{t}{n}.{k}" for t, depth in (("T", 2), ("V", 3)) for n in range(depth) for k in ("aftattn", "aftmlp")]
    assert [site.name for site in clip.sites] == names
    assert {(s.name[0], s.width, s.heads, s.text_first) for s in clip.sites} == {("T", TEXT, 4, True), ("V", PICTURE, 6, False)}
    seen: list[tuple[str, int]] = []
    hooks = [
        clip.model.get_submodule(site.path).register_forward_hook(
            lambda _m, _i, out, name=site.name: seen.append((name, out.shape[-1]))
        )
        for site in clip.sites
    ]
    clip.encode(**texts(clip, [("in order",)]), pixel_values=pixels(1))
    for hook in hooks:
        hook.remove()
    assert seen == [(site.name, site.width) for site in clip.sites]


def test_a_site_is_what_is_added_to_the_residual_stream(clip: Backbone) -> None:
    """Silencing every site must leave each tower's embeddings untouched until its last LayerNorm."""
    given = texts(clip, [("nothing happens",)])
    model = clip.model
    modules = [model.get_submodule(site.path) for site in clip.sites]
    hooks = [module.register_forward_hook(lambda _module, _inputs, output: output * 0) for module in modules]
    (text, picture), _ = clip.encode_all(**given, pixel_values=pixels(1))
    for hook in hooks:
        hook.remove()
    embedded = model.text_model.embeddings(given["input_ids"])
    torch.testing.assert_close(text, model.text_model.final_layer_norm(embedded), rtol=0, atol=1e-6)
    seen = model.vision_model.pre_layrnorm(model.vision_model.embeddings(pixels(1)))
    torch.testing.assert_close(picture, seen, rtol=0, atol=1e-6)


# ---------------------------------------------------------------------------------------------------------------- encode


def test_the_pooled_output_is_both_embeddings_of_the_stock_model_and_their_product(clip: Backbone) -> None:
    given = texts(clip, [("a red square",), ("two dogs and a cat",)])
    pooled = clip.encode(**given, pixel_values=pixels(2))
    assert pooled.shape == (2, clip.width) == (2, 3 * SHARED)
    stock = CLIPModel(clip.model.config).eval()
    stock.load_state_dict(clip.model.state_dict())
    said = stock(input_ids=given["input_ids"], attention_mask=given["attention_mask"], pixel_values=pixels(2))
    scale = SHARED**0.5
    text, picture, product = pooled.split(SHARED, dim=1)
    torch.testing.assert_close(text, scale * said.text_embeds, rtol=0, atol=1e-5)
    torch.testing.assert_close(picture, scale * said.image_embeds, rtol=0, atol=1e-5)
    cosine = (said.text_embeds * said.image_embeds).sum(dim=1)
    torch.testing.assert_close(product.sum(dim=1), SHARED * cosine, rtol=0, atol=1e-4)


@pytest.mark.parametrize("own", [True, False], ids=["padded with the end token", "padded with [PAD]"])
def test_padding_changes_nothing_and_both_segments_are_read(own: bool, clip: Backbone) -> None:
    tokenizer = clip_tokenizer() if own else clip.tokenizer
    asked = Backbone("asked", clip.model, tokenizer, clip.digest, clip.architecture)
    if own:
        assert tokenizer.pad_token_id == tokenizer.eos_token_id
    long = texts(asked, [("a dog?",), ("is it", "a cat"), ("is it", "a bat")], length=30)
    together = asked.encode(**long, pixel_values=pixels(1).expand(3, -1, -1, -1))
    for row, text in enumerate([("a dog?",), ("is it", "a cat"), ("is it", "a bat")]):
        alone = texts(asked, [text], length=30)
        length = int(alone["attention_mask"].sum())
        cut = {name: values[:, :length] for name, values in alone.items()}
        torch.testing.assert_close(asked.encode(**cut, pixel_values=pixels(1))[0], together[row], rtol=0, atol=1e-5)
    assert not torch.allclose(together[1], together[2], atol=1e-3)


def test_both_the_text_and_the_picture_matter_and_a_mask_of_pixels_is_refused(clip: Backbone) -> None:
    given = texts(clip, [("a dog",)])
    pooled = clip.encode(**given, pixel_values=pixels(1))
    assert not torch.allclose(clip.encode(**texts(clip, [("a cat",)]), pixel_values=pixels(1)), pooled, atol=1e-3)
    assert not torch.allclose(clip.encode(**given, pixel_values=pixels(1, seed=1)), pooled, atol=1e-3)
    with pytest.raises(DataError, match="no pixel mask"):
        clip.encode(**given, pixel_values=pixels(1), pixel_mask=torch.ones(1, 32, 32))


# --------------------------------------------------------------------------------------------------------------- loading


def test_a_folder_loads_strictly_and_is_the_same_backbone(tmp_path: Path, clip: Backbone) -> None:
    ref = saved(tmp_path, clip)
    loaded = load_backbone(ref)
    assert (loaded.digest, loaded.architecture.name) == (clip.digest, "clip")
    given = texts(clip, [("the same",)])
    again, pooled = (backbone.encode(**given, pixel_values=pixels(1)) for backbone in (loaded, clip))
    torch.testing.assert_close(again, pooled, rtol=0, atol=1e-5)  # a file's weights lie elsewhere in memory: other last bits
    edit_weights(tmp_path, {f"{tower}_model.embeddings.position_ids": torch.arange(48)[None] for tower in ("text", "vision")})
    assert load_backbone(ref).digest == clip.digest  # what old versions of transformers saved as well
    edit_weights(tmp_path, {"text_projection.weight": None, "perceiver.weight": torch.zeros(2)})
    with pytest.raises(DataError, match=r"missing: text_projection\.weight; unexpected: perceiver\.weight"):
        load_backbone(ref)


def test_clips_own_tokenizer_travels_with_the_folder(tmp_path: Path, clip: Backbone) -> None:
    own = Backbone("own", clip.model, clip_tokenizer(), "", clip.architecture)
    loaded = load_backbone(saved(tmp_path, own))
    assert loaded.digest != clip.digest
    given, expected = texts(loaded, [("is it", "a cat")]), texts(own, [("is it", "a cat")])
    assert all(torch.equal(given[name], expected[name]) for name in expected)


def test_a_checkpoint_of_another_architecture_is_refused_with_what_to_set(tmp_path: Path, clip: Backbone) -> None:
    saved(tmp_path, clip)
    with pytest.raises(ConfigError, match=r"type 'clip'; 'vilt' was asked for\. Set backbone\.architecture=clip"):
        load_backbone(backbone_ref("mine", str(tmp_path)))
    assert load_backbone(backbone_ref("mine", str(tmp_path), architecture="clip")).digest == clip.digest
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ConfigError, match=r"type 'bert'.*one of: clip, vilt"):
        load_backbone(backbone_ref("mine", str(tmp_path)))


def test_names_that_do_not_fit_are_refused_with_the_valid_ones() -> None:
    with pytest.raises(ConfigError, match=r"Unknown architecture 'blip'.*clip, vilt"):
        load_backbone(backbone_ref("mine", "somewhere", architecture="blip"))
    with pytest.raises(ConfigError, match=r"'tiny' is of the architecture 'vilt', not 'clip'"):
        backbone_ref("tiny", architecture="clip")
    with pytest.raises(ConfigError, match="A Linear is no backbone: there are clip, vilt"):
        architecture_of(nn.Linear(2, 2))


def test_every_row_is_found_by_name_and_by_model(clip: Backbone) -> None:
    assert all(name == row.name for name, row in ARCHITECTURES.items())
    assert {ref.architecture for ref in BACKBONES.values()} == set(ARCHITECTURES)
    assert architecture_of(clip.model) is clip.architecture is ARCHITECTURES["clip"]


def test_the_digest_sees_the_configuration_inside_a_tower(clip: Backbone) -> None:
    other = load_backbone("random-clip")
    assert other.digest == clip.digest != load_backbone("random-clip", seed=1).digest
    other.model.config.text_config.transformers_version = "0.0"
    assert backbone_digest(other.model, other.tokenizer) == clip.digest
    other.model.config.vision_config.layer_norm_eps = 1e-3
    assert backbone_digest(other.model, other.tokenizer) != clip.digest


# ----------------------------------------------------------------------------------------------- what is built on a backbone


def test_the_lowest_layers_are_those_of_both_towers(clip: Backbone) -> None:
    names = {name for name, _ in clip.model.named_parameters()}
    kept = {layers: clip.architecture.kept(clip.model, layers) for layers in (0, 1)}
    assert kept[0] == frozenset()
    assert "logit_scale" not in names  # the temperature of CLIP's own loss is a weight that nothing trains
    moving = names - kept[1]
    assert not [n for n in moving if "embedding" in n or "layers.0." in n or "pre_layrnorm" in n]
    assert {n.split(".")[3] for n in moving if n.startswith("vision_model.encoder")} == {"1", "2"}
    assert {"text_projection.weight", "text_model.final_layer_norm.bias", "vision_model.post_layernorm.bias"} <= moving
    with pytest.raises(ConfigError, match="has 2 layers"):
        clip.architecture.kept(clip.model, 2)


def test_every_parameter_that_a_backbone_method_trains_gets_a_gradient() -> None:
    own = load_backbone("random-clip")
    with AdaptedModel(own.model, HeadSpec(TaskKind.SINGLE, 3), SPEC, visible=0, grows=False, seed=0) as model:
        freeze_to(model, model.trainable_names({Role.BACKBONE, Role.HEAD}))
        logits, _ = model(batch(own, HeadSpec(TaskKind.SINGLE, 3)))
        logits.square().sum().backward()
        assert not [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
        assert model.export_backbone().keys() == {n for n, _ in own.model.named_parameters()}


def batch(clip: Backbone, head: HeadSpec, samples: int = 3) -> dict[str, Tensor]:
    many = texts(clip, [("what is it?", f"answer {n}") for n in range(samples * head.texts)])
    split = {name: values.view(samples, head.texts, -1) for name, values in many.items()}
    return {**split, "pixel_values": pixels(samples * head.images).view(samples, head.images, 3, 32, 32)}


@pytest.mark.parametrize("kind", [TaskKind.SINGLE, TaskKind.PAIR, TaskKind.CHOICE, TaskKind.ANSWERS])
@pytest.mark.parametrize("weighting", [w for w in Weighting if w is not Weighting.EXPERIENCE])
def test_every_kind_trains_under_every_weighting_and_travels(kind: TaskKind, weighting: Weighting, clip: Backbone) -> None:
    """Two towers of different width: shapes follow the site, heads the pooled output; what is exported computes the same bits."""
    head, spec = HeadSpec(kind, 2 if kind is TaskKind.PAIR else 3), MixingSpec(rank=4, weighting=weighting)
    with AdaptedModel(clip.model, head, spec, visible=0, grows=True, seed=1) as first:
        earlier = first.export_adapter()
    given = batch(clip, head)
    with AdaptedModel(clip.model, head, spec, visible=1, grows=True, seed=2) as model:
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
    assert next(iter(tensors.values())).shape[-1] in (head.images * clip.width, 2 * head.images * clip.width)
    answers = []
    for _ in range(2):
        with AdaptedModel(clip.model, head, spec, visible=2, grows=False, seed=3) as again:
            again.load_adapters([earlier, adapter])
            again.load_queries(queries)
            again.load_head(tensors)
            again.eval()
            with torch.no_grad():
                answers.append(again(given).logits)
            alpha = again.alpha_report()
    assert torch.equal(*answers)
    torch.testing.assert_close(answers[0], logits.detach(), rtol=1e-4, atol=1e-4)
    for site in clip.sites:
        wide = (site.width,) if weighting is Weighting.DIMENSION else ()
        assert alpha[site.name].shape == (3, 2, *wide)


def test_adapters_are_fused_at_sites_of_both_widths(clip: Backbone) -> None:
    head, spec = HeadSpec(TaskKind.SINGLE, 3), MixingSpec(rank=4, weighting=Weighting.PLAIN)
    with AdaptedModel(clip.model, head, spec, visible=0, grows=True, seed=1) as first:
        earlier = first.export_adapter()
    with AdaptedModel(clip.model, head, spec, visible=2, grows=False, seed=2, fuses=True) as model:
        model.load_adapters([earlier, earlier])
        logits, _ = model(batch(clip, head))
        fusion = model.export_fusion()
    assert bool(torch.isfinite(logits).all())
    assert fusion["fusion/T0.aftattn/value"].shape == (TEXT, TEXT)
    assert fusion["fusion/V0.aftattn/value"].shape == (PICTURE, PICTURE)


def test_a_step_in_bfloat16() -> None:
    own = load_backbone("random-clip")
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

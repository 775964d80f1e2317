"""CLIP as a backbone: what it makes of texts, masks and pictures, its own tokenizer, what is refused. Common to both
architectures of two towers: test_two_towers.py."""

from __future__ import annotations

import string
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import CLIPModel, CLIPTokenizer

from atlas_dist.errors import ConfigError, DataError
from atlas_dist.model.backbone import Backbone, load_backbone
from atlas_dist.model.backbone_refs import backbone_ref
from atlas_dist.model.backbones import architecture_of
from tests.kits.towers import edit_weights, pixels, saved, texts
from tests.kits.waits import no_host_sync

SHARED = 24  # width of the space that the random model's towers share


@pytest.fixture(scope="module")
def clip() -> Backbone:
    return load_backbone("random-clip")


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
    with pytest.raises(ConfigError, match=r"type 'bert'.*one of: clip, idefics3, siglip, smolvlm, vilt"):
        load_backbone(backbone_ref("mine", str(tmp_path)))


def test_names_that_do_not_fit_are_refused_with_the_valid_ones() -> None:
    with pytest.raises(ConfigError, match=r"Unknown architecture 'blip'.*clip, idefics3, siglip, smolvlm, vilt"):
        load_backbone(backbone_ref("mine", "somewhere", architecture="blip"))
    with pytest.raises(ConfigError, match=r"'tiny' is of the architecture 'vilt', not 'clip'"):
        backbone_ref("tiny", architecture="clip")
    with pytest.raises(ConfigError, match="A Linear is no backbone: there are clip, idefics3, siglip, smolvlm, vilt"):
        architecture_of(nn.Linear(2, 2))


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

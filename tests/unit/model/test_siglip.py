"""SigLIP as a backbone: the released model to the bit, texts of one length without a mask, its tokenizers, strict loading, what
is refused. Common to both architectures of two towers: test_two_towers.py."""

from __future__ import annotations

import json
import string
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import Tensor
from transformers import Siglip2Tokenizer, SiglipConfig, SiglipModel, SiglipVisionModel

from atlas_dist.core.types import TaskKind
from atlas_dist.data.decode import TextEncoder
from atlas_dist.errors import ConfigError, DataError
from atlas_dist.model.atlas import AdaptedModel
from atlas_dist.model.backbone import Backbone, load_backbone
from atlas_dist.model.backbone_refs import BACKBONES, BackboneRef, backbone_ref
from atlas_dist.model.backbones import ARCHITECTURES
from atlas_dist.model.backbones.joined import joined
from atlas_dist.model.heads import HeadSpec
from atlas_dist.model.mixing_spec import MixingSpec
from atlas_dist.model.targets import target_paths
from tests.kits.towers import batch, edit_weights, pixels, saved, texts
from tests.kits.waits import no_host_sync

SHARED, LENGTH = 48, 48  # of the random model: width of the space that its towers share, positions of its texts
TWO = [("a red square",), ("two dogs", "and a cat")]


@pytest.fixture(scope="module")
def siglip() -> Backbone:
    return load_backbone("random-siglip")


def stock_of(backbone: Backbone) -> SiglipModel:
    """transformers' own model with the same weights, frozen as ours: torch's own attention multiplies in another way, and rounds
    otherwise, where its weights ask for gradients."""
    stock = SiglipModel(backbone.model.config).eval().requires_grad_(False)
    stock.load_state_dict(backbone.model.state_dict())
    with torch.no_grad():  # what is drawn at its start, so that a test can tell it from 0
        stock.logit_scale.fill_(0.7)
        stock.logit_bias.fill_(-1.5)
    return stock


def unit(x: Tensor) -> Tensor:
    return x / x.norm(dim=-1, keepdim=True)


# ---------------------------------------------------------------------------------------------------------------- encode


@torch.no_grad()
def test_the_pooled_output_is_both_embeddings_of_the_stock_model_and_their_product(siglip: Backbone) -> None:
    given, stock = texts(siglip, TWO), stock_of(siglip)
    pooled = siglip.encode(**given, pixel_values=pixels(2))
    assert pooled.shape == (2, siglip.width) == (2, 3 * SHARED)
    text, picture, product = pooled.split(SHARED, dim=1)
    scale = SHARED**0.5
    wanted = stock.get_text_features(given["input_ids"]).pooler_output
    torch.testing.assert_close(text, scale * unit(wanted), rtol=0, atol=1e-5)
    wanted = stock.get_image_features(pixels(2)).pooler_output
    torch.testing.assert_close(picture, scale * unit(wanted), rtol=0, atol=1e-5)
    # What SigLIP was trained to say of a text and a picture is a linear function of the product.
    said = stock(input_ids=given["input_ids"], pixel_values=pixels(2)).logits_per_text.diag()
    ours = stock.logit_scale.exp() * product.sum(dim=1) / SHARED + stock.logit_bias
    torch.testing.assert_close(ours, said, rtol=0, atol=1e-5)


@torch.no_grad()
def test_without_adapters_it_is_the_stock_model_to_the_last_bit(siglip: Backbone) -> None:
    given, stock = texts(siglip, TWO), stock_of(siglip)
    (text, picture), pooled = siglip.encode_all(**given, pixel_values=pixels(2))
    says, sees = stock.text_model(given["input_ids"]), stock.vision_model(pixels(2))
    assert torch.equal(text, says.last_hidden_state) and torch.equal(picture, sees.last_hidden_state)
    assert torch.equal(pooled, joined(says.pooler_output, sees.pooler_output))
    head = HeadSpec(TaskKind.SINGLE, 3)
    with AdaptedModel(siglip.model, head, MixingSpec(), visible=0, grows=False, seed=0) as model:
        task = batch(siglip, head)
        features = model.eval().features(task, head)
    says, sees = stock.text_model(task["input_ids"][:, 0]), stock.vision_model(task["pixel_values"][:, 0])
    assert torch.equal(features, joined(says.pooler_output, sees.pooler_output))


def test_texts_have_one_length_and_their_padding_is_read_as_it_was_in_training(siglip: Backbone) -> None:
    short, long = texts(siglip, TWO, length=12), texts(siglip, TWO, length=LENGTH)
    assert all(torch.equal(short[name], long[name]) for name in short), "padded to one length, whatever the task's texts have"
    assert short["input_ids"].shape == (2, LENGTH) and int(short["attention_mask"].sum()) < LENGTH
    pooled = siglip.encode(**short, pixel_values=pixels(2))
    unmasked = {**short, "attention_mask": torch.ones_like(short["attention_mask"])}
    assert torch.equal(siglip.encode(**unmasked, pixel_values=pixels(2)), pooled), "nothing is masked"
    ids = short["input_ids"].clone()
    ids[:, -1] = 7
    other = siglip.encode(**{**short, "input_ids": ids}, pixel_values=pixels(2))
    assert not torch.allclose(other[:, :SHARED], pooled[:, :SHARED], atol=1e-3), "it is read at the last position"
    cut = texts(siglip, [("a b c d e f g h",)], length=4)
    assert cut["input_ids"].shape == (1, LENGTH) and int(cut["attention_mask"].sum()) == 4
    with pytest.raises(DataError, match=r"SigLIP reads texts of 48 tokens, padding included; these have 12.*padded=48"):
        siglip.encode(**{name: values[:, :12] for name, values in short.items()}, pixel_values=pixels(2))


def test_both_the_text_and_the_picture_matter_and_a_mask_of_pixels_is_refused(siglip: Backbone) -> None:
    given = texts(siglip, [("is it", "a dog")])
    pooled = siglip.encode(**given, pixel_values=pixels(1))
    assert not torch.allclose(siglip.encode(**texts(siglip, [("is it", "a cat")]), pixel_values=pixels(1)), pooled, atol=1e-3)
    assert not torch.allclose(siglip.encode(**given, pixel_values=pixels(1, seed=1)), pooled, atol=1e-3)
    with pytest.raises(DataError, match="no pixel mask"):
        siglip.encode(**given, pixel_values=pixels(1), pixel_mask=torch.ones(1, 32, 32))


def test_a_pass_never_waits_for_a_value(siglip: Backbone) -> None:
    """On a GPU the host would stand still for it."""
    given = texts(siglip, TWO)
    with torch.no_grad(), no_host_sync("cpu"):
        siglip.encode(**given, pixel_values=pixels(2))


# --------------------------------------------------------------------------------------------------------------- loading


def test_a_folder_loads_strictly_and_is_the_same_backbone(tmp_path: Path, siglip: Backbone) -> None:
    ref = saved(tmp_path, siglip)
    loaded = load_backbone(ref)
    assert (loaded.digest, loaded.architecture.name) == (siglip.digest, "siglip")
    given = texts(siglip, TWO)
    again, pooled = (backbone.encode(**given, pixel_values=pixels(2)) for backbone in (loaded, siglip))
    torch.testing.assert_close(again, pooled, rtol=0, atol=1e-5)  # a file's weights lie elsewhere in memory: other last bits
    edit_weights(tmp_path, {f"{tower}_model.embeddings.position_ids": torch.arange(48)[None] for tower in ("text", "vision")})
    assert load_backbone(ref).digest == siglip.digest  # what old versions of transformers saved as well
    edit_weights(tmp_path, {"vision_model.head.probe": None, "perceiver.weight": torch.zeros(2)})
    with pytest.raises(DataError, match=r"missing: vision_model\.head\.probe; unexpected: perceiver\.weight"):
        load_backbone(ref)
    edit_weights(tmp_path, {"vision_model.head.probe": torch.zeros(1, 1, 47), "perceiver.weight": None})
    with pytest.raises(DataError, match=r"vision_model\.head\.probe is \[1, 1, 47\], by config\.json \[1, 1, 48\]"):
        load_backbone(ref)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_weights_of_half_the_precision_become_float32(dtype: torch.dtype, tmp_path: Path, siglip: Backbone) -> None:
    half = SiglipModel(siglip.model.config)
    half.load_state_dict(siglip.model.state_dict())
    ref = saved(tmp_path, siglip)
    half.to(dtype).save_pretrained(tmp_path)
    loaded = load_backbone(ref).model
    assert {value.dtype for value in loaded.state_dict().values()} == {torch.float32}
    assert torch.equal(loaded.vision_model.head.probe, siglip.model.vision_model.head.probe.to(dtype).float())
    edit_weights(tmp_path, {"vision_model.head.probe": torch.full((1, 1, 48), torch.inf, dtype=dtype)})
    with pytest.raises(DataError, match=r"not finite \(NaN or infinite\) in vision_model\.head\.probe"):
        load_backbone(ref)


def test_a_checkpoint_of_another_kind_is_refused_with_which_are_meant(tmp_path: Path, siglip: Backbone) -> None:
    ref = saved(tmp_path, siglip)
    with pytest.raises(ConfigError, match=r"type 'siglip'; 'vilt' was asked for\. Set backbone\.architecture=siglip"):
        load_backbone(backbone_ref("mine", str(tmp_path)))
    (tmp_path / "config.json").write_text('{"model_type": "siglip2"}')
    which = r"\(NaFlex\), which is not read: use a checkpoint of fixed resolution, such as google/siglip2-base-patch16-224"
    with pytest.raises(ConfigError, match=f"type 'siglip2'; 'siglip' was asked for.*{which}"):
        load_backbone(ref)
    with pytest.raises(ConfigError, match=f"Unknown architecture 'siglip2'.*{which}.*clip, idefics3, siglip, smolvlm, vilt"):
        load_backbone(backbone_ref("mine", str(tmp_path), architecture="siglip2"))
    SiglipVisionModel(siglip.model.config.vision_config).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=r"type 'siglip_vision_model'.*one of: clip, idefics3, siglip, smolvlm, vilt"):
        load_backbone(ref)


@pytest.mark.parametrize(
    ("tower", "change", "told"),
    [
        ("vision_config", {"vision_use_head": False}, "no pooling head"),
        ("text_config", {"projection_size": 40}, "text embeddings of this SigLIP are 40 wide, those of its pictures 48"),
    ],
)
def test_half_a_siglip_is_refused(tower: str, change: dict[str, Any], told: str, tmp_path: Path, siglip: Backbone) -> None:
    config = siglip.model.config.to_dict()
    config[tower] |= change
    ref = saved(tmp_path, siglip)
    SiglipModel(SiglipConfig.from_dict(config)).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=told):
        load_backbone(ref)


def test_the_released_sizes_fit() -> None:
    """SigLIP 2's base and its largest, whose towers differ; without weights."""
    siglip = ARCHITECTURES["siglip"]
    text = {"vocab_size": 256000, "bos_token_id": 2, "eos_token_id": 1, "pad_token_id": 0}
    base = SiglipConfig(text_config=text)
    wide = {"hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27, "num_attention_heads": 16}
    wider = {"hidden_size": 1536, "intermediate_size": 6144, "num_hidden_layers": 40, "num_attention_heads": 16}
    largest = SiglipConfig(text_config={**text, **wide, "projection_size": 1536}, vision_config={**wider, "image_size": 256})
    for config, width, patches in ((base, 768, 196), (largest, 1536, 256)):
        with torch.device("meta"):
            model = SiglipModel(config)
        siglip.prepare(model)
        limits, (_, picture) = siglip.limits(model), siglip.towers(model)
        assert (limits.pooled, limits.text_tokens, limits.padded_text, limits.vocabulary) == (3 * width, 64, 64, 256000)
        assert (picture.own_tokens, picture.width) == (patches, width)
    ref = BACKBONES["siglip2-b16"]
    assert ref.source == "google/siglip2-base-patch16-224" and ref.revision is not None and len(ref.revision) == 40


# ------------------------------------------------------------------------------------------------------------- tokenizers


SPECIAL = ("<pad>", "<eos>", "<bos>", "<unk>", "<mask>")
WORDS = (*SPECIAL, "▁", *string.ascii_letters, "?", ".", *(f"<0x{byte:02X}>" for byte in range(256)))


def write_tokenizer(folder: Path, **settings: Any) -> None:
    """A tokenizer.json such as SigLIP 2's, Gemma's, letter by letter, and beside it what its tokenizer_config.json says."""
    bpe = models.BPE({word: n for n, word in enumerate(WORDS)}, [], unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    tokenizer = Tokenizer(bpe)
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    tokenizer.add_special_tokens([AddedToken(word, normalized=False, special=True) for word in SPECIAL])
    ends = {"single": "$A <eos>", "pair": "$A <eos> $B:1 <eos>:1"}
    tokenizer.post_processor = processors.TemplateProcessing(**ends, special_tokens=[("<eos>", 1)])
    tokenizer.save(str(folder / "tokenizer.json"))
    named = {"pad_token": "<pad>", "eos_token": "<eos>", "unk_token": "<unk>"}
    gemma = {"tokenizer_class": "GemmaTokenizer", "bos_token": "<bos>", "add_bos_token": False, "add_eos_token": True}
    said = {**named, **gemma, "padding_side": "right", "do_lower_case": True, "model_input_names": ["input_ids"], **settings}
    (folder / "tokenizer_config.json").write_text(json.dumps(said))


def checkpoint(folder: Path, siglip: Backbone, **settings: Any) -> BackboneRef:
    siglip.model.save_pretrained(folder)
    write_tokenizer(folder, **settings)
    return BackboneRef("saved", str(folder), architecture="siglip")


def ids_of(backbone: Backbone, *texts_: tuple[str, ...]) -> list[list[int]]:
    ids, _, _ = TextEncoder(backbone.tokenizer, LENGTH, backbone.text_length(LENGTH))(list(texts_))
    return [row.tolist() for row in ids]


def numbers(*words: str) -> list[int]:
    found = [WORDS.index(word) for word in words]
    return found + [0] * (LENGTH - len(found))


# SigLIP's own class reads SentencePiece files only, with a package that need not be there.
@pytest.mark.parametrize("named", ["GemmaTokenizer", "SiglipTokenizer", "Siglip2Tokenizer"])
def test_texts_become_lower_case_whichever_class_a_checkpoint_names(named: str, tmp_path: Path, siglip: Backbone) -> None:
    loaded = load_backbone(checkpoint(tmp_path, siglip, tokenizer_class=named))
    assert ids_of(loaded, ("Red IS",), ("A", "b")) == [
        numbers("r", "e", "d", "▁", "i", "s", "<eos>"),
        numbers("a", "<eos>", "b", "<eos>"),
    ]
    again = load_backbone(saved(tmp_path / "again", loaded))
    assert again.digest == loaded.digest != siglip.digest
    assert ids_of(again, ("Red IS",)) == ids_of(loaded, ("red is",))


def test_it_is_what_transformers_makes_of_siglip_2s_tokenizer(tmp_path: Path, siglip: Backbone) -> None:
    """Its class is right in transformers, but no checkpoint names it."""
    loaded = load_backbone(checkpoint(tmp_path, siglip))
    theirs = Siglip2Tokenizer.from_pretrained(str(tmp_path), padding_side="right")
    for text in ("A red Square?", "", "Ärger"):
        wanted = theirs(text, padding="max_length", max_length=LENGTH, truncation=True)["input_ids"]
        assert ids_of(loaded, (text,)) == [wanted]


def test_a_checkpoint_that_keeps_the_case_says_so(tmp_path: Path, siglip: Backbone) -> None:
    loaded = load_backbone(checkpoint(tmp_path, siglip, do_lower_case=False))
    assert ids_of(loaded, ("Red",)) == [numbers("R", "e", "d", "<eos>")]


def test_a_sentencepiece_file_alone_is_refused_with_what_is_missing(tmp_path: Path, siglip: Backbone) -> None:
    ref = checkpoint(tmp_path, siglip, tokenizer_class="SiglipTokenizer")
    (tmp_path / "tokenizer.json").rename(tmp_path / "spiece.model")
    with pytest.raises(DataError, match=r"tokenizer .* can't be read.* Download tokenizer\.json"):
        load_backbone(ref)


# ----------------------------------------------------------------------------------------------- what is built on a backbone


def test_the_lowest_layers_are_those_of_both_towers(siglip: Backbone) -> None:
    names = {name for name, _ in siglip.model.named_parameters()}
    assert not names & {"logit_scale", "logit_bias"}, "of SigLIP's own loss: weights that nothing trains"
    assert {"logit_scale", "logit_bias"} <= siglip.model.state_dict().keys()
    moving = names - siglip.architecture.kept(siglip.model, 1)
    assert not [n for n in moving if "embedding" in n or "layers.0." in n]
    assert {n.split(".")[3] for n in moving if n.startswith("vision_model.encoder")} == {"1", "2"}
    assert {"text_model.head.weight", "vision_model.head.probe", "vision_model.post_layernorm.bias"} <= moving
    with pytest.raises(ConfigError, match="has 2 layers"):
        siglip.architecture.kept(siglip.model, 2)


def test_layers_for_lora_are_named_as_in_peft(siglip: Backbone) -> None:
    towers = [f"{tower}_model.encoder.layers.{n}" for tower, depth in (("text", 2), ("vision", 3)) for n in range(depth)]
    linear = [f"self_attn.{name}" for name in ("k_proj", "v_proj", "q_proj", "out_proj")] + ["mlp.fc1", "mlp.fc2"]
    every = [f"{layer}.{name}" for layer in towers for name in linear]
    assert target_paths(siglip.model, ("q_proj",)) == tuple(f"{layer}.self_attn.q_proj" for layer in towers)
    assert sorted(target_paths(siglip.model, "all-linear")) == sorted(every)
    assert set(target_paths(siglip.model, ())) == {p for p in every if p.endswith(("out_proj", "fc2"))}
    # torch's own attention reads the weights of its out_proj without calling it: nothing can be hung there.
    assert not [p for p in target_paths(siglip.model, ("out_proj",)) if p.startswith("vision_model.head")]

"""Backbones: strict loading, names in errors, identity, sites, the committed tiny backbone."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedConfig, ViltConfig, ViltForMaskedLM, ViltModel

from atlas_dist.errors import ConfigError, DataError
from atlas_dist.model.backbone import Backbone, backbone_digest, load_backbone
from atlas_dist.model.backbone_refs import BACKBONES, TINY_FOLDER, BackboneRef


@pytest.fixture(scope="module")
def tiny() -> Backbone:
    return load_backbone("tiny")


@pytest.fixture(scope="module")
def small() -> Backbone:
    return load_backbone("random-tiny")


def batch(backbone: Backbone, texts: list[str]) -> dict[str, Tensor]:
    encoded = backbone.tokenizer(texts, padding=True, return_tensors="pt")
    side = backbone.image_size
    pixels = torch.randn(len(texts), 3, side, side, generator=torch.Generator().manual_seed(0))
    return {**{name: encoded[name] for name in ("input_ids", "attention_mask", "token_type_ids")}, "pixel_values": pixels}


def save_checkpoint(folder: Path, model: nn.Module) -> BackboneRef:
    """A checkpoint folder with the tiny tokenizer."""
    model.save_pretrained(folder)  # type: ignore[operator]
    load_backbone("tiny").tokenizer.save_pretrained(folder)
    return BackboneRef("saved", str(folder))


def edit_weights(folder: Path, edit: dict[str, Tensor | None]) -> None:
    """Set, or with None remove, tensors of a saved checkpoint."""
    file = folder / "model.safetensors"
    weights = {**load_file(file), **edit}
    save_file({name: value for name, value in weights.items() if value is not None}, file, metadata={"format": "pt"})


def test_an_unknown_name_lists_the_valid_ones() -> None:
    with pytest.raises(ConfigError) as caught:
        load_backbone("vilt-b33")
    for name in ("vilt-b33", *BACKBONES):
        assert name in str(caught.value)


def test_hub_checkpoints_are_pinned_to_a_full_commit() -> None:
    for ref in BACKBONES.values():
        assert ref.revision is None or re.fullmatch(r"[0-9a-f]{40}", ref.revision)
    assert BACKBONES["vilt-b32-mlm"].revision is not None


def test_an_unreachable_hub_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_network(*_: object, **__: object) -> None:
        raise OSError("We couldn't connect to 'https://huggingface.co'")

    monkeypatch.setattr(ViltModel, "from_pretrained", no_network)
    monkeypatch.setattr(PreTrainedConfig, "get_config_dict", no_network)
    with pytest.raises(DataError, match=r"hf download dandelin/vilt-b32-mlm --revision [0-9a-f]{40}.*backbone=tiny"):
        load_backbone("vilt-b32-mlm")


def test_an_incomplete_folder_names_the_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=re.escape(str(tmp_path))):
        load_backbone(BackboneRef("mine", str(tmp_path)))


def test_a_missing_weight_is_an_error_that_names_it(tmp_path: Path, small: Backbone) -> None:
    ref = save_checkpoint(tmp_path, small.model)
    edit_weights(tmp_path, {"pooler.dense.bias": None})
    with pytest.raises(DataError, match=r"missing: pooler\.dense\.bias"):
        load_backbone(ref)


def test_a_surplus_weight_is_an_error_unless_it_is_listed(tmp_path: Path, small: Backbone) -> None:
    ref = save_checkpoint(tmp_path, small.model)
    edit_weights(tmp_path, {"perceiver.weight": torch.zeros(2)})
    with pytest.raises(DataError, match=r"unexpected: perceiver\.weight"):
        load_backbone(ref)
    listed = BackboneRef("saved", ref.source, leftovers=("perceiver.weight",))
    assert load_backbone(listed).digest == small.digest


def test_a_weight_of_another_shape_is_an_error(tmp_path: Path, small: Backbone) -> None:
    ref = save_checkpoint(tmp_path, small.model)
    edit_weights(tmp_path, {"pooler.dense.bias": torch.zeros(5)})
    with pytest.raises(DataError, match=r"pooler\.dense\.bias|do not fit"):
        load_backbone(ref)


def test_a_masked_word_checkpoint_of_one_picture_loads(tmp_path: Path, small: Backbone) -> None:
    """Such a one is the paper's backbone."""
    settings = small.model.config.to_dict() | {"modality_type_vocab_size": 2}
    torch.manual_seed(3)
    full = ViltForMaskedLM(ViltConfig(**settings))
    loaded = load_backbone(save_checkpoint(tmp_path, full))
    torch.testing.assert_close(loaded.model.pooler.dense.weight, full.vilt.pooler.dense.weight, rtol=0, atol=0)
    # The checkpoint knows one picture only; the second one starts as a copy of it.
    types = loaded.model.embeddings.token_type_embeddings.weight
    assert types.shape[0] == 3
    assert torch.equal(types[2], types[1])
    assert torch.equal(types[:2], full.vilt.embeddings.token_type_embeddings.weight)


def test_a_backbone_is_frozen_quiet_and_deterministic(small: Backbone) -> None:
    assert not small.model.training
    assert not any(parameter.requires_grad for parameter in small.model.parameters())
    assert all(parameter.dtype == torch.float32 for parameter in small.model.parameters())
    assert all(module.p == 0 for module in small.model.modules() if isinstance(module, nn.Dropout))


def test_loading_leaves_the_global_random_generator_alone() -> None:
    before = torch.get_rng_state()
    load_backbone("random-tiny", seed=5)
    load_backbone("tiny")
    assert torch.equal(torch.get_rng_state(), before)


def test_the_digest_is_stable_and_sees_weights_tokenizer_and_config(small: Backbone) -> None:
    again = load_backbone("random-tiny")
    assert again.digest == small.digest
    assert load_backbone("random-tiny", seed=1).digest != small.digest
    again.tokenizer(["some text"], padding="max_length", truncation=True, max_length=9)
    assert backbone_digest(again.model, again.tokenizer) == small.digest
    with torch.no_grad():
        again.model.pooler.dense.bias[0] += 1e-7
    assert backbone_digest(again.model, again.tokenizer) != small.digest
    other = load_backbone("random-tiny")
    other.model.config.layer_norm_eps = 1e-5
    assert backbone_digest(other.model, other.tokenizer) != small.digest
    spoken = load_backbone("random-tiny")
    spoken.tokenizer.add_tokens(["zyzzyva"])
    assert backbone_digest(spoken.model, spoken.tokenizer) != small.digest


def test_the_committed_backbone_keeps_its_digest(tiny: Backbone) -> None:
    """It is part of every job's key: another one, and nothing that was learnt would be found again."""
    assert tiny.digest == "b7ea3329fd37fc0063b4cc81bf197d0b9b0b7d2570344ba8560adcfd8eb2212a"


def test_encode_matches_a_plain_call_of_the_stock_model(small: Backbone) -> None:
    stock = ViltModel(small.model.config).eval()
    stock.load_state_dict(small.model.state_dict())
    given = batch(small, ["what color is the shape?", "a photo of a dog."])
    (hidden,), pooled = small.encode_all(**given)
    torch.testing.assert_close(pooled, stock(**given).pooler_output, rtol=0, atol=1e-6)
    assert hidden.shape == (2, given["input_ids"].shape[1] + 1 + 16, small.width)
    assert torch.equal(small.encode(**given), pooled)
    assert not torch.allclose(small.encode(**given, image_type=2), pooled)


def test_sites_are_found_in_the_order_data_flows(tiny: Backbone) -> None:
    sites = tiny.sites
    layers = tiny.model.config.num_hidden_layers
    assert [site.name for site in sites] == [f"L{layer}.{kind}" for layer in range(layers) for kind in ("aftattn", "aftmlp")]
    assert {site.width for site in sites} == {tiny.width}
    seen: list[str] = []
    hooks = [
        tiny.model.get_submodule(site.path).register_forward_hook(lambda *_, name=site.name: seen.append(name)) for site in sites
    ]
    tiny.encode(**batch(tiny, ["in order"]))
    for hook in hooks:
        hook.remove()
    assert seen == [site.name for site in sites]


def test_a_site_is_what_is_added_to_the_residual_stream(small: Backbone) -> None:
    """Silencing every site must leave the embeddings untouched until the final LayerNorm."""
    given = batch(small, ["nothing happens"])
    inputs = small.model.embeddings(
        given["input_ids"],
        given["attention_mask"],
        given["token_type_ids"],
        given["pixel_values"],
        torch.ones(1, 1, 1),
        None,
        None,
    )[0]
    modules = [small.model.get_submodule(site.path) for site in small.sites]
    hooks = [module.register_forward_hook(lambda _module, _inputs, output: output * 0) for module in modules]
    (hidden,), _ = small.encode_all(**given)
    for hook in hooks:
        hook.remove()
    torch.testing.assert_close(hidden, small.model.layernorm(inputs), rtol=0, atol=1e-6)


def test_the_tokenizer_round_trips_ordinary_words(tiny: Backbone) -> None:
    text = "what color is the triangle? there are two red circles."
    ids = tiny.tokenizer(text)["input_ids"]
    assert tiny.tokenizer.decode(ids, skip_special_tokens=True) == text
    assert tiny.tokenizer.convert_ids_to_tokens(ids)[0] == "[CLS]"
    assert tiny.tokenizer.convert_ids_to_tokens(ids)[-1] == "[SEP]"
    assert tiny.tokenizer("How MANY?")["input_ids"] == tiny.tokenizer("how many?")["input_ids"]
    assert tiny.tokenizer.unk_token_id not in ids
    special = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
    assert tiny.tokenizer.convert_tokens_to_ids(list(special)) == [0, 1, 2, 3, 4]


def test_a_pair_and_a_written_separator_give_the_same_tokens(tiny: Backbone) -> None:
    pair = tiny.tokenizer("who was it?", "a person")
    assert pair["input_ids"] == tiny.tokenizer("who was it? [SEP] a person")["input_ids"]
    first = pair["input_ids"].index(tiny.tokenizer.sep_token_id) + 1
    assert pair["token_type_ids"] == [0] * first + [1] * (len(pair["input_ids"]) - first)


def test_the_committed_backbone_is_small_and_whole(tiny: Backbone) -> None:
    assert sum(file.stat().st_size for file in TINY_FOLDER.iterdir()) <= 8_000_000
    assert (TINY_FOLDER / "README.md").is_file()
    assert tiny.image_size == 64
    assert tiny.max_text_tokens == 48
    assert len(tiny.tokenizer) == tiny.model.config.vocab_size
    assert all(bool(torch.isfinite(value).all()) for value in tiny.model.state_dict().values())

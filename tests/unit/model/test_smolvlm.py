"""SmolVLM as a backbone: a decoder that reads a picture, a text and what its chat template puts around them, as the stock model
does; loaded strictly, under either of its two names."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import Idefics3Config, LlamaConfig, SmolVLMConfig, SmolVLMForConditionalGeneration

from atlas_dist.core.types import NO_TOKEN, Role, TaskKind
from atlas_dist.data.decode import TextEncoder
from atlas_dist.errors import ConfigError, DataError, TrainingError
from atlas_dist.model.atlas import AdaptedModel
from atlas_dist.model.backbone import Backbone, backbone_digest, load_backbone
from atlas_dist.model.backbone_refs import BACKBONES, BackboneRef, backbone_ref
from atlas_dist.model.backbones import ARCHITECTURES, BackboneInput, Written, rows_go_on
from atlas_dist.model.heads import HeadSpec, answer_loss
from atlas_dist.model.layers import LayerRuns
from atlas_dist.model.mixing_spec import MixingSpec, Weighting
from atlas_dist.model.targets import target_paths
from atlas_dist.model.trained import freeze_to
from tests.kits.towers import batch, edit_weights, pixels, saved, texts
from tests.kits.waits import no_host_sync

TWO = [("is it", "a dog"), ("what?",)]
TILE = 4
"""Tokens that a picture of the random model becomes."""


@pytest.fixture(scope="module")
def smolvlm() -> Backbone:
    return load_backbone("random-smolvlm")


def stock_of(backbone: Backbone) -> SmolVLMForConditionalGeneration:
    """An unmodified model of transformers with the same weights."""
    stock = SmolVLMForConditionalGeneration(backbone.model.config)
    stock.load_state_dict(backbone.model.state_dict())
    return stock.eval()


def asked(backbone: Backbone, given: Mapping[str, Tensor], row: int) -> Tensor:
    """One row as the stock model wants it: one sequence without padding, the picture's tokens named by their placeholder."""
    chat = backbone.chat
    assert chat is not None
    text = given["input_ids"][row][given["attention_mask"][row].bool()].tolist()
    picture = [backbone.model.config.image_token_id] * TILE
    return torch.tensor([[*chat.before, *picture, *chat.after_picture, *text, *chat.after_text]])


# ---------------------------------------------------------------------------------------------------------------- encode


@torch.no_grad()
def test_the_pooled_output_is_the_stock_models_where_the_answer_would_begin(smolvlm: Backbone) -> None:
    given, stock = texts(smolvlm, TWO), stock_of(smolvlm)
    (seen, hidden), pooled = smolvlm.encode_all(**given, pixel_values=pixels(2))
    assert pooled.shape == (2, smolvlm.width) and torch.equal(pooled, hidden[:, -1])
    assert torch.equal(seen, stock.model.vision_model(pixels(2)).last_hidden_state)
    for row in range(2):  # one is padded, and must not notice
        wanted = stock.model(input_ids=asked(smolvlm, given, row), pixel_values=pixels(2)[row][None, None]).last_hidden_state
        torch.testing.assert_close(pooled[row], wanted[0, -1], rtol=0, atol=1e-5)
        torch.testing.assert_close(hidden[row, :11], wanted[0, :11], rtol=0, atol=1e-5)


@torch.no_grad()
def test_padding_is_not_seen_and_has_no_position(smolvlm: Backbone) -> None:
    short, long = texts(smolvlm, TWO, length=12), texts(smolvlm, TWO, length=30)
    pooled = smolvlm.encode(**short, pixel_values=pixels(2))
    torch.testing.assert_close(smolvlm.encode(**long, pixel_values=pixels(2)), pooled, rtol=0, atol=1e-5)
    ids = torch.where(long["attention_mask"] == 0, 7, long["input_ids"])
    again = smolvlm.encode(**{**long, "input_ids": ids}, pixel_values=pixels(2))
    torch.testing.assert_close(again, pooled, rtol=0, atol=1e-5)


@torch.no_grad()
def test_both_the_text_and_the_picture_matter_and_a_mask_of_pixels_is_refused(smolvlm: Backbone) -> None:
    given = texts(smolvlm, [("is it", "a dog")])
    pooled = smolvlm.encode(**given, pixel_values=pixels(1))
    assert not torch.allclose(smolvlm.encode(**texts(smolvlm, [("is it", "a cat")]), pixel_values=pixels(1)), pooled, atol=1e-3)
    assert not torch.allclose(smolvlm.encode(**given, pixel_values=pixels(1, seed=1)), pooled, atol=1e-3)
    with pytest.raises(DataError, match="no pixel mask"):
        smolvlm.encode(**given, pixel_values=pixels(1), pixel_mask=torch.ones(1, 32, 32))


@torch.no_grad()
def test_a_grey_picture_is_a_picture(smolvlm: Backbone) -> None:
    """Its normalised pixels are all 0, which the stock model takes for padding between pictures."""
    given = texts(smolvlm, TWO)
    grey = torch.cat([torch.zeros(1, 3, 32, 32), pixels(1)])
    assert bool(torch.isfinite(smolvlm.encode(**given, pixel_values=grey)).all())


def test_a_pass_never_waits_for_a_value(smolvlm: Backbone) -> None:
    """On a GPU the host would stand still for it."""
    given = texts(smolvlm, TWO)
    with torch.no_grad(), no_host_sync("cpu"):
        smolvlm.encode(**given, pixel_values=pixels(2))


@torch.no_grad()
def test_without_adapters_a_model_of_a_task_reads_the_same(smolvlm: Backbone) -> None:
    head = HeadSpec(TaskKind.SINGLE, 3)
    with AdaptedModel(smolvlm.model, head, MixingSpec(), visible=0, grows=False, seed=0) as model:
        task = batch(smolvlm, head)
        features = model.eval().features(task, head)
    given = {name: task[name][:, 0] for name in ("input_ids", "attention_mask", "token_type_ids")}
    assert torch.equal(features, smolvlm.encode(**given, pixel_values=task["pixel_values"][:, 0]))


# ---------------------------------------------------------------------------------------------------------------- answers


@torch.no_grad()
def test_it_writes_what_the_stock_model_generates_greedily_row_by_row(smolvlm: Backbone) -> None:
    given, stock = texts(smolvlm, TWO), stock_of(smolvlm)
    decoder, chat = smolvlm.architecture.decoder, smolvlm.chat
    assert decoder is not None and chat is not None
    written = decoder.greedy(smolvlm.model, BackboneInput(**given, pixel_values=pixels(2)), 6, rows_go_on)
    assert written.tokens.shape == written.log_probs.shape == (2, 6)
    for row in range(2):
        ids = asked(smolvlm, given, row)
        wanted = stock.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            pixel_values=pixels(2)[row][None, None],
            max_new_tokens=6,
            do_sample=False,
            eos_token_id=chat.end,
            pad_token_id=0,
        )
        assert written.tokens[row].tolist() == wanted[0, ids.shape[1] :].tolist()


@torch.no_grad()
def test_a_row_that_has_ended_changes_nothing_for_the_others(smolvlm: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    given, decoder = texts(smolvlm, TWO), smolvlm.architecture.decoder
    assert decoder is not None
    both = BackboneInput(**given, pixel_values=pixels(2))
    free = decoder.greedy(smolvlm.model, both, 6, rows_go_on)
    monkeypatch.setattr(smolvlm.model, "chat_end", int(free.tokens[0, 1]))  # the first row ends after two tokens
    assert not (free.tokens[1] == free.tokens[0, 1]).any()
    ended = decoder.greedy(smolvlm.model, both, 6, rows_go_on)
    assert ended.tokens[0].tolist() == [*free.tokens[0, :2].tolist(), *[NO_TOKEN] * 4]
    assert ended.log_probs[0, 2:].tolist() == [0.0] * 4
    assert torch.equal(ended.tokens[1], free.tokens[1]) and torch.equal(ended.log_probs[1], free.log_probs[1])


@torch.no_grad()
def test_logits_of_a_known_answer_are_the_stock_models_and_agree_with_what_is_written(smolvlm: Backbone) -> None:
    given, stock, decoder = texts(smolvlm, TWO), stock_of(smolvlm), smolvlm.architecture.decoder
    assert decoder is not None
    both = BackboneInput(**given, pixel_values=pixels(2))
    answers = torch.tensor([[50, 60, 70, 80], [90, 100, NO_TOKEN, NO_TOKEN]])
    logits, pooled = decoder.teacher_forced(smolvlm.model, both, answers)
    torch.testing.assert_close(pooled, smolvlm.encode(**given, pixel_values=pixels(2)), rtol=0, atol=1e-5)
    for row in range(2):
        known = answers[row][answers[row] != NO_TOKEN]
        ids = torch.cat([asked(smolvlm, given, row), known[None]], dim=1)
        wanted = stock(input_ids=ids, pixel_values=pixels(2)[row][None, None]).logits[0, -len(known) - 1 : -1]
        torch.testing.assert_close(logits[row, : len(known)], wanted, rtol=0, atol=1e-4)
    written = decoder.greedy(smolvlm.model, both, 4, rows_go_on)
    logits, _ = decoder.teacher_forced(smolvlm.model, both, written.tokens)
    assert torch.equal(logits.argmax(-1), written.tokens)
    torch.testing.assert_close(logits.log_softmax(-1).amax(-1), written.log_probs, rtol=0, atol=1e-4)


def test_a_task_that_is_written_trains_adapters_alone_and_has_no_head(smolvlm: Backbone) -> None:
    head = HeadSpec(TaskKind.GENERATE, 0)
    given = batch(smolvlm, head) | {"answers": torch.tensor([[50, 60], [70, NO_TOKEN], [80, 90]])}
    spec = MixingSpec(rank=4, weighting=Weighting.PLAIN)
    with AdaptedModel(smolvlm.model, head, spec, visible=0, grows=True, seed=0) as model:
        names = model.trainable_names({Role.ADAPTER, Role.HEAD})
        freeze_to(model, names)
        logits, _ = model.train()(given)
        assert logits.shape == (3, 2, smolvlm.architecture.limits(smolvlm.model).vocabulary)
        answer_loss(logits, given["answers"]).sum().backward()
        assert not [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
        assert all(".grown." in name for name in names) and model.export_head() == {} == dict(model.head.named_parameters())
        assert model.write(given, 3).tokens.shape == (3, 3)
        assert all(alpha.shape == (3, 1) for alpha in model.alpha_report().values())
    tiny = load_backbone("random-tiny")
    with (
        AdaptedModel(tiny.model, head, spec, visible=0, grows=True, seed=0) as model,
        pytest.raises(TrainingError, match="vilt backbones do not write"),
    ):
        model.write(given, 3)


def learnt_and_written(smolvlm: Backbone, runs: LayerRuns) -> tuple[dict[str, Tensor], Written]:
    """Gradients of an adapter that learns to write, and what it writes, its layers running so."""
    head = HeadSpec(TaskKind.GENERATE, 0)
    given = batch(smolvlm, head) | {"answers": torch.tensor([[50, 60], [70, NO_TOKEN], [80, 90]])}
    spec = MixingSpec(rank=4, weighting=Weighting.PLAIN)
    with AdaptedModel(smolvlm.model, head, spec, visible=0, grows=True, seed=0, runs=runs) as model:
        freeze_to(model, model.trainable_names({Role.ADAPTER}))
        answer_loss(model.train()(given)[0], given["answers"]).sum().backward()
        with torch.no_grad():
            written = model.eval().write(given, 4)
        return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}, written


def test_it_learns_to_write_to_the_same_bits_when_layers_are_computed_again(smolvlm: Backbone) -> None:
    plain, again = (learnt_and_written(smolvlm, LayerRuns(recompute=recompute))[0] for recompute in (False, True))
    assert plain.keys() == again.keys() and all(torch.equal(plain[name], again[name]) for name in plain)


def test_layers_that_learn_are_compiled_and_those_that_write_are_not(smolvlm: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each token that is written is a sequence of another length."""
    remembering: list[bool] = []

    def compile_(function: Any) -> Any:
        def compiled(*args: Any, **kwargs: Any) -> Any:
            remembering.append(kwargs.get("past_key_values") is not None)
            return function(*args, **kwargs)

        return compiled

    monkeypatch.setattr(torch, "compile", compile_)
    _, written = learnt_and_written(smolvlm, LayerRuns(compiled=True))
    assert written.tokens.shape == (3, 4) and remembering and not any(remembering)


# ----------------------------------------------------------------------------------------------------------------- sites


def test_sites_are_found_in_the_order_data_flows_with_the_width_of_their_tower(smolvlm: Backbone) -> None:
    names = [f"{t}{n}.{k}" for t, depth in (("V", 3), ("T", 2)) for n in range(depth) for k in ("aftattn", "aftmlp")]
    assert [site.name for site in smolvlm.sites] == names
    kinds = {(s.name[0], s.width, s.heads, s.text_first, s.before_text) for s in smolvlm.sites}
    assert smolvlm.chat is not None
    before = len(smolvlm.chat.before) + TILE + len(smolvlm.chat.after_picture)
    assert kinds == {("V", 48, 6, False, 0), ("T", 32, 4, True, before)}
    seen: list[tuple[str, int]] = []
    hooks = [
        smolvlm.model.get_submodule(site.path).register_forward_hook(
            lambda _m, _i, out, name=site.name: seen.append((name, out.shape[-1]))
        )
        for site in smolvlm.sites
    ]
    smolvlm.encode(**texts(smolvlm, [("in order",)]), pixel_values=pixels(1))
    for hook in hooks:
        hook.remove()
    assert seen == [(site.name, site.width) for site in smolvlm.sites]


@torch.no_grad()
def test_a_site_is_what_is_added_to_the_residual_stream(smolvlm: Backbone) -> None:
    """Silencing every site must leave the embeddings untouched until each tower's last norm."""
    given, model = texts(smolvlm, [("nothing happens",)]), smolvlm.model
    modules = [model.get_submodule(site.path) for site in smolvlm.sites]
    hooks = [module.register_forward_hook(lambda _module, _inputs, output: output * 0) for module in modules]
    (seen, hidden), _ = smolvlm.encode_all(**given, pixel_values=pixels(1))
    for hook in hooks:
        hook.remove()
    vision, text = model.model.vision_model, model.model.text_model
    whole = torch.ones(1, 4, 4, dtype=torch.bool)
    embedded = vision.embeddings(pixels(1), patch_attention_mask=whole)
    torch.testing.assert_close(seen, vision.post_layernorm(embedded), rtol=0, atol=1e-6)
    assert smolvlm.chat is not None
    last = text.norm(text.embed_tokens(torch.tensor([smolvlm.chat.after_text[-1]])))
    torch.testing.assert_close(hidden[:, -1], last, rtol=0, atol=1e-6)


def test_every_parameter_that_a_backbone_method_trains_gets_a_gradient(smolvlm: Backbone) -> None:
    own, head = load_backbone("random-smolvlm"), HeadSpec(TaskKind.SINGLE, 3)
    assert "lm_head.weight" in own.model.state_dict() and "lm_head.weight" not in dict(own.model.named_parameters())
    with AdaptedModel(own.model, head, MixingSpec(rank=4), visible=0, grows=False, seed=0) as model:
        freeze_to(model, model.trainable_names({Role.BACKBONE, Role.HEAD}))
        logits, _ = model(batch(own, head))
        logits.square().sum().backward()
        assert not [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]


def test_the_lowest_layers_are_those_of_both_towers_and_what_lies_below(smolvlm: Backbone) -> None:
    names = {name for name, _ in smolvlm.model.named_parameters()}
    moving = names - smolvlm.architecture.kept(smolvlm.model, 1)
    assert not [n for n in moving if "embed" in n or ".layers.0." in n or "connector" in n]
    assert {"model.text_model.norm.weight", "model.vision_model.post_layernorm.bias"} <= moving
    with pytest.raises(ConfigError, match="has 2 layers"):
        smolvlm.architecture.kept(smolvlm.model, 2)


def test_layers_for_lora_are_named_as_in_peft(smolvlm: Backbone) -> None:
    text = [f"model.text_model.layers.{n}" for n in range(2)]
    picture = [f"model.vision_model.encoder.layers.{n}" for n in range(3)]
    assert set(target_paths(smolvlm.model, ("q_proj",))) == {f"{layer}.self_attn.q_proj" for layer in (*text, *picture)}
    every = {f"{layer}.self_attn.{n}_proj" for layer in text for n in "qkvo"}
    every |= {f"{layer}.mlp.{n}_proj" for layer in text for n in ("gate", "up", "down")}
    every |= {f"{layer}.self_attn.{n}" for layer in picture for n in ("q_proj", "k_proj", "v_proj", "out_proj")}
    every |= {f"{layer}.mlp.fc{n}" for layer in picture for n in (1, 2)}
    assert set(target_paths(smolvlm.model, "all-linear")) == every
    ends = (*(f"text_model.layers.{n}.{k}" for n in range(2) for k in ("self_attn.o_proj", "mlp.down_proj")), "out_proj", "fc2")
    assert set(target_paths(smolvlm.model, ())) == {path for path in every if path.endswith(ends)}


# --------------------------------------------------------------------------------------------------------------- loading


def test_a_folder_loads_strictly_and_is_the_same_backbone(tmp_path: Path, smolvlm: Backbone) -> None:
    ref = saved(tmp_path, smolvlm)
    loaded = load_backbone(ref)
    assert (loaded.digest, loaded.architecture.name, loaded.chat) == (smolvlm.digest, "smolvlm", smolvlm.chat)
    given = texts(smolvlm, TWO)
    again, pooled = (backbone.encode(**given, pixel_values=pixels(2)) for backbone in (loaded, smolvlm))
    torch.testing.assert_close(again, pooled, rtol=0, atol=1e-5)
    edit_weights(tmp_path, {"lm_head.weight": None, "model.perceiver.weight": torch.zeros(2)})
    with pytest.raises(DataError, match=r"missing: lm_head\.weight; unexpected: model\.perceiver\.weight"):
        load_backbone(ref)


def test_the_digest_knows_how_the_model_is_asked(smolvlm: Backbone) -> None:
    assert backbone_digest(smolvlm.model, smolvlm.tokenizer, chat=smolvlm.chat) == smolvlm.digest
    assert backbone_digest(smolvlm.model, smolvlm.tokenizer) != smolvlm.digest
    for name in ("tiny", "random-clip", "random-siglip"):
        assert load_backbone(name).chat is None


def test_the_first_generation_goes_by_another_name_and_reads_the_same(tmp_path: Path, smolvlm: Backbone) -> None:
    saved(tmp_path, smolvlm)
    file = tmp_path / "config.json"
    file.write_text(file.read_text().replace('"smolvlm', '"idefics3').replace("SmolVLMFor", "Idefics3For"))
    loaded = load_backbone(BackboneRef("old", str(tmp_path), architecture="idefics3"))
    assert isinstance(loaded.model.config, Idefics3Config) and loaded.chat == smolvlm.chat
    given = texts(smolvlm, TWO)
    again, pooled = (backbone.encode(**given, pixel_values=pixels(2)) for backbone in (loaded, smolvlm))
    torch.testing.assert_close(again, pooled, rtol=0, atol=1e-5)
    with pytest.raises(ConfigError, match=r"type 'idefics3'; 'smolvlm' was asked for.*backbone\.architecture=idefics3"):
        load_backbone(backbone_ref("old", str(tmp_path), architecture="smolvlm"))


def test_a_model_of_another_family_is_refused_by_what_it_lacks(tmp_path: Path, smolvlm: Backbone) -> None:
    ref = saved(tmp_path, smolvlm)
    load_backbone("tiny").tokenizer.save_pretrained(tmp_path)
    with pytest.raises(DataError, match=r"does not know <\|im_start\|>, <fake_token_around_image>, <global-img>"):
        load_backbone(ref)
    config = smolvlm.model.config.to_dict()
    config["scale_factor"] = 3
    with pytest.raises(ConfigError, match="4 patches a side; scale_factor=3 does not fold them evenly"):
        ARCHITECTURES["smolvlm"].prepare(SmolVLMForConditionalGeneration(SmolVLMConfig.from_dict(config)))


def test_the_released_size_fits() -> None:
    """SmolVLM-256M, without weights."""
    idefics3 = ARCHITECTURES["idefics3"]
    llama = {"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "vocab_size": 49280}
    heads = {"num_attention_heads": 9, "num_key_value_heads": 3, "max_position_embeddings": 8192, "pad_token_id": 2}
    picture = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
    config = Idefics3Config(
        text_config=LlamaConfig(**llama, **heads).to_dict(),
        vision_config={**picture, "image_size": 512, "patch_size": 16},
        scale_factor=4,
        image_token_id=49190,
    )
    with torch.device("meta"):
        model = idefics3.model_class(config)
        idefics3.prepare(model)
    limits, (sees, reads) = idefics3.limits(model), idefics3.towers(model)
    assert (limits.pooled, limits.image_size, limits.vocabulary) == (576, 512, 49280)
    assert (sees.own_tokens, reads.own_tokens, reads.key_value_heads) == (1024, 64, 3)
    assert sum(value.numel() for value in model.state_dict().values()) == pytest.approx(256e6, rel=0.01)
    ref = BACKBONES["smolvlm-256m"]
    assert ref.architecture == "idefics3" and ref.revision is not None and len(ref.revision) == 40


# ------------------------------------------------------------------------------------------------------------- tokenizers


SPECIAL = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<fake_token_around_image>",
    "<global-img>",
    "<image>",
    "<end_of_utterance>",
)


def write_tokenizer(folder: Path) -> None:
    """A tokenizer.json such as SmolVLM's: nothing at the ends of a text, nothing between two segments, digits one by one."""
    words = (*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet()), "12", "do")
    tokenizer = Tokenizer(models.BPE({word: n for n, word in enumerate(words)}, [("1", "2"), ("d", "o")]))
    digits, letters = pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, letters])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(word, normalized=False, special=True) for word in SPECIAL])
    tokenizer.save(str(folder / "tokenizer.json"))
    named: dict[str, Any] = {"tokenizer_class": "GPT2Tokenizer", "pad_token": "<|im_end|>", "eos_token": "<end_of_utterance>"}
    named |= {"bos_token": "<|im_start|>", "unk_token": "<|endoftext|>", "add_prefix_space": False}
    (folder / "tokenizer_config.json").write_text(json.dumps(named))


def test_texts_stand_in_the_chat_template_and_two_segments_in_lines_of_their_own(tmp_path: Path, smolvlm: Backbone) -> None:
    smolvlm.model.save_pretrained(tmp_path)
    write_tokenizer(tmp_path)
    loaded = load_backbone(BackboneRef("saved", str(tmp_path), architecture="smolvlm"))
    tokenizer, chat = loaded.tokenizer, loaded.chat
    assert chat is not None
    decoded = [tokenizer.decode(list(part)) for part in (chat.before, chat.after_picture, chat.after_text, [chat.end])]
    assert decoded == [
        "<|im_start|>User:<fake_token_around_image><global-img>",
        "<fake_token_around_image>",
        "<end_of_utterance>\nAssistant:",
        "<end_of_utterance>",
    ]
    encode = TextEncoder(tokenizer, 12)
    ids, mask, _ = encode([("What is it?",), ("Is it", "a dog"), ("",)])
    told = [tokenizer.decode(row[real.astype(bool)].tolist()) for row, real in zip(ids, mask, strict=True)]
    assert told == ["What is it?", "Is it\na dog", ""]
    assert tokenizer.tokenize("a dog 12") == ["a", "Ġ", "do", "g", "Ġ", "1", "2"]
    again = load_backbone(saved(tmp_path / "again", loaded))
    assert again.digest == loaded.digest != smolvlm.digest

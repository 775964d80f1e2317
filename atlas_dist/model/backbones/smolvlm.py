"""SmolVLM and SmolVLM 2 (Marafioti et al. 2025, arXiv 2504.05299): a decoder that sees. A picture tower (SigLIP's), a connector
that folds its patches into few tokens, and a causal language model (Llama's layers) that reads

    before  picture  after_picture  text  after_text  |  answer

What stands around picture and text is one turn of SmolVLM's chat template. A picture is squashed whole into a square: into one
of the model's own size, or into one n times as large, which is cut into n x n tiles beside a small one of the whole (tiles.py).
The picture tower sees each tile apart, as a row of its own; the language model reads them all, with the names of the tiles
between. Several pictures in one text are not read: a pair takes two passes. Padding behind a text is masked and has no position
of its own, so that what follows it stands as if there were none.

    pooled   the hidden state, after the last norm, at the last token of `after_text`: where the answer would begin   [B, D]

Checkpoints of the first generation call themselves Idefics3, which is the same model to the letter; hence two rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import chain, pairwise
from typing import Any

import torch
from tokenizers import processors
from torch import Tensor, nn, unflatten
from transformers import (
    DynamicCache,
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    PreTrainedTokenizerFast,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
)

from atlas_dist.core.types import NO_TOKEN
from atlas_dist.errors import ConfigError, DataError
from atlas_dist.model.backbones.base import (
    Architecture,
    BackboneInput,
    Chat,
    Decoder,
    Encoded,
    GoesOn,
    Limits,
    PictureForm,
    Tiling,
    Tower,
    Written,
)
from atlas_dist.model.backbones.joined import tower_of
from atlas_dist.model.backbones.tiles import AROUND, WHOLE, Cut, names_of_tiles, picture_prompt

_START, _END = "<|im_start|>", "<end_of_utterance>"
_PICTURE = "<image>"
_WHICH = "a checkpoint of SmolVLM or SmolVLM 2, such as HuggingFaceTB/SmolVLM-256M-Instruct"


def _random(kind: Any, config_class: Any, vocabulary: int, special: Mapping[str, int]) -> nn.Module:
    """Towers that differ in depth and width, heads of queries that share keys, and 4 tokens a picture."""
    ids = {f"{name}_token_id": number for name, number in special.items()}
    text = {
        "model_type": "llama",
        "vocab_size": vocabulary,
        "max_position_embeddings": 160,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "initializer_range": 0.4,
        "num_key_value_heads": 2,
        **ids,
    }
    picture = {
        "image_size": 32,
        "patch_size": 8,
        "hidden_size": 48,
        "intermediate_size": 96,
        "num_hidden_layers": 3,
        "num_attention_heads": 6,
    }
    model: nn.Module = kind(config_class(text_config=text, vision_config=picture, scale_factor=2, image_token_id=vocabulary - 1))
    return model


def _prepare(model: Any) -> None:
    """Find what does not depend on a sample, and take away what is no parameter here.

    The language model's last layer stays in the weights and is used, but no method trains it: a task of classes never asks it,
    and a method that trains the backbone would wait for its gradient. No dropout (docs/method.md, What trains), whoever calls
    .train(): attention keeps its rate as a number, not as a module.

    Raises:
        ConfigError: the language model is none of Llama's, or patches do not fold evenly.
    """
    text, picture = model.config.text_config, model.config.vision_config
    if text.model_type != "llama":
        raise ConfigError(
            f"The language model of this {type(model).__name__} is of type {text.model_type!r}; only 'llama' is read.",
            fix=f"Use {_WHICH}.",
        )
    if _side(model) % int(model.config.scale_factor) or picture.image_size % picture.patch_size:
        raise ConfigError(
            f"A picture of {picture.image_size} pixels has {_side(model)} patches a side; scale_factor="
            f"{model.config.scale_factor} does not fold them evenly.",
            fix=f"Use {_WHICH}.",
        )
    weight = model.lm_head.weight.detach()
    del model.lm_head.weight
    model.lm_head.register_buffer("weight", weight)
    for module in model.modules():
        for rate in ("dropout", "attention_dropout"):
            if isinstance(getattr(module, rate, None), float):
                setattr(module, rate, 0.0)
    model.register_buffer("patch_positions", _patch_positions(model), persistent=False)


def _patch_positions(model: Any) -> Tensor:
    """Which learnt position each patch of a whole picture has, int64 [1, patches], as the stock embeddings find it."""
    embeddings, size = model.model.vision_model.embeddings, int(model.config.vision_config.image_size)
    seen: list[Tensor] = []
    handle = embeddings.position_embedding.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    try:
        with torch.no_grad():
            whole = torch.ones(1, _side(model), _side(model), dtype=torch.bool)
            embeddings(torch.zeros(1, 3, size, size), patch_attention_mask=whole)
    finally:
        handle.remove()
    return seen[0]


def _side(model: Any) -> int:
    """Patches along one side of a picture."""
    picture = model.config.vision_config
    return int(picture.image_size) // int(picture.patch_size)


def _separate_segments(tokenizer: PreTrainedTokenizerFast) -> None:
    """Put a line feed between the two segments of a text where the tokenizer has nothing between them."""
    rules = tokenizer.backend_tokenizer
    apart = len(rules.encode("a", "b").ids) > len(rules.encode("a").ids + rules.encode("b", add_special_tokens=False).ids)
    if apart:
        return
    ids = [int(number) for number in rules.encode("\n", add_special_tokens=False).ids]
    between = {"id": "between", "ids": ids, "tokens": [rules.id_to_token(number) for number in ids]}
    rules.post_processor = processors.TemplateProcessing(
        single="$A", pair="$A between $B:1", special_tokens=[between] if ids else []
    )


def _chat(model: Any, tokenizer: PreTrainedTokenizerFast) -> Chat:
    """A turn of SmolVLM's template: `<|im_start|>User:` picture text `<end_of_utterance>`, `Assistant:` and the answer."""

    def ids(text: str) -> tuple[int, ...]:
        return tuple(tokenizer(text, add_special_tokens=False)["input_ids"])

    known = tokenizer.get_vocab()
    tokens, picture = ids(f"{_START}User:{picture_prompt(_tiles(model), _PICTURE)}"), known[_PICTURE]
    places = [-1, *(place for place, token in enumerate(tokens) if token == picture), len(tokens)]
    before, *between, after_picture = (tokens[one + 1 : other] for one, other in pairwise(places))
    turn = (f"{_END}\nAssistant: ", f"{_END}\nUser: ")
    chat = Chat(before, after_picture, ids(f"{_END}\nAssistant:"), " ", known[_END], *turn, tuple(between))
    for name in ("before", "after_picture", "after_text"):
        model.register_buffer(f"chat_{name}", torch.tensor([getattr(chat, name)], dtype=torch.int64), persistent=False)
    model.register_buffer("chat_between", torch.tensor([[*chain(*chat.between)]], dtype=torch.int64), persistent=False)
    model.chat_lengths_between = [len(part) for part in chat.between]
    model.chat_end = chat.end
    return chat


def _cut(model: Any, form: PictureForm) -> None:
    """See `Tiling`."""
    model.picture_cut = Cut(int(model.config.vision_config.image_size), form)


def _tiles(model: Any) -> int:
    """n, along one side of a picture."""
    return model.picture_cut.tiles if hasattr(model, "picture_cut") else 1


def _rows(model: Any) -> int:
    """What the picture tower sees of one picture: its tiles and the whole, or the whole alone."""
    return _tiles(model) ** 2 + 1 if _tiles(model) > 1 else 1


def _lengths(model: Any) -> tuple[int, int, int, int]:
    """Tokens before the picture, of it, between it and the text, and after the text; of a model that was not told how it is
    asked, its picture's alone."""
    parts = ("before", "between", "after_picture", "after_text")
    before, between, behind, after = (getattr(model, f"chat_{name}", torch.empty(1, 0)).shape[1] for name in parts)
    return before, _rows(model) * (_side(model) // int(model.config.scale_factor)) ** 2 + between, behind, after


def _limits(model: Any) -> Limits:
    text = model.config.text_config
    room = int(text.max_position_embeddings) - sum(_lengths(model))
    side = _tiles(model) * int(model.config.vision_config.image_size)
    return Limits(int(text.hidden_size), side, room, int(text.vocab_size), picture_rows=_rows(model))


def _towers(model: Any) -> tuple[Tower, ...]:
    """The sites are V0.aftattn, V0.aftmlp, V1.aftattn, … of the picture and then T0.aftattn, … of the language model."""
    text, picture = model.config.text_config, model.config.vision_config
    patches, lengths = _side(model) ** 2, _lengths(model)
    return (
        tower_of(
            "V",
            "model.vision_model.encoder.layers",
            picture,
            reads_text=False,
            own_tokens=patches,
            pooled=patches * text.hidden_size,  # the connector: every patch of a row through one product, to be added up
            patches="model.vision_model.embeddings.patch_embedding",
            class_tokens=0,
            site_kinds={"aftattn": "self_attn.out_proj", "aftmlp": "mlp.fc2"},
        ),
        tower_of(
            "T",
            "model.text_model.layers",
            text,
            reads_text=True,
            own_tokens=sum(lengths),
            pooled=0,
            before_text=sum(lengths[:3]),
            key_value_heads=text.num_key_value_heads,
            gated=True,
            fed=True,
        ),
    )


def _encode(model: Any, given: BackboneInput) -> Encoded:
    seen, embedded, mask = _prompt(model, given)
    hidden = _read(model, embedded, mask)
    return Encoded((seen, hidden), hidden[:, -1])


def _prompt(model: Any, given: BackboneInput) -> tuple[Tensor, Tensor, Tensor]:
    """The picture tower's last hidden states [B, patches, …], of all tiles one after the other; embeddings [B, S, D] of all that
    comes before an answer; mask [B, S], 0 on padding."""
    if given.pixel_mask is not None:
        raise DataError("SmolVLM has no pixel mask here: it sees whole pictures.", fix="Resize pictures instead of padding them.")
    rows, embed = len(given.input_ids), model.model.text_model.embed_tokens
    seen = _see(model, given.pixel_values)
    before, between, after = (
        embed(getattr(model, f"chat_{name}")).expand(rows, -1, -1) for name in ("before", "after_picture", "after_text")
    )
    parts = [before, *_picture(model, seen), between, embed(given.input_ids), after]
    real = [given.attention_mask.new_ones(rows, part.shape[1]) for part in parts]
    real[-2] = given.attention_mask
    return unflatten(seen, 0, (rows, -1)).flatten(1, 2), torch.cat(parts, dim=1), torch.cat(real, dim=1)


def _picture(model: Any, seen: Tensor) -> list[Tensor]:
    """What the language model reads of pictures, from last hidden states of their rows: the tokens of one tile after the other
    with what stands between, [B, …, D] each."""
    tiles = unflatten(model.model.connector(seen), 0, (-1, _rows(model))).unbind(1)
    if len(tiles) == 1:
        return [tiles[0]]
    named = model.model.text_model.embed_tokens(model.chat_between).expand(len(tiles[0]), -1, -1)
    between = torch.split(named, model.chat_lengths_between, dim=1)
    return [part for both in zip(tiles, (*between, named[:, :0]), strict=True) for part in both]


def _see(model: Any, pixels: Tensor) -> Tensor:
    """Last hidden states of pictures, those of each tile a row. The stock model would look whether a tile is padding, which makes
    the host wait for a GPU, and take one that is grey all over for it."""
    vision = model.model.vision_model
    embeddings = vision.embeddings
    rows = model.picture_cut(pixels) if _tiles(model) > 1 else pixels
    patches = embeddings.patch_embedding(rows).flatten(2).transpose(1, 2)
    embedded = patches + embeddings.position_embedding(model.patch_positions)
    hidden: Tensor = vision.post_layernorm(vision.encoder(inputs_embeds=embedded).last_hidden_state)
    return hidden


def _read(model: Any, embedded: Tensor, mask: Tensor) -> Tensor:
    """Hidden states [B, S, D] of a sequence, each token seeing the real ones up to itself."""
    out = model.model.text_model(
        inputs_embeds=embedded, attention_mask=_pairs(mask), position_ids=_positions(mask), use_cache=False
    )
    hidden: Tensor = out.last_hidden_state
    return hidden


def _pairs(mask: Tensor) -> Tensor:
    """Which token sees which, bool [B, 1, S, S]: itself and the real ones before it."""
    length = mask.shape[1]
    return torch.ones(length, length, dtype=torch.bool, device=mask.device).tril() & mask.bool()[:, None, None, :]


def _positions(mask: Tensor) -> Tensor:
    """[B, S]: how many real tokens come before each."""
    return (mask.cumsum(dim=1) - 1).clamp(min=0)


def _teacher_forced(model: Any, given: BackboneInput, answers: Tensor) -> tuple[Tensor, Tensor]:
    """See `Decoder`."""
    _, embedded, mask = _prompt(model, given)
    known = answers[:, :-1]
    embedded = torch.cat([embedded, model.model.text_model.embed_tokens(known.clamp(min=0))], dim=1)
    hidden = _read(model, embedded, torch.cat([mask, (known != NO_TOKEN).to(mask.dtype)], dim=1))[:, mask.shape[1] - 1 :]
    return model.lm_head(hidden), hidden[:, 0]


def _greedy(model: Any, given: BackboneInput, most: int, goes_on: GoesOn) -> Written:
    """See `Decoder`. What was read is remembered; a row that has ended goes on as padding until all have."""
    _, embedded, mask = _prompt(model, given)
    text, end = model.model.text_model, int(model.chat_end)
    remembered = DynamicCache(config=text.config)
    seen, places = _pairs(mask), _positions(mask)
    tokens = torch.full((len(mask), most), NO_TOKEN, device=mask.device)
    log_probs = torch.zeros(tokens.shape, device=mask.device)
    going = torch.ones(len(mask), dtype=torch.bool, device=mask.device)
    for step in range(most):
        out = text(inputs_embeds=embedded, attention_mask=seen, position_ids=places, past_key_values=remembered, use_cache=True)
        likeliest = model.lm_head(out.last_hidden_state[:, -1]).float().log_softmax(dim=-1).max(dim=-1)
        tokens[:, step] = torch.where(going, likeliest.indices, NO_TOKEN)
        log_probs[:, step] = torch.where(going, likeliest.values, 0.0)
        going = going & (likeliest.indices != end)
        if step + 1 == most or not goes_on(going):
            break
        mask = torch.cat([mask, going[:, None].to(mask.dtype)], dim=1)
        embedded = text.embed_tokens(likeliest.indices)[:, None]
        seen, places = mask.bool()[:, None, None, :], places[:, -1:] + 1
    return Written(tokens, log_probs)


def _architecture(name: str, kind: Any, config_class: Any) -> Architecture:
    return Architecture(
        name=name,
        model_class=kind,
        random=lambda vocabulary, special: _random(kind, config_class, vocabulary, special),
        prepare=_prepare,
        limits=_limits,
        towers=_towers,
        # The output of the attention's last projection and of the MLP's last layer, both before the residual (docs/method.md,
        # Where adapters sit).
        site_kinds={"aftattn": "self_attn.o_proj", "aftmlp": "mlp.down_proj"},
        # The connector makes what the language model's lowest layer reads.
        embeddings=("model.text_model.embed_tokens.", "model.vision_model.embeddings.", "model.connector."),
        encode=_encode,
        pixel_mean=(0.5, 0.5, 0.5),
        pixel_std=(0.5, 0.5, 0.5),
        plain_tokenizer=True,  # rules of its own, such as digits one by one, must not hang on how a class rebuilds them
        prepare_tokenizer=_separate_segments,
        special_tokens=(_START, AROUND, WHOLE, _END, _PICTURE),
        chat=_chat,
        decoder=Decoder(_teacher_forced, _greedy),
        tiling=Tiling(_cut, names_of_tiles, ("model.vision_model.", "model.connector.")),
    )


IDEFICS3 = _architecture("idefics3", Idefics3ForConditionalGeneration, Idefics3Config)
SMOLVLM = _architecture("smolvlm", SmolVLMForConditionalGeneration, SmolVLMConfig)

"""ViLT (Kim et al. 2021, arXiv 2102.03334): one transformer over text tokens and picture patches, pooled at the text's [CLS]."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import cast

import torch
from torch import Tensor, nn
from transformers import ViltConfig, ViltModel

from atlas_dist.model.backbones.base import Architecture, BackboneInput, Encoded, Limits, Tower
from atlas_dist.model.vilt import accelerate_vilt, uniform_pixel_mask

# Text is type 0, a picture type 1, the second picture of a pair type 2. Checkpoints made for one picture lack the last row.
_TOKEN_TYPES = 3


def _random(vocabulary: int, special: Mapping[str, int]) -> ViltModel:
    config = ViltConfig(
        vocab_size=vocabulary,
        max_position_embeddings=48,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        image_size=32,
        patch_size=8,
        modality_type_vocab_size=_TOKEN_TYPES,
        pad_token_id=special["pad"],
    )
    model = ViltModel(config)
    with torch.no_grad():
        # The stock start leaves positions at zero; tests should notice when they are dropped or permuted.
        model.embeddings.position_embeddings.normal_(std=0.02)
    return model


def _offer_image_types(model: ViltModel) -> None:
    """Give a checkpoint made for single pictures the types it lacks, as copies of type 1: a second picture is a picture."""
    old = model.embeddings.token_type_embeddings
    if old.num_embeddings >= _TOKEN_TYPES:
        return
    wide = nn.Embedding(_TOKEN_TYPES, old.embedding_dim)
    with torch.no_grad():
        wide.weight.copy_(torch.cat([old.weight, old.weight[1:2].expand(_TOKEN_TYPES - old.num_embeddings, -1)]))
    model.embeddings.token_type_embeddings = wide
    model.config.modality_type_vocab_size = _TOKEN_TYPES


def _limits(model: ViltModel) -> Limits:
    config = model.config
    return Limits(int(config.hidden_size), int(config.image_size), int(config.max_position_embeddings))


def _towers(model: ViltModel) -> tuple[Tower, ...]:
    """One, over text and picture; its sites are L0.aftattn, L0.aftmlp, L1.aftattn, …"""
    config = model.config
    patches = (config.image_size // config.patch_size) ** 2
    if config.max_image_length is not None and config.max_image_length > 0:
        patches = min(patches, config.max_image_length)
    return (
        Tower(
            "L",
            "encoder.layer",
            width=config.hidden_size,
            inner=config.intermediate_size,
            heads=config.num_attention_heads,
            reads_text=True,
            own_tokens=1 + patches,
            pooled=config.hidden_size,
            patches="embeddings.patch_embeddings.projection",
        ),
    )


def _encode(model: ViltModel, given: BackboneInput) -> Encoded:
    pixels = given.pixel_values
    with _image_types(model, given.image_type) as image_type:
        result = model(
            input_ids=given.input_ids,
            attention_mask=given.attention_mask,
            token_type_ids=given.token_type_ids,
            pixel_values=pixels,
            pixel_mask=uniform_pixel_mask(pixels) if given.pixel_mask is None else given.pixel_mask,
            image_token_type_idx=image_type,
            return_dict=True,
        )
    return Encoded((cast(Tensor, result.last_hidden_state),), cast(Tensor, result.pooler_output))


@contextmanager
def _image_types(model: ViltModel, types: int | Tensor) -> Iterator[int]:
    """The type to ask the model for; where rows differ in it, while the `with` block lasts."""
    if isinstance(types, int):
        yield types
        return
    # The model asks for type 0 on text and for the one type it was given, 1, on pictures.
    embedding = model.embeddings.token_type_embeddings
    handle = embedding.register_forward_pre_hook(lambda _, inputs: (inputs[0] * types[:, None],))
    try:
        yield 1
    finally:
        handle.remove()


VILT = Architecture(
    name="vilt",
    model_class=ViltModel,
    random=_random,
    prepare=_offer_image_types,
    accelerate=accelerate_vilt,
    limits=_limits,
    towers=_towers,
    # The output of the attention projection and of the MLP's second linear layer, both before the residual (docs/method.md, Where
    # adapters sit).
    site_kinds={"aftattn": "attention.output.dense", "aftmlp": "output.dense"},
    embeddings=("embeddings.",),
    encode=_encode,
    pixel_mean=(0.5, 0.5, 0.5),
    pixel_std=(0.5, 0.5, 0.5),
    image_types=_TOKEN_TYPES - 1,
)

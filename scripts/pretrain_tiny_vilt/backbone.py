"""The tiny ViLT itself: its shape, how it starts, and a forward pass that may look at some of the patches only."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from transformers import ViltConfig, ViltModel

from atlas_dist.model.vilt import accelerate_vilt, uniform_pixel_mask
from scripts.pretrain_tiny_vilt.words import MAX_TEXT, VOCABULARY

PAD = 0


def tiny_config() -> ViltConfig:
    """1.6 million weights; a step costs 1.25 times that of 4 layers."""
    return ViltConfig(
        vocab_size=VOCABULARY,
        max_position_embeddings=MAX_TEXT,
        hidden_size=128,
        num_hidden_layers=5,
        num_attention_heads=4,
        intermediate_size=512,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        image_size=64,
        patch_size=8,
        modality_type_vocab_size=3,  # text, image, second image
        max_image_length=-1,
        pad_token_id=PAD,
    )


def new_backbone(seed: int) -> ViltModel:
    """A fresh backbone: linear layers after Glorot, patches at unit scale, positions as half-height sinusoids.

    The stock start (everything at 0.02, positions at 0) suits long runs on millions of pictures; this one learns in minutes.
    """
    torch.manual_seed(seed)
    model = ViltModel(tiny_config())
    grid = model.config.image_size // model.config.patch_size
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
        patches = model.embeddings.patch_embeddings.projection.weight
        nn.init.normal_(patches, std=1 / math.sqrt(math.prod(patches.shape[1:])))
        model.embeddings.position_embeddings[0, 1:] = 0.5 * _sinusoids(grid, model.config.hidden_size)
    return accelerate_vilt(model)


def run_backbone(
    model: ViltModel,
    input_ids: Tensor,
    pixels: Tensor,
    *,
    token_types: Tensor | None = None,
    keep: int | None = None,
    image_type: int = 1,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    """Texts [B, T] and pictures [B, 3, 64, 64] -> (hidden states [B, T + 1 + patches, D], pooled [B, D]).

    ``keep`` looks at that many random patches of each picture: cheaper, and a regulariser (PatchDropout, Liu et al. 2023).
    """
    words = (input_ids != PAD).long()
    tokens, mask = model.embeddings(
        input_ids, words, token_types, pixels, uniform_pixel_mask(pixels), None, None, image_token_type_idx=image_type
    )
    if keep is not None:
        tokens, mask = _drop_patches(tokens, mask, input_ids.shape[1] + 1, keep, generator)
    attend = None if bool(words.all()) else mask[:, None, None, :].bool()
    hidden = model.layernorm(model.encoder(tokens, attention_mask=attend).last_hidden_state)
    assert model.pooler is not None
    return hidden, model.pooler(hidden)


def _drop_patches(
    tokens: Tensor, mask: Tensor, first: int, keep: int, generator: torch.Generator | None
) -> tuple[Tensor, Tensor]:
    batch, length, width = tokens.shape
    chosen = torch.rand(batch, length - first, generator=generator).argsort(dim=1)[:, :keep] + first
    always = torch.arange(first).expand(batch, -1)
    index = torch.cat([always, chosen], dim=1)
    return tokens.gather(1, index[..., None].expand(-1, -1, width)), mask.gather(1, index)


def _sinusoids(grid: int, width: int) -> Tensor:
    """[grid * grid, width]: a quarter each of sine and cosine over rows and over columns."""
    frequency = 1.0 / 100 ** (torch.arange(width // 4) / (width // 4))
    row, column = torch.meshgrid(torch.arange(grid), torch.arange(grid), indexing="ij")
    angles = [axis.flatten()[:, None] * frequency for axis in (row, column)]
    return torch.cat([wave for angle in angles for wave in (angle.sin(), angle.cos())], dim=1)

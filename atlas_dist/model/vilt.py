"""Speed surgery on an unmodified transformers ``ViltModel``.

``accelerate_vilt`` replaces three methods *on the instance* and leaves classes, parameters and state-dict names alone:

- the visual embedding. The stock one loops over the samples in Python and draws the patch order (and the padding) from the
  global random generator, so it is slow and disturbs every seeded computation around it. Ours is vectorised and draws
  nothing: valid patches come in row-major order and the rest is padded with the first invalid patch. A transformer without
  causal masks does not see the order of its tokens, hence hidden states agree up to that permutation and pooled outputs agree.
- the embeddings' own call, which hands on the finished attention mask. From the plain one the stock model makes it anew, and asks
  the device first whether anything is masked at all: the host would wait there once a pass.
- self-attention, which runs through ``scaled_dot_product_attention`` instead of forming the probabilities.

Both are exact in the sense of the tests: equal to rounding, in value and gradient, ragged pixel masks included.
"""

from __future__ import annotations

import functools
import math
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import ViltModel
from transformers.models.vilt import modeling_vilt
from transformers.models.vilt.modeling_vilt import ViltEmbeddings, ViltSelfAttention

VisualEmbedding = tuple[Tensor, Tensor, tuple[Tensor, tuple[int, int]]]


def accelerate_vilt(model: ViltModel) -> ViltModel:
    """Make ``model`` fast, in place, and return it. Safe to call twice; deep copies and pickles stay accelerated.

    Works on stock modules only: it sets instance attributes, so ``del module.forward`` gives the stock behaviour back.
    """
    for module in model.modules():
        if isinstance(module, ViltEmbeddings):
            _override(module, "visual_embed", visual_embed)
            if hasattr(modeling_vilt, "create_bidirectional_mask"):  # older ones make the mask without asking
                _override(module, "forward", embed)
        elif isinstance(module, ViltSelfAttention):
            _override(module, "forward", fused_self_attention)
    return model


def uniform_pixel_mask(pixel_values: Tensor) -> Tensor:
    """A [B, 1, 1] mask saying "every pixel of [B, 3, H, W] is valid".

    Masks are resized to the patch grid anyway, so one pixel speaks for the whole picture. It tells the visual embedding that
    no patch is padding without reading a value back from the device (a full-size mask must be looked at).
    """
    return pixel_values.new_ones((pixel_values.shape[0], 1, 1))


def embed(embeddings: ViltEmbeddings, *args: object, **kwargs: object) -> tuple[Tensor, Tensor]:
    """Stand-in for ``ViltEmbeddings.forward``: tokens [B, L, D], and what attention adds to its scores, [B, 1, 1, L]."""
    tokens, valid = type(embeddings).forward(embeddings, *args, **kwargs)
    shut = torch.finfo(tokens.dtype).min
    return tokens, torch.where(valid[:, None, None].bool(), tokens.new_zeros(()), shut)


def visual_embed(
    embeddings: ViltEmbeddings, pixel_values: Tensor, pixel_mask: Tensor, max_image_length: int | None = 200
) -> VisualEmbedding:
    """Patch tokens with interpolated positions: the vectorised stand-in for ``ViltEmbeddings.visual_embed``.

    Args:
        embeddings: the module that owns the weights.
        pixel_values: [B, 3, H, W], normalised.
        pixel_mask: [B, h, w], 1 where a pixel is real; resized to the patch grid by nearest neighbour. [B, 1, 1] means full.
        max_image_length: most patches kept; None or negative keeps all. Where a picture has more, the stock code keeps a random
            subset; we keep every (v/L)-th of its v valid patches, spread evenly from top to bottom, the same ones each time.

    Returns:
        tokens [B, 1 + L, D] with the class token first, mask [B, 1 + L] int64, and ([B, L, 2] grid indices, grid size) as the
        stock method does.
    """
    patches = embeddings.patch_embeddings(pixel_values)
    batch, width, rows, cols = patches.shape
    patches = patches.flatten(2).transpose(1, 2)
    if _is_full(pixel_mask):
        chosen = _spread(rows * cols, max_image_length, patches.device)
        positions = _full_positions(embeddings, (rows, cols))
        if chosen is not None:
            patches, positions = patches[:, chosen], positions[:, chosen]
        valid = patches.new_ones(patches.shape[:2], dtype=torch.long)
        index = torch.arange(rows * cols, device=patches.device) if chosen is None else chosen
        index = index.expand(batch, -1)
    else:
        grid_mask = functional.interpolate(pixel_mask[:, None].float(), size=(rows, cols)).long()[:, 0]
        index, valid = _select_patches(grid_mask, max_image_length)
        gather = index.unsqueeze(-1).expand(-1, -1, width)
        patches = patches.gather(1, gather)
        positions = _ragged_positions(embeddings, grid_mask).gather(1, gather)

    class_token = (embeddings.cls_token + embeddings.position_embeddings[:, :1]).expand(batch, -1, -1)
    tokens = embeddings.dropout(torch.cat([class_token, patches + positions], dim=1))
    mask = functional.pad(valid, (1, 0), value=1)
    grid_index = torch.stack([index // cols, index % cols], dim=-1)
    return tokens, mask, (grid_index, (rows, cols))


def fused_self_attention(
    attention: ViltSelfAttention,
    hidden_states: Tensor,
    attention_mask: Tensor | None = None,
    output_attentions: bool = False,
) -> tuple[Tensor, ...]:
    """Stand-in for ``ViltSelfAttention.forward``: [B, L, D] -> ([B, L, D],).

    ``attention_mask`` is the additive [B, 1, 1 or L, L] mask (or boolean, True = attend) that ``ViltModel`` prepares. Fused
    kernels never form the probabilities, so a caller who asks for them gets the stock method.
    """
    if output_attentions:
        stock = type(attention).forward(attention, hidden_states, attention_mask, output_attentions=True)
        return cast(tuple[Tensor, ...], stock)
    batch, length, _ = hidden_states.shape
    heads = (batch, length, attention.num_attention_heads, attention.attention_head_size)
    query, key, value = (
        projection(hidden_states).view(heads).transpose(1, 2) for projection in (attention.query, attention.key, attention.value)
    )
    dropout = attention.dropout.p if attention.training else 0.0
    # On CPUs the fused kernel's bfloat16 backward is slow (measured 22 ms where plain products take 3 at B=64, H=4, L=88).
    plain = query.device.type == "cpu" and query.dtype == torch.bfloat16
    attend = _plain_attention if plain else functional.scaled_dot_product_attention
    context = attend(query, key, value, attn_mask=attention_mask, dropout_p=dropout)
    return (context.transpose(1, 2).reshape(batch, length, attention.all_head_size),)


def _plain_attention(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None, dropout_p: float) -> Tensor:
    """Attention by the book, for [B, H, L, D / H] operands; the mask adds to the scores, or is True where to attend."""
    scores = query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])
    if attn_mask is not None:
        added = attn_mask.dtype != torch.bool
        scores = scores + attn_mask if added else scores.masked_fill(~attn_mask, -math.inf)
    return functional.dropout(scores.softmax(dim=-1), dropout_p).to(value.dtype) @ value


def _override(module: nn.Module, method: str, replacement: object) -> None:
    # A partial of a module-level function, unlike a bound method or a closure, survives pickle and deepcopy.
    setattr(module, method, functools.partial(cast("functools.partial[object]", replacement), module))


def _is_full(pixel_mask: Tensor) -> bool:
    # The first test needs shapes only; the second reads one value back from the device.
    return pixel_mask.shape[-2:] == (1, 1) or bool(pixel_mask.all())


def _spread(available: int, limit: int | None, device: torch.device) -> Tensor | None:
    """Evenly spaced patch numbers [limit], or None when all ``available`` fit."""
    if limit is None or limit < 0 or available <= limit:
        return None
    return torch.arange(limit, device=device) * available // limit


def _select_patches(grid_mask: Tensor, limit: int | None) -> tuple[Tensor, Tensor]:
    """Which patches become tokens: grid mask [B, H, W] -> (flat patch index, validity), both int64 [B, L].

    L is the largest valid rectangle in the batch (rows in use times columns in use), at most ``limit``. Its value decides a
    shape, so this reads one number back from the device.
    """
    flat = grid_mask.flatten(1)
    count = flat.sum(dim=1, keepdim=True)
    length = int((grid_mask[:, :, 0].sum(dim=1) * grid_mask[:, 0].sum(dim=1)).max())
    if limit is not None and limit >= 0:
        length = min(length, limit)
    # Valid patches first, then invalid ones, each in row-major order.
    order = flat.argsort(dim=1, descending=True, stable=True)
    slot = torch.arange(length, device=flat.device)
    spread = slot * count // max(length, 1)
    padded = torch.minimum(slot, count)
    rank = torch.where(count >= length, spread, padded)
    index = order.gather(1, rank)
    return index, flat.gather(1, index)


def _position_grid(embeddings: ViltEmbeddings) -> Tensor:
    """The learned patch positions as [1, D, P, P], P patches a side at the pre-training resolution."""
    learned: Tensor = embeddings.position_embeddings[:, 1:]
    side = math.isqrt(learned.shape[1])
    return learned.transpose(1, 2).reshape(1, -1, side, side)


def _full_positions(embeddings: ViltEmbeddings, size: tuple[int, int]) -> Tensor:
    """Positions [1, H * W, D] of a grid without padding; no interpolation at the pre-training size."""
    grid = _position_grid(embeddings)
    if grid.shape[-2:] != size:
        grid = functional.interpolate(grid, size=size, mode="bilinear", align_corners=True)
    return grid.flatten(2).transpose(1, 2)


def _ragged_positions(embeddings: ViltEmbeddings, grid_mask: Tensor) -> Tensor:
    """Positions [B, H * W, D]: the learned grid stretched over each sample's own valid rectangle, zero outside.

    Bilinear interpolation is separable, so a sample's rectangle is two small matrix products; all samples run at once.
    """
    grid = _position_grid(embeddings)[0]
    side = grid.shape[-1]
    over_rows = _stretch(grid_mask[:, :, 0].sum(dim=1), grid_mask.shape[1], side).to(grid.dtype)
    over_cols = _stretch(grid_mask[:, 0].sum(dim=1), grid_mask.shape[2], side).to(grid.dtype)
    return torch.einsum("bip,bjq,dpq->bijd", over_rows, over_cols, grid).flatten(1, 2)


def _stretch(extent: Tensor, length: int, side: int) -> Tensor:
    """Linear interpolation weights [B, length, side] from ``side`` points to each sample's first ``extent`` points.

    Corners are aligned: point i of n reads position i * (side - 1) / (n - 1). Weights past the extent are zero. Computed in
    float64: these are a few hundred numbers, and rounding in the scale would show up in float64 comparisons.
    """
    target = torch.arange(length, device=extent.device, dtype=torch.float64)
    scale = (side - 1) / (extent - 1).clamp(min=1).double()
    source = target * scale[:, None]
    weights = (1 - (source[..., None] - torch.arange(side, device=extent.device)).abs()).clamp(min=0)
    inside = target < extent[:, None]
    return weights * inside[..., None]

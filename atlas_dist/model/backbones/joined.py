"""What architectures have in common whose text tower and picture tower meet only in a shared space.

A task here needs one vector for a text *and* a picture, so the two embeddings t and v [P] are joined without any parameter:

    pooled = [t, v, t ∘ v],   t, v of length √P each     [B, 3P]

Length √P makes a feature's mean square 1, whatever adapters did to the scale, and such models give meaning to directions only.
The sum over t ∘ v is P times the cosine that they were trained to raise for texts and pictures which belong together: with it a
linear layer can ask whether they agree, which no linear layer can tell from t and v side by side.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from atlas_dist.model.backbones.base import Tower


def joined(text: Tensor, picture: Tensor) -> Tensor:
    """Embeddings [B, P] of texts and pictures, of any length, to the pooled output [B, 3P]."""
    t, v = _unit(text), _unit(picture)
    return torch.cat([t, v, t * v], dim=-1)


def tower_of(letter: str, layers: str, config: Any, **rest: Any) -> Tower:
    """A `Tower` by its own configuration of transformers."""
    return Tower(letter, layers, config.hidden_size, config.intermediate_size, config.num_attention_heads, **rest)


def _unit(embedding: Tensor) -> Tensor:
    """[B, P] scaled to mean square 1, in float32 at least."""
    wide = embedding.to(torch.promote_types(embedding.dtype, torch.float32))
    return functional.normalize(wide, dim=-1) * math.sqrt(wide.shape[-1])

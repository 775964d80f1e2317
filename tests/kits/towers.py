"""Inputs and checkpoints for backbones of two towers (CLIP, SigLIP), whose random models take pictures of 32 x 32."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from atlas_dist.data.decode import TextEncoder
from atlas_dist.model.backbone import Backbone
from atlas_dist.model.backbone_refs import BackboneRef
from atlas_dist.model.heads import HeadSpec

TEXT, PICTURE = 32, 48
"""Widths of the random models' towers."""


def pixels(count: int, seed: int = 0) -> Tensor:
    """Normal numbers [count, 3, 32, 32]."""
    return torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(seed))


def texts(backbone: Backbone, given: list[tuple[str, ...]], length: int = 12) -> dict[str, Tensor]:
    """As the stream makes them: cut to `length`, padded to a fixed length."""
    names = ("input_ids", "attention_mask", "token_type_ids")
    encode = TextEncoder(backbone.tokenizer, length, backbone.text_length(length))
    return dict(zip(names, map(torch.from_numpy, encode(given)), strict=True))


def batch(backbone: Backbone, head: HeadSpec, samples: int = 3) -> dict[str, Tensor]:
    """Of a task with such a head."""
    many = texts(backbone, [("what is it?", f"answer {n}") for n in range(samples * head.texts)])
    split = {name: values.view(samples, head.texts, -1) for name, values in many.items()}
    return {**split, "pixel_values": pixels(samples * head.images).view(samples, head.images, 3, 32, 32)}


def saved(folder: Path, backbone: Backbone) -> BackboneRef:
    """A backbone as a checkpoint in a folder, under the name `saved`."""
    backbone.model.save_pretrained(folder)
    backbone.tokenizer.save_pretrained(folder)
    return BackboneRef("saved", str(folder), architecture=backbone.architecture.name)


def edit_weights(folder: Path, edit: dict[str, Tensor | None]) -> None:
    """Set, or with None remove, tensors of a saved checkpoint."""
    file = folder / "model.safetensors"
    weights = {**load_file(file), **edit}
    save_file({name: value for name, value in weights.items() if value is not None}, file, metadata={"format": "pt"})

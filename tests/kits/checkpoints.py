"""Folders with a checkpoint of the random tiny ViLT, as people have them."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    ViltModel,
)

from atlas_dist.model.backbone import Backbone, load_backbone
from atlas_dist.model.backbone_refs import TINY_FOLDER, BackboneRef


def stock(small: Backbone) -> ViltModel:
    """The random backbone as transformers has it."""
    model = ViltModel(small.model.config)
    model.load_state_dict(small.model.state_dict())
    return model


def tokenizer(folder: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(TINY_FOLDER / name, folder)


def saved(folder: Path, model: Any, **options: Any) -> Path:
    """A folder as `save_pretrained` leaves it, with the tiny tokenizer."""
    model.save_pretrained(folder, **options)
    tokenizer(folder)
    return folder


def loaded(folder: Path) -> Backbone:
    return load_backbone(BackboneRef("mine", str(folder)))


def edited(folder: Path, edit: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> None:
    file = folder / "model.safetensors"
    save_file(edit(load_file(file)), file, metadata={"format": "pt"})


def as_bin(folder: Path, content: Any = None) -> Path:
    """pytorch_model.bin in the place of the safetensors file."""
    weights = load_file(folder / "model.safetensors")
    torch.save(weights if content is None else content, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    return folder / "pytorch_model.bin"

"""A LoRA adapter as PEFT itself saves it, on the tiny random backbone, with a model card and a licence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from atlas_dist.model.backbone import load_backbone

CARD = """---
library_name: peft
license: mit
base_model: random-tiny
---

# An adapter of somebody else's
"""
LICENCE = "Permission is hereby granted, free of charge, to somebody.\n"


def save_peft(folder: Path, *, texts: bool = True, wrap: str = "", seed: int = 0, **config: Any) -> Path:
    """An adapter with random A and B, large enough to be heard; `config` as for PEFT's LoraConfig.

    Args:
        wrap: the name under which a larger model holds the backbone; "" = the adapter is the backbone's own.
    """
    model: nn.Module = load_backbone("random-tiny").model
    if wrap:
        model = nn.ModuleDict({wrap: model})
    settings = {"r": 4, "lora_alpha": 8, "target_modules": ["query", "value"], **config}
    peft = get_peft_model(model, LoraConfig(**settings))
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in peft.named_parameters():
        if "lora_" in name:
            parameter.data.copy_(torch.empty(parameter.shape).normal_(0.0, 0.3, generator=generator))
    peft.save_pretrained(str(folder))
    edit(folder, base_model_name_or_path="random-tiny")
    (folder / "README.md").unlink(missing_ok=True)
    if texts:
        (folder / "README.md").write_text(CARD)
        (folder / "LICENSE").write_text(LICENCE)
    return folder


def edit(folder: Path, **fields: Any) -> None:
    """Change fields of its configuration."""
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def edit_tensors(folder: Path, change: Any) -> None:
    """`change`: tensors by name -> tensors by name."""
    path = folder / "adapter_model.safetensors"
    tensors: dict[str, Tensor] = load_file(path)
    save_file(change(tensors), path)

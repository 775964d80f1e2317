"""The architectures that a backbone can have, one row each. A further one is one file beside `vilt.py` and one row here
(docs/method.md, Another backbone)."""

from __future__ import annotations

from torch import nn

from atlas_dist.errors import ConfigError
from atlas_dist.model.backbones.base import (
    AdapterSite,
    Architecture,
    BackboneInput,
    Chat,
    Decoder,
    Encoded,
    GoesOn,
    Limits,
    Tower,
    Written,
    rows_go_on,
    stack,
)
from atlas_dist.model.backbones.clip import CLIP
from atlas_dist.model.backbones.siglip import SIGLIP
from atlas_dist.model.backbones.smolvlm import IDEFICS3, SMOLVLM
from atlas_dist.model.backbones.vilt import VILT

__all__ = [
    "ARCHITECTURES",
    "AdapterSite",
    "Architecture",
    "BackboneInput",
    "Chat",
    "Decoder",
    "Encoded",
    "GoesOn",
    "Limits",
    "Tower",
    "Written",
    "architecture_named",
    "architecture_of",
    "relative_of",
    "rows_go_on",
    "stack",
]

ARCHITECTURES: dict[str, Architecture] = {row.name: row for row in (VILT, CLIP, SIGLIP, IDEFICS3, SMOLVLM)}


def architecture_named(name: str) -> Architecture:
    """By what `backbone.architecture` says. Raises ConfigError listing the valid ones."""
    if name not in ARCHITECTURES:
        fix = f"Set backbone.architecture to one of: {', '.join(sorted(ARCHITECTURES))}."
        raise ConfigError(f"Unknown architecture {name!r}.", fix=f"{hint} {fix}" if (hint := relative_of(name)) else fix)
    return ARCHITECTURES[name]


def relative_of(model_type: str) -> str:
    """What to do about a checkpoint of a type that is easily taken for one of ours; "" = nothing is known of it."""
    return next((row.relatives[model_type] for row in ARCHITECTURES.values() if model_type in row.relatives), "")


def architecture_of(model: nn.Module) -> Architecture:
    """Of a model of transformers, by its class.

    Raises:
        ConfigError: a class that no architecture has.
    """
    for row in ARCHITECTURES.values():
        if isinstance(model, row.model_class):
            return row
    raise ConfigError(f"A {type(model).__name__} is no backbone: there are {', '.join(sorted(ARCHITECTURES))}.")

"""The architectures that a backbone can have, one row each. A further one is one file beside `vilt.py` and one row here
(docs/method.md, Another backbone)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib import import_module

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
    PictureForm,
    Tiling,
    Tower,
    Written,
    rows_go_on,
    stack,
)

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
    "PictureForm",
    "Tiling",
    "Tower",
    "Written",
    "architecture_named",
    "architecture_of",
    "relative_of",
    "rows_go_on",
    "stack",
]

_FILES = {"clip": "clip", "idefics3": "smolvlm", "siglip": "siglip", "smolvlm": "smolvlm", "vilt": "vilt"}
"""Name of an architecture -> the file beside this one whose constant of that name, in capitals, is its row."""


class _Rows(Mapping[str, Architecture]):
    """Each row is imported when it is asked for: a run uses one architecture, and transformers' models take long to import."""

    def __getitem__(self, name: str) -> Architecture:
        row: Architecture = getattr(import_module(f"{__name__}.{_FILES[name]}"), name.upper())
        return row

    def __iter__(self) -> Iterator[str]:
        return iter(_FILES)

    def __len__(self) -> int:
        return len(_FILES)

    def __contains__(self, name: object) -> bool:
        return name in _FILES


ARCHITECTURES: Mapping[str, Architecture] = _Rows()


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
    """Of a model of transformers, by its class and the `model_type` of its configuration.

    Raises:
        ConfigError: a class that no architecture has.
    """
    named = str(getattr(getattr(model, "config", None), "model_type", ""))
    if named in ARCHITECTURES and isinstance(model, ARCHITECTURES[named].model_class):
        return ARCHITECTURES[named]
    raise ConfigError(f"A {type(model).__name__} is no backbone: there are {', '.join(sorted(ARCHITECTURES))}.")

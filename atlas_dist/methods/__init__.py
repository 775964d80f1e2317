"""Methods by name: ATLAS and what it is compared with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from atlas_dist.errors import ConfigError
from atlas_dist.methods import atlas, baselines, finetune, fusion
from atlas_dist.methods.base import Maker, Method

METHODS: Mapping[str, Maker] = {
    "atlas": atlas.make,
    "head_only": baselines.head_only,
    "individual_adapters": baselines.individual_adapters,
    "adapter_fusion": fusion.adapter_fusion,
    "i2i": fusion.i2i,
    "sequential_finetune": finetune.sequential_finetune,
    "freeze_bottom_k": finetune.freeze_bottom_k,
    "ewc": finetune.ewc,
    "lwf": finetune.lwf,
    "experience_replay": finetune.experience_replay,
    "multitask": finetune.multitask,
}


def make_method(name: str, settings: Mapping[str, Any]) -> Method:
    """Build the method called `name`.

    Raises:
        ConfigError: no such method, or a setting it does not have.
    """
    if name not in METHODS:
        raise ConfigError(f"method.name is {name!r}.", fix=f"Choose one of: {', '.join(METHODS)}.")
    return METHODS[name](settings)


__all__ = ["METHODS", "Method", "make_method"]

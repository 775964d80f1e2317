"""Methods by name: ATLAS and what it is compared with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from atlas_dist.errors import ConfigError
from atlas_dist.methods import atlas, atlas_paper, baselines, finetune, fusion
from atlas_dist.methods.base import Method, RegisteredMethod

METHODS: Mapping[str, RegisteredMethod] = {
    "atlas": RegisteredMethod(atlas.AtlasSettings, atlas.make),
    "atlas_paper": RegisteredMethod(atlas_paper.AtlasPaperSettings, atlas_paper.make),
    "head_only": RegisteredMethod(baselines.HeadOnlySettings, baselines.head_only),
    "individual_adapters": RegisteredMethod(baselines.IndividualSettings, baselines.individual_adapters),
    "adapter_fusion": RegisteredMethod(fusion.FusionSettings, fusion.adapter_fusion),
    "i2i": RegisteredMethod(fusion.FusionSettings, fusion.i2i),
    "sequential_finetune": RegisteredMethod(finetune.BackboneSettings, finetune.sequential_finetune),
    "freeze_bottom_k": RegisteredMethod(finetune.BottomSettings, finetune.freeze_bottom_k),
    "ewc": RegisteredMethod(finetune.EwcSettings, finetune.ewc),
    "lwf": RegisteredMethod(finetune.LwfSettings, finetune.lwf),
    "experience_replay": RegisteredMethod(finetune.ReplaySettings, finetune.experience_replay),
    "multitask": RegisteredMethod(finetune.BackboneSettings, finetune.multitask),
}


STORED_AS: Mapping[str, str] = {atlas_paper.STORED_NAME: "atlas_paper", atlas.STORED_NAME: "atlas"}
"""Stored name -> name, where they differ: in stores `atlas` is what 0.1 called so, the released form."""


def method_named(name: str) -> RegisteredMethod:
    """The method called `name`: the class of its settings, and what builds it. Raises ConfigError when there is none."""
    if name not in METHODS:
        raise ConfigError(f"method.name is {name!r}.", fix=f"Choose one of: {', '.join(METHODS)}.")
    return METHODS[name]


def make_method(name: str, settings: Mapping[str, Any]) -> Method:
    """Build the method called `name`.

    Raises:
        ConfigError: no such method, or a setting it does not have.
    """
    return method_named(name).build(settings)


def stored_method(name: str, settings: Mapping[str, Any]) -> Method:
    """The method that a store or a job calls `name`. Errors as `make_method`."""
    return make_method(name_of_stored(name), settings)


def name_of_stored(name: str) -> str:
    """What people call the method that a store or a job calls `name`."""
    return STORED_AS.get(name, name)


def stored_name(name: str) -> str:
    """What stores call the method that people call `name`."""
    return next((stored for stored, known in STORED_AS.items() if known == name), name)


__all__ = [
    "METHODS",
    "Method",
    "RegisteredMethod",
    "make_method",
    "method_named",
    "name_of_stored",
    "stored_method",
    "stored_name",
]

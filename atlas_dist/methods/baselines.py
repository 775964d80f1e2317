"""Baselines that learn every task apart from the others: the floor and the usual rival of a bank of adapters."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Any

from pydantic import Field

from atlas_dist.core.types import Role, Stage, StagePlan
from atlas_dist.methods.adapters import AdapterSettings
from atlas_dist.methods.base import FITTED, Method, Settings, checked, spec_of
from atlas_dist.model.mixing_spec import MixingSpec, Weighting


class UpInit(StrEnum):
    """How the up-projection U of a new adapter starts."""

    ZERO = "zero"
    NORMAL = "normal"


class HeadOnlySettings(Settings):
    """Nothing to set but how a pair's second image is marked."""

    second_image_type: int = Field(default=1, ge=1, le=2)


class IndividualSettings(HeadOnlySettings, AdapterSettings):
    """One adapter a task, never shared (Houlsby et al. 2019, arXiv 1902.00751)."""

    rank: int = Field(default=48, ge=1)
    """Width r of an adapter: of its bottleneck, or of LoRA's A and B."""
    came_later = AdapterSettings.came_later | {"init"}
    init: UpInit = UpInit.NORMAL
    """How an adapter's second projection starts: `zero`, so that it changes nothing at first, or `normal`, N(0, 0.02)."""


def head_only(settings: Mapping[str, Any]) -> Method:
    """The frozen backbone and a head: what the features alone are worth."""
    own = checked(HeadOnlySettings, "head_only", settings)
    stage = StagePlan(stage=Stage.TWO, sees_earlier=False, grows=False, trains=(Role.HEAD,))
    return Method(
        spec=spec_of("head_only", (stage,), own, grows_bank=False),
        mixing=MixingSpec(weighting=Weighting.PLAIN),
        second_image_type=own.second_image_type,
        budget=FITTED,
    )


def individual_adapters(settings: Mapping[str, Any]) -> Method:
    """One plain adapter (alpha = 1) and a head for each task, apart from all others."""
    own = checked(IndividualSettings, "individual_adapters", settings)
    stage = StagePlan(stage=Stage.TWO, sees_earlier=False, grows=True, trains=(Role.ADAPTER, Role.HEAD))
    return Method(
        spec=spec_of("individual_adapters", (stage,), own, grows_bank=False),
        mixing=MixingSpec(rank=own.rank, weighting=Weighting.PLAIN, zero_up=own.init is UpInit.ZERO, lora=own.lora()),
        second_image_type=own.second_image_type,
        budget=FITTED,
    )

"""Rivals that share adapters without a query: attention over the earlier tasks' adapters, and adapters that begin where it
ended."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import Field

from atlas_dist.core.types import Role, Stage, StagePlan
from atlas_dist.methods.base import FITTED, Method, Settings, checked, spec_of
from atlas_dist.model.mixing_spec import MixingSpec, Weighting


class FusionSettings(Settings):
    """Settings of both methods."""

    rank: int = Field(default=48, ge=1)
    """Width r of an adapter's bottleneck."""
    second_image_type: int = Field(default=1, ge=1, le=2)


EXTRACT = StagePlan(stage=Stage.TWO, sees_earlier=False, grows=True, trains=(Role.ADAPTER, Role.HEAD))
"""A plain adapter of one's own, apart from all others."""
COMPOSE = StagePlan(stage=Stage.ONE, sees_earlier=True, grows=False, trains=(Role.FUSION, Role.HEAD), needs_earlier=True)
"""Attention over the frozen adapters that exist by then."""
IMITATE = StagePlan(stage=Stage.INIT, sees_earlier=True, grows=True, trains=(Role.ADAPTER,), needs_earlier=True)
"""A new adapter learns to give what the fusion gives."""


def adapter_fusion(settings: Mapping[str, Any]) -> Method:
    """AdapterFusion (Pfeiffer et al. 2021, arXiv 2005.00247): knowledge extraction, then knowledge composition.

    Composition attends over the adapters of the tasks before and the task's own; later tasks leave it as it is.
    """
    return _method("adapter_fusion", (EXTRACT, COMPOSE), settings)


def i2i(settings: Mapping[str, Any]) -> Method:
    """Improvise to initialize (Srinivasan et al. 2023, "I2I: Initializing Adapters from Improvised Knowledge", arXiv 2304.02168).

    A fusion of the earlier adapters learns the new task (improvise); a new adapter is distilled from it, site by site
    (initialize); then the new adapter learns the task alone (train), so that nothing but one adapter a task remains.
    """
    return _method("i2i", (COMPOSE, IMITATE, EXTRACT), settings)


def _method(name: str, stages: tuple[StagePlan, ...], settings: Mapping[str, Any]) -> Method:
    own = checked(FusionSettings, name, settings)
    return Method(
        spec=spec_of(name, stages, own, grows_bank=True),
        mixing=MixingSpec(rank=own.rank, weighting=Weighting.PLAIN),
        second_image_type=own.second_image_type,
        penalty_weight=1.0,
        budget=FITTED,
        fuses=True,
    )

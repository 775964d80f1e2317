"""ATLAS as released: experience-based learning, then novel knowledge expansion (arXiv 2410.10923, sections 3.2 and 3.3).

`method=atlas_paper`. In stores it is called `atlas`, as 0.1 wrote it; `methods/atlas.py` has today's default.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Any

from pydantic import Field

from atlas_dist.core.types import Budget, Role, Stage, StagePlan
from atlas_dist.methods.base import Method, Settings, checked, spec_of
from atlas_dist.model.mixing_spec import AttendOver, MixingSpec, Weighting

STORED_NAME = "atlas"
"""In job keys and stores, since 0.1."""


class PaperWeighting(StrEnum):
    """How an adapter's coefficient is formed: `model.mixing.Weighting` without what the released form does not have."""

    WHOLE = Weighting.WHOLE.value
    DIMENSION = Weighting.DIMENSION.value
    PLAIN = Weighting.PLAIN.value


class Stages(StrEnum):
    """Which stages run: both, or one alone (the paper's ablations). With stage one alone, only the first task grows an
    adapter."""

    BOTH = "both"
    ONE = "one"
    TWO = "two"


class QueryInit(StrEnum):
    """Where stage one's queries start: the previous task's (as released) or fresh draws from N(0, 1)."""

    INHERIT = "inherit"
    RANDOM = "random"


class AtlasPaperSettings(Settings):
    """Settings of the released form; the defaults are the paper's and the released code's."""

    rank: int = Field(default=48, ge=1)
    """Width r of an adapter's bottleneck."""
    weighting: PaperWeighting = PaperWeighting.WHOLE
    """One coefficient a sample (`whole`), one a feature (`dimension`), or none (`plain`)."""
    attend_over: AttendOver = AttendOver.OUTPUT
    """What the query attends over: the adapter's output (the released code) or the site's input (the paper's figure)."""
    outer_residual: bool = False
    """Add the site's input once more to the mixture (the paper's figure)."""
    ortho_weight: float = Field(default=0.1, ge=0)
    """Weight of the orthogonality penalty; 0 = off."""
    ortho_normalize: bool = False
    """Give the rows unit length before the penalty compares them (the released code does not)."""
    query_init: QueryInit = QueryInit.INHERIT
    stages: Stages = Stages.BOTH
    second_image_type: int = Field(default=1, ge=1, le=2)
    """Modality type of a pair's second image: 1 in ATLAS, 2 in CLiMB."""


EXPERIENCE = StagePlan(stage=Stage.ONE, sees_earlier=True, grows=False, trains=(Role.QUERIES, Role.HEAD), needs_earlier=True)
EXPANSION = StagePlan(stage=Stage.TWO, sees_earlier=True, grows=True, trains=(Role.ADAPTER, Role.HEAD))

_STAGES = {Stages.BOTH: (EXPERIENCE, EXPANSION), Stages.ONE: (EXPERIENCE,), Stages.TWO: (EXPANSION,)}


def make(settings: Mapping[str, Any]) -> Method:
    """Build it from `method.settings`. Raises ConfigError."""
    own = checked(AtlasPaperSettings, "atlas_paper", settings)
    return Method(
        # Somebody has to begin: a task that finds nothing to reuse learns an adapter in every variant.
        spec=spec_of("atlas_paper", _STAGES[own.stages], own, grows_bank=True, first=(EXPANSION,), stored_name=STORED_NAME),
        mixing=MixingSpec(
            rank=own.rank,
            weighting=Weighting(own.weighting.value),
            attend_over=own.attend_over,
            outer_residual=own.outer_residual,
        ),
        budget=Budget(),  # AdamW's epsilon as released
        penalty_weight=own.ortho_weight,
        normalize_ortho=own.ortho_normalize,
        inherit_queries=own.query_init is QueryInit.INHERIT,
        second_image_type=own.second_image_type,
    )

"""ATLAS: two stages that help, and a bank that grows where growing pays (docs/method.md, What is committed).

describe   what the task's samples look like to the frozen backbone: its signature
own        one adapter and a head, apart from all others: what `individual_adapters` trains, and shared with it
stage one  experience: coefficients of the k nearest earlier adapters, and a head; the adapters are frozen
stage two  both: an own adapter on top of experience, and its head, from what the two before it learnt
select     commits the best of the three on validation; without an adapter of its own where that does not pay
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

from pydantic import Field

from atlas_dist.core.selection import Expand
from atlas_dist.core.types import Role, Stage, StagePlan
from atlas_dist.methods.adapters import AdapterSettings
from atlas_dist.methods.base import FITTED, Method, Selecting, checked, spec_of
from atlas_dist.methods.baselines import individual_adapters
from atlas_dist.model.mixing_spec import MixingSpec, Weighting

STORED_NAME = "atlas2"
"""Of this form in job keys and stores, where `atlas` is the released form (`methods/atlas_paper.py`)."""


class AtlasSettings(AdapterSettings):
    """Settings of ATLAS; the defaults are what docs/experience.md chose by measurements."""

    rank: int = Field(default=48, ge=1)
    """Width r of an adapter: of its bottleneck, or of LoRA's A and B."""
    retrieve: int = Field(default=4, ge=0)
    """How many of the earlier adapters a task looks at: the nearest by signature; 0 = all of them."""
    per_sample: bool = False
    """Whether the coefficients depend on the sample, or only on task, site and adapter."""
    coefficient_lr: float = Field(default=0.05, gt=0)
    """Peak learning rate of the coefficients in stage one."""
    stage_two_coefficient_lr: float = Field(default=0.0, ge=0)
    """The same in stage two; 0 = the coefficients stay as they are when it starts."""
    start: Literal["mean", "best"] = "best"
    """Where the coefficients start: `mean`: 1/k each; `best`: there, at nothing, or as one of the k tasks reads them and its own
    adapter: whichever has the smallest loss with a fitted head (tasks whose heads are not fitted start from the mean)."""
    stage_two_start: Literal["nothing", "best"] = "best"
    """Where stage two starts: `nothing`: on top of experience its adapter adds nothing yet, and the coefficients stay; `best`:
    there, or from the adapter that was learnt apart with a share of stage one's coefficients, whichever has the smallest
    validation loss; from there on the adapter trains, and the coefficients with it if `stage_two_coefficient_lr` says so."""
    expand: Expand = Expand.EVIDENCE
    """When the bank grows: `evidence`: where an own adapter pays; `always`: with every task."""
    epsilon: float = Field(default=0.5, ge=0)
    """Points of the validation score by which an own adapter may be ahead of experience alone without being worth its place."""
    epsilon_loss: float = Field(default=0.02, ge=0)
    """The same of the validation loss in nats, which has to agree where too few samples leave the score unsure."""
    familiar: float = Field(default=0.995, ge=0)
    """Similarity of signatures from which on a task's data count as those of a task in the bank: there an own adapter has to be
    surely better by its score, since a smaller loss is a longer training; above 1 = never."""
    confidence: float = Field(default=0.9, ge=0.5, le=1)
    """Share of a paired bootstrap over the validation samples from which on the score counts as sure."""
    shuffle_bank: bool = False
    """A control: the weights of every earlier adapter are read in another order. What is gained then is not experience."""
    second_image_type: int = Field(default=1, ge=1, le=2)
    """Modality type of a pair's second image: 1 in ATLAS, 2 in CLiMB."""


EXPERIENCE = StagePlan(stage=Stage.ONE, sees_earlier=True, grows=False, trains=(Role.COEFFICIENTS, Role.HEAD), needs_earlier=True)
ON_TOP = StagePlan(stage=Stage.TWO, sees_earlier=True, grows=True, trains=(Role.ADAPTER, Role.HEAD), needs_earlier=True)
BOTH = replace(ON_TOP, trains=(Role.ADAPTER, Role.COEFFICIENTS, Role.HEAD))
"""Also where the coefficients' rate is 0: its checkpoints have to say where they started."""


def make(settings: Mapping[str, Any]) -> Method:
    """Build ATLAS from `method.settings`. Raises ConfigError."""
    own = checked(AtlasSettings, "atlas", settings)
    alone = individual_adapters(
        {"rank": own.rank, "second_image_type": own.second_image_type, "init": "zero", **own.of_adapters()}
    )
    goes_on = own.stage_two_start == "best"
    stage_two = BOTH if goes_on or own.stage_two_coefficient_lr else ON_TOP
    spec = spec_of("atlas", (EXPERIENCE, stage_two), own, grows_bank=True, stored_name=STORED_NAME)
    return Method(
        spec=replace(spec, alone=alone.spec, goes_on_from_alone=goes_on),
        mixing=MixingSpec(
            rank=own.rank, weighting=Weighting.EXPERIENCE, per_sample=own.per_sample, zero_up=True, lora=own.lora()
        ),
        coefficient_lr=own.coefficient_lr,
        stage_two_coefficient_lr=own.stage_two_coefficient_lr,
        budget=FITTED,
        shuffles=own.shuffle_bank,
        selecting=Selecting(
            own.retrieve, own.expand, own.epsilon, own.epsilon_loss, own.confidence, own.familiar, own.start == "best"
        ),
        second_image_type=own.second_image_type,
    )

"""Rivals that change the backbone itself: each task goes on from the weights that the task before it left.

Nothing that was learnt is altered: a stage trains a copy and leaves the whole set of trained weights as a new artifact. An old
task can be read with the backbone it was learnt with (task view) or, as in practice, where one backbone serves all, with the
newest (latest view); the latter is where these methods forget, and the one that counts for them.

What computes (`ewc.py`, `lwf.py`, `replay.py`) is imported where such a method is made: it needs torch, and other plans do not.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import Field

from atlas_dist.core.types import Role, Stage, StagePlan
from atlas_dist.methods.base import Method, Settings, checked, spec_of
from atlas_dist.model.mixing_spec import MixingSpec, Weighting


class BackboneSettings(Settings):
    """What every method that trains the backbone has to set."""

    trunk_lr_scale: float = Field(default=0.2, gt=0)
    """The backbone learns at the base rate times this; heads at the base rate (CLiMB fine-tunes ViLT at 1e-4)."""
    second_image_type: int = Field(default=1, ge=1, le=2)


class BottomSettings(BackboneSettings):
    """How much of the backbone stays."""

    layers: int = Field(default=9, ge=1)
    """k: the embeddings and the lowest k layers stay as pretrained."""


class EwcSettings(BackboneSettings):
    """How strongly weights are held, and how their importance is estimated."""

    weight: float = Field(default=100.0, ge=0)
    """λ of the penalty λ/2 Σ F (θ - θ*)²."""
    fisher_samples: int = Field(default=256, ge=1)
    """Training samples of each task that its Fisher information is estimated from, rounded up to whole batches."""


class ReplaySettings(BackboneSettings):
    """How much is remembered and how often it is rehearsed."""

    capacity: int = Field(default=1000, ge=1)
    """Samples in the reservoir, over all tasks."""
    every: int = Field(default=10, ge=1)
    """One step of rehearsal for this many steps of the new task, shared among the earlier tasks by what the reservoir holds."""


class LwfSettings(BackboneSettings):
    """How strongly, and how softly, the earlier answers are held on to."""

    weight: float = Field(default=1.0, ge=0)
    """Of the distillation loss, averaged over the earlier tasks."""
    temperature: float = Field(default=2.0, gt=0)


TUNE = StagePlan(stage=Stage.TWO, sees_earlier=False, grows=False, trains=(Role.BACKBONE, Role.HEAD))


def _method(name: str, own: BackboneSettings, *, recalls: bool = False, joint: bool = False, **objects: Any) -> Method:
    spec = spec_of(name, (TUNE,), own, grows_bank=False, shares_backbone=True, recalls=recalls, joint=joint)
    return Method(
        spec=spec,
        mixing=MixingSpec(weighting=Weighting.PLAIN),
        second_image_type=own.second_image_type,
        backbone_lr_scale=own.trunk_lr_scale,
        **objects,
    )


def sequential_finetune(settings: Mapping[str, Any]) -> Method:
    """The whole backbone learns task after task, and nothing holds it: the floor (CLiMB's "Sequential FT", arXiv 2206.09059)."""
    return _method("sequential_finetune", checked(BackboneSettings, "sequential_finetune", settings))


def freeze_bottom_k(settings: Mapping[str, Any]) -> Method:
    """As `sequential_finetune`, but the embeddings and the lowest k layers stay (CLiMB's "Frozen Bottom-K", arXiv 2206.09059)."""
    own = checked(BottomSettings, "freeze_bottom_k", settings)
    return _method("freeze_bottom_k", own, frozen_layers=own.layers)


def ewc(settings: Mapping[str, Any]) -> Method:
    """Elastic weight consolidation (Kirkpatrick et al. 2017, arXiv 1612.00796)."""
    from atlas_dist.methods.ewc import FisherMemory, PullBack

    own = checked(EwcSettings, "ewc", settings)
    return _method("ewc", own, recalls=True, regularizer=PullBack(own.weight), build_memory=FisherMemory(own.fisher_samples))


def experience_replay(settings: Mapping[str, Any]) -> Method:
    """Rehearsal from a reservoir of earlier samples (Chaudhry et al. 2019, arXiv 1902.10486)."""
    from atlas_dist.methods.replay import Reservoir

    own = checked(ReplaySettings, "experience_replay", settings)
    reservoir = Reservoir(own.capacity, own.every)
    return _method("experience_replay", own, recalls=True, build_memory=reservoir, replay=reservoir, trains_auxiliary=True)


def lwf(settings: Mapping[str, Any]) -> Method:
    """Learning without forgetting (Li & Hoiem 2016, arXiv 1606.09282)."""
    from atlas_dist.methods.lwf import Distilled

    own = checked(LwfSettings, "lwf", settings)
    return _method("lwf", own, recalls=True, regularizer=Distilled(own.weight, own.temperature), trains_auxiliary=True)


def multitask(settings: Mapping[str, Any]) -> Method:
    """All tasks at once (Caruana 1997, "Multitask Learning"): what a sequence would reach if nothing had to be remembered."""
    from atlas_dist.methods.replay import Everything

    own = checked(BackboneSettings, "multitask", settings)
    return _method("multitask", own, joint=True, replay=Everything(), trains_auxiliary=True)

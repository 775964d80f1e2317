"""What a continual-learning method is here: data for the plan, a spec for the model, and up to three small objects.

A method never sees workers, shards or stores. The plan reads its `MethodSpec` (which stages, what each sees and trains, what one
task takes over from the one before); the trainer asks for the mixing spec and for the small objects:

    regularizer   adds to the loss            EWC's quadratic penalty, LwF's distillation
    build_memory  what a task leaves to later ones, as tensors    EWC's Fisher information, replay's reservoir
    replay        which task's samples a step takes               replay, multitask

What a task leaves takes up what was left to it: a memory is a fold over the tasks, so that a task needs only the one before it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, TypeAlias, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from atlas_dist.core.sampling import Ordinals
from atlas_dist.core.selection import Expand
from atlas_dist.core.types import Augment, AuxiliaryTask, Budget, HeadStart, MethodSpec, StagePlan
from atlas_dist.errors import ConfigError
from atlas_dist.model.mixing_spec import MixingSpec
from atlas_dist.validation import faults

if TYPE_CHECKING:  # plans are made of methods in processes that never import torch
    from torch import Tensor

    from atlas_dist.model.heads import Head, HeadSpec


class Settings(BaseModel):
    """Base of every method's settings: frozen, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    came_later: ClassVar[frozenset[str]] = frozenset()
    """Settings that job keys name only where they differ from the default: older results keep their keys."""

    def in_job_key(self) -> dict[str, Any]:
        """The settings as job keys and stores have them."""
        dumped = self.model_dump(mode="json")
        unused = {name for name in self.came_later if getattr(self, name) == type(self).model_fields[name].default}
        return {name: value for name, value in dumped.items() if name not in unused}


class StageContext(Protocol):
    """A stage in progress, as a method's small objects see it."""

    @property
    def task(self) -> str:
        """Name of the task that is being learnt."""
        ...

    @property
    def seed(self) -> int:
        """Of the run."""
        ...

    @property
    def samples(self) -> Ordinals:
        """Ordinals of the task's training samples in their manifest, ascending; all of them, or the low-shot choice."""
        ...

    @property
    def backbone(self) -> Mapping[str, Tensor]:
        """The backbone's parameters that train, by name; live."""
        ...

    @property
    def memory(self) -> Mapping[str, Tensor]:
        """What the task before left; {} for the first task."""
        ...

    @property
    def heads(self) -> Mapping[str, tuple[HeadSpec, Head]]:
        """The heads of the earlier tasks, which train along; live."""
        ...

    def before(self, batch: Mapping[str, Tensor]) -> tuple[Tensor, Mapping[str, Head]]:
        """What the model of the task before says: its features [b·K, I·D] of a batch, without gradient, and its frozen heads."""
        ...

    def fisher(self, samples: int) -> dict[str, Tensor]:
        """Mean over about `samples` training samples of the squared gradient of each one's loss, for every name of `backbone`."""
        ...


Regularizer: TypeAlias = "Callable[[Mapping[str, Tensor], Tensor], Tensor]"
"""(batch, the features of its forward pass [b·K, I·D]) -> a scalar that is added once a step, or one number a sample [b]."""

BuildRegularizer = Callable[[StageContext], Regularizer]
BuildMemory: TypeAlias = "Callable[[StageContext], dict[str, Tensor]]"


class Replay(Protocol):
    """Which other tasks a stage's steps are shared with."""

    def steps(
        self, own: int, auxiliary_tasks: Mapping[str, tuple[AuxiliaryTask, int]], memory: Mapping[str, Tensor]
    ) -> dict[str, int]:
        """Further steps of each auxiliary task, beside the `own` ones of the task. `auxiliary_tasks`: name -> (auxiliary task,
        its own length in steps)."""
        ...

    def samples(self, task: str, memory: Mapping[str, Tensor]) -> tuple[int, ...] | None:
        """Ordinals of the auxiliary task's samples that may be used; None = all of them."""
        ...


@dataclass(frozen=True)
class Selecting:
    """How a method that trains several forms of a task looks back, and decides (core/selection.py)."""

    retrieve: int
    """How many earlier adapters a task looks at, the nearest by signature; 0 = all."""
    expand: Expand
    epsilon: float
    epsilon_loss: float
    confidence: float
    """These three as `core.selection.select` takes them."""
    familiar: float
    """Similarity to a task of the bank from which on a task's data count as familiar there."""
    chooses_start: bool = False
    """Whether stage one may start from what an earlier task made of the same adapters (train/starts.py)."""


PLAIN_START = Budget(eps=1e-8)
FITTED = Budget(eps=1e-8, head_start=HeadStart.AUTO, augment=Augment.AUTO, head_lr=1e-3, head_refit=True)
"""What methods on a frozen backbone start from: docs/experience.md has what each is worth."""


@dataclass(frozen=True)
class Method:
    """One method with its settings, as plan and trainer use it.

    `penalty_weight` multiplies what the model's sites return besides their outputs: the orthogonality penalty of ATLAS
    (docs/method.md, One site), the error of an adapter that imitates a fusion.
    """

    spec: MethodSpec
    mixing: MixingSpec
    penalty_weight: float = 0.0
    normalize_ortho: bool = False
    inherit_queries: bool = True
    second_image_type: int = 1
    fuses: bool = False
    """Several visible adapters are read through AdapterFusion."""
    frozen_layers: int = 0
    """How many layers at the bottom of a backbone that trains stay as pretrained, with the embeddings below them."""
    backbone_lr_scale: float = 1.0
    regularizer: BuildRegularizer | None = None
    build_memory: BuildMemory | None = None
    replay: Replay | None = None
    trains_auxiliary: bool = False
    """The heads of the other tasks of a job train along."""
    budget: Budget = PLAIN_START
    """What holds where neither the run nor a task names anything. AdamW's epsilon: gradients of coefficients are about 1e-6."""
    coefficient_lr: float = 0.0
    """Peak learning rate of the coefficients α in a stage that adds no adapter."""
    stage_two_coefficient_lr: float = 0.0
    """The same in one that adds an adapter; 0 = they stay."""
    shuffles: bool = False
    """The bank's weights are read in another order: a control with every parameter of the bank and none of its knowledge."""
    selecting: Selecting | None = None
    """The method trains several forms of a task and commits one."""


@dataclass(frozen=True)
class RegisteredMethod:
    """A method that a run may name."""

    settings: type[Settings]
    """Declares and checks `method.settings`."""
    build: Callable[[Mapping[str, Any]], Method]
    """Builds the method from its settings; raises ConfigError."""


S = TypeVar("S", bound=Settings)


def checked(kind: type[S], method: str, settings: Mapping[str, Any]) -> S:
    """Validate a method's settings; ConfigError names the key, its value and what would be valid."""
    try:
        return kind.model_validate(dict(settings))
    except ValidationError as error:
        lines = faults(error, lambda _: kind.model_fields, prefix="method.settings.", unknown=f"{method} has no such setting")
        raise ConfigError("The method's settings are not valid:\n" + "\n".join(f"  {x}" for x in lines)) from None


def spec_of(name: str, stages: tuple[StagePlan, ...], settings: Settings, *, grows_bank: bool, **more: Any) -> MethodSpec:
    """The plan's view of a method; every setting becomes part of every job key. `more`: further fields of `MethodSpec`."""
    return MethodSpec(name=name, stages=stages, settings=settings.in_job_key(), grows_bank=grows_bank, **more)

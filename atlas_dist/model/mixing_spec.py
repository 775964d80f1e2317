"""What adapters are made of and how their outputs are weighed, as values: plans are made of these in processes that never import
torch. `mixing.py`, `experience.py` and `lora.py` build modules of them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum

from atlas_dist.errors import ConfigError

INIT_STD = 0.02
"""Of the down and up projections; queries and keys start as N(0, 1), biases as 0 (docs/method.md, One site)."""


Targets = tuple[str, ...] | str
"""As `target_modules` of PEFT's LoraConfig."""


class Weighting(StrEnum):
    """How an adapter's coefficient is formed."""

    WHOLE = "whole"
    """One number a sample and adapter: the cosine of o_i and k_i."""
    DIMENSION = "dimension"
    """One number a sample, adapter and feature: the cosine over the query rows, feature by feature."""
    PLAIN = "plain"
    """Always 1; no queries and keys (the individual-adapter baseline)."""
    EXPERIENCE = "experience"
    """A signed number a sample and adapter on top of an unscaled stream (model/experience.py: ATLAS's default form)."""


class AttendOver(StrEnum):
    """What the query looks at, besides itself."""

    OUTPUT = "output"
    """The adapter's output y_i: the released code."""
    INPUT = "input"
    """The site's input x: the paper's figure."""


@dataclass(frozen=True)
class LoraSpec:
    """How a new LoRA adapter is made, besides its rank r.

    Args:
        targets: which linear layers.
        alpha: `lora_alpha`; 0 = the rank, so that s is 1 (with rsLoRA sqrt(r)).
        rslora: s = alpha / sqrt(r) instead of alpha / r (Kalajdzievski 2023, arXiv 2312.03732).
    """

    targets: Targets = ()
    alpha: float = 0.0
    rslora: bool = False

    def scale(self, rank: int) -> float:
        """s, which B A x is multiplied with."""
        return (self.alpha or rank) / (math.sqrt(rank) if self.rslora else rank)


@dataclass(frozen=True)
class MixRule:
    """What does not vary from call to call.

    Args:
        heads: H; divides D.
        per_feature: α is one number a feature (`dimension`) instead of one a sample (`whole`).
        over_output: the query attends over the adapter's output y_i (the released code) instead of the site's input x (the
            paper's figure).
    """

    heads: int
    per_feature: bool = False
    over_output: bool = True


@dataclass(frozen=True)
class MixingSpec:
    """The choices of a mixing site, equal at every site of a model.

    Args:
        rank: r, the width of the adapters' bottleneck.
        weighting: see Weighting.
        attend_over: see AttendOver.
        outer_residual: add the site's input once more, as the paper's figure draws it (default: as the code, no).
        query_rows: N of `dimension`; `whole` has one row, the others none.
        init_std: of a new adapter's V.
        zero_up: a new adapter's U starts at zero, so that it changes nothing at first (default: N(0, 0.02), as released).
        per_sample: `experience`: α depends on the sample.
        lora: the adapters are LoRA at linear layers (model/lora.py) instead of bottlenecks at the sites; None = bottlenecks.
    """

    rank: int = 48
    weighting: Weighting = Weighting.WHOLE
    attend_over: AttendOver = AttendOver.OUTPUT
    outer_residual: bool = False
    query_rows: int = 24
    init_std: float = INIT_STD
    zero_up: bool = False
    per_sample: bool = True
    lora: LoraSpec | None = None

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ConfigError(f"adapter rank is {self.rank}.", fix="Set it to at least 1 (the paper uses 48).")
        if self.query_rows < 1:
            raise ConfigError(f"query_rows is {self.query_rows}.", fix="Set it to at least 1 (the paper uses 24).")
        if self.lora is not None and self.weighting not in (Weighting.PLAIN, Weighting.EXPERIENCE):
            raise ConfigError(
                f"LoRA adapters have no coefficients of the weighting {self.weighting.value}.", fix="See method=atlas."
            )
        if self.lora is not None and self.weighting is Weighting.EXPERIENCE and self.per_sample:
            raise ConfigError(
                "per_sample is true, but LoRA adapters have one coefficient a task, layer and adapter.",
                fix="Set method.settings.per_sample=false.",
            )

    @property
    def causal(self) -> bool:
        """What an adapter does to a token depends on no token behind it: a decoder that writes token by token needs that."""
        return self.weighting is Weighting.PLAIN or (self.weighting is Weighting.EXPERIENCE and not self.per_sample)

    def query_shape(self, hidden: int) -> tuple[int, ...]:
        """Shape of one adapter's query and key: [D], [N, D], or () when the weighting has none."""
        shapes: dict[Weighting, tuple[int, ...]] = {
            Weighting.WHOLE: (hidden,),
            Weighting.DIMENSION: (self.query_rows, hidden),
            Weighting.PLAIN: (),
            Weighting.EXPERIENCE: (),
        }
        return shapes[self.weighting]

    @property
    def has_queries(self) -> bool:
        """Whether adapters have queries and keys of the released form."""
        return self.query_shape(1) != ()

    @property
    def weighs(self) -> bool:
        """Whether coefficients are learnt at all."""
        return self.weighting is not Weighting.PLAIN

    def rule(self, heads: int) -> MixRule:
        """What `mix` needs to know."""
        return MixRule(
            heads=heads,
            per_feature=self.weighting is Weighting.DIMENSION,
            over_output=self.attend_over is AttendOver.OUTPUT,
        )

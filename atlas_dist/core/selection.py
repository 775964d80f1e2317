"""What a task commits, and whether the bank grows: a decision on evidence (docs/method.md, What is committed).

Three forms of a task are trained and scored on the same validation samples:

    experience   the earlier adapters, mixed; no adapter of its own
    own          one adapter of its own, apart from all others
    both         its own adapter on top of the mixed earlier ones

The task commits the best of them, unless the best one with an adapter of its own does not beat experience alone by more than ε
with enough confidence: then it commits experience, and the bank does not grow.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

Scores = NDArray[np.float64]
"""One number a validation sample, in [0, 1]; the same samples in the same order for every form."""

RESAMPLES = 10_000
"""Bootstrap resamples; the quantiles below are then good to about half a percent of their level."""


class Form(StrEnum):
    """What a committed task consists of."""

    EXPERIENCE = "experience"
    OWN = "own"
    BOTH = "both"

    @property
    def grows(self) -> bool:
        """It leaves an adapter in the bank."""
        return self is not Form.EXPERIENCE


class Expand(StrEnum):
    """When the bank may grow."""

    EVIDENCE = "evidence"
    """Only where an own adapter pays."""
    ALWAYS = "always"
    """With every task."""


@dataclass(frozen=True)
class Difference:
    """A paired bootstrap of mean differences, in points (percent of the score)."""

    mean: float
    low: float
    high: float
    """The middle 95 % of the resampled means."""
    confidence: float
    """Share of the resampled means above ε, 0 to 1; resamples that equal ε count half."""


@dataclass(frozen=True)
class Selection:
    """The decision on one task, as its result records it."""

    form: Form
    scores: Mapping[Form, float]
    """Percent on the samples that chose, of each form that was trained."""
    samples: int
    """How many samples chose."""
    gain: Difference | None = field(default=None)
    """The best form with an own adapter against experience alone; None where there was no experience."""


def paired_bootstrap(ours: Scores, theirs: Scores, *, above: float = 0.0, seed: int = 0) -> Difference:
    """Resample the samples with replacement: how sure is it that `ours` is better on average than `theirs`?

    Args:
        ours, theirs: [n] scores of the same n >= 1 samples, 0 to 1.
        above: ε in points.
        seed: of the resampling; the same inputs give the same answer.

    Differences take few distinct values (-1, 0 and 1 for accuracy), so that a resample is a draw of how often each occurs: exact,
    and as cheap for 200,000 samples as for 20.

    >>> paired_bootstrap(np.array([1.0, 1.0, 1.0, 0.0]), np.array([1.0, 0.0, 0.0, 0.0])).mean
    50.0
    """
    difference = 100.0 * (np.asarray(ours, dtype=np.float64) - np.asarray(theirs, dtype=np.float64))
    values, counts = np.unique(difference, return_counts=True)
    draws = np.random.default_rng(seed).multinomial(len(difference), counts / len(difference), size=RESAMPLES)
    means = draws @ values / len(difference)
    low, high = np.quantile(means, (0.025, 0.975))
    tied = np.isclose(means, above, rtol=0.0, atol=1e-9)
    confidence = float(np.mean((means > above) & ~tied) + 0.5 * np.mean(tied))
    return Difference(float(difference.mean()), float(low), float(high), confidence)


def select(scores: Mapping[Form, Scores], *, expand: Expand, epsilon: float, confidence: float) -> Selection:
    """Decide what a task commits.

    Args:
        scores: per-sample scores of every form that was trained: at least one with an adapter of its own, or experience.
        expand: whether growing needs evidence.
        epsilon: points by which an own adapter has to be better.
        confidence: share of the bootstrap that has to say so.

    Of the two forms with an adapter of their own the better one stands for both; where they are equal, `own`, which needs no
    other adapter to be read.
    """
    means = {form: 100.0 * float(np.mean(scores[form])) for form in Form if form in scores}
    samples = len(next(iter(scores.values())))
    grown = max((f for f in (Form.OWN, Form.BOTH) if f in means), key=lambda f: means[f], default=None)
    if grown is None:
        return Selection(Form.EXPERIENCE, means, samples)
    if Form.EXPERIENCE not in means:
        return Selection(grown, means, samples)
    gain = paired_bootstrap(scores[grown], scores[Form.EXPERIENCE], above=epsilon)
    pays = expand is Expand.ALWAYS or gain.confidence >= confidence
    return Selection(grown if pays else Form.EXPERIENCE, means, samples, gain)

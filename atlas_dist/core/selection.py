"""What a task commits, and whether the bank grows: a decision on evidence (docs/method.md, What is committed).

Three forms of a task are trained and scored on the same validation samples:

    experience   the earlier adapters, mixed; no adapter of its own
    own          one adapter of its own, apart from all others
    both         its own adapter on top of the mixed earlier ones

The task commits the best of them, unless the best one with an adapter of its own does not beat experience alone by more than ε:
then it commits experience, and the bank does not grow. `Rule` says what "better" means.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # results name these values, and a shell's TAB, which reads results, does not wait for what computes
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
    losses: Mapping[Form, float]
    """The mean loss of each, in nats."""
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
    import numpy as np

    difference = 100.0 * (np.asarray(ours, dtype=np.float64) - np.asarray(theirs, dtype=np.float64))
    values, counts = np.unique(difference, return_counts=True)
    draws = np.random.default_rng(seed).multinomial(len(difference), counts / len(difference), size=RESAMPLES)
    means = draws @ values / len(difference)
    low, high = np.quantile(means, (0.025, 0.975))
    tied = np.isclose(means, above, rtol=0.0, atol=1e-9)
    confidence = float(np.mean((means > above) & ~tied) + 0.5 * np.mean(tied))
    return Difference(float(difference.mean()), float(low), float(high), confidence)


@dataclass(frozen=True)
class Evidence:
    """How one form does on the validation samples that choose: `scores` [n], 0 to 1, and `losses` [n], in nats."""

    scores: Scores
    losses: Scores

    @property
    def score(self) -> float:
        """Mean score in percent."""
        return 100.0 * float(self.scores.mean())

    @property
    def loss(self) -> float:
        """Mean loss in nats."""
        return float(self.losses.mean())


@dataclass(frozen=True)
class Rule:
    """When one form counts as better than another.

    The score decides where a paired bootstrap is sure of it. Where it is not, as with the few dozen samples of a low-shot task,
    the loss decides: it varies less from sample to sample than being right or wrong (docs/experience.md: what that is worth).
    """

    confidence: float
    """Share of the bootstrap that counts as sure."""

    def better(self, one: Evidence, other: Evidence, points: float = 0.0, nats: float = 0.0) -> tuple[bool, Difference]:
        """Whether `one` is better than `other` by more than `points` of the score, or `nats` of the loss; and the bootstrap."""
        difference = paired_bootstrap(one.scores, other.scores, above=points)
        if difference.confidence >= self.confidence:
            return True, difference
        if difference.confidence <= 1.0 - self.confidence:
            return False, difference
        return other.loss - one.loss > nats, difference

    def own_beats_both(self, own: Evidence, both: Evidence) -> bool:
        """Whether an adapter apart is better than one on top of experience: surely so by the score, or by score and loss alike.

        Where they disagree the second one is kept. It trains for longer and is surer of itself, so that its loss alone says
        little (docs/experience.md, Fifth round), and the next task builds on it.
        """
        difference = paired_bootstrap(own.scores, both.scores)
        if difference.confidence >= self.confidence:
            return True
        return own.score >= both.score and own.loss <= both.loss


def select(
    forms: Mapping[Form, Evidence], *, expand: Expand, epsilon: float, epsilon_loss: float, confidence: float
) -> Selection:
    """Decide what a task commits.

    Args:
        forms: every form that was trained: at least one with an adapter of its own, or experience; all of the same samples.
        expand: whether growing needs evidence.
        epsilon: points of the score by which an own adapter has to be better than experience alone, where the score can tell …
        epsilon_loss: … and nats of the loss, where it cannot.
        confidence: of `Rule`.

    Of the two forms with an adapter of their own the better one stands for both (`Rule.own_beats_both`); where they are equal,
    `own`, which needs no other adapter to be read.
    """
    rule = Rule(confidence)
    means = {form: forms[form].score for form in Form if form in forms}
    losses = {form: forms[form].loss for form in Form if form in forms}
    samples = len(next(iter(forms.values())).scores)
    grown = next((form for form in (Form.OWN, Form.BOTH) if form in forms), None)
    if grown is None:
        return Selection(Form.EXPERIENCE, means, losses, samples)
    if Form.OWN in forms and Form.BOTH in forms and not rule.own_beats_both(forms[Form.OWN], forms[Form.BOTH]):
        grown = Form.BOTH
    if Form.EXPERIENCE not in forms:
        return Selection(grown, means, losses, samples)
    pays, gain = rule.better(forms[grown], forms[Form.EXPERIENCE], epsilon, epsilon_loss)
    form = grown if pays or expand is Expand.ALWAYS else Form.EXPERIENCE
    return Selection(form, means, losses, samples, gain)

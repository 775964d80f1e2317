"""What a task commits, and whether the bank grows: a decision on evidence (docs/method.md, What is committed).

Three forms of a task are trained and scored on the same validation samples:

    experience   the earlier adapters, mixed; no adapter of its own
    own          one adapter of its own, apart from all others
    both         its own adapter on top of the mixed earlier ones

The task commits the better one with an adapter of its own, unless experience alone is as good up to ε: then it commits
experience, and the bank does not grow. `Rule` says what "as good" means.
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
    """When one form of a task is kept though another has more to it.

    The score decides where a paired bootstrap is sure of it. Where it is not, as with the few hundred samples of most validation
    splits, score and loss have to agree: a form that trained for longer is surer of itself, so that its loss alone says little,
    and the score alone varies by more than what is at stake (docs/experience.md, Fifth round).
    """

    confidence: float
    """Share of the bootstrap that counts as sure."""

    def as_good(self, one: Evidence, other: Evidence, points: float = 0.0, nats: float = 0.0) -> tuple[bool, Difference]:
        """Whether `one` is as good as `other`: surely so by the score, or by score and loss alike.

        Args:
            points, nats: by how much of the score and of the loss `other` may be ahead all the same.

        Returns:
            The answer, and the bootstrap of `other` against `one`.
        """
        ahead = paired_bootstrap(other.scores, one.scores, above=points)
        # Scores that are alike sample by sample, as where no form is ever right, make nobody sure.
        sure = not ahead.low == ahead.high == 0.0 and not 1.0 - self.confidence < ahead.confidence < self.confidence
        if sure:
            return ahead.confidence <= 1.0 - self.confidence, ahead
        return ahead.mean <= points and one.loss - other.loss <= nats, ahead


def select(
    forms: Mapping[Form, Evidence],
    *,
    expand: Expand,
    epsilon: float,
    epsilon_loss: float,
    confidence: float,
    familiar: bool = False,
) -> Selection:
    """Decide what a task commits.

    Args:
        forms: every form that was trained: at least one with an adapter of its own, or experience; all of the same samples.
        expand: whether growing needs evidence.
        epsilon: points of the score by which an own adapter may be ahead of experience alone, and still is not worth its place …
        epsilon_loss: … and nats of the loss.
        confidence: of `Rule`.
        familiar: the task's data are like those of a task in the bank. Then growing has to be proved: an own adapter must surely
            be better by more than ε, and its smaller loss is a longer training. Scores that are the same sample by sample prove
            nothing either way: the loss decides, as on other data.

    Of the two forms with an adapter of their own `own`, which needs no other adapter to be read, stands for both where it is as
    good; the next task would build on `both`.
    """
    rule = Rule(confidence)
    means = {form: forms[form].score for form in Form if form in forms}
    losses = {form: forms[form].loss for form in Form if form in forms}
    samples = len(next(iter(forms.values())).scores)
    grown = next((form for form in (Form.OWN, Form.BOTH) if form in forms), None)
    if grown is None:
        return Selection(Form.EXPERIENCE, means, losses, samples)
    if Form.OWN in forms and Form.BOTH in forms and not rule.as_good(forms[Form.OWN], forms[Form.BOTH])[0]:
        grown = Form.BOTH
    if Form.EXPERIENCE not in forms:
        return Selection(grown, means, losses, samples)
    experience = forms[Form.EXPERIENCE]
    enough, gain = rule.as_good(experience, forms[grown], epsilon, epsilon_loss)
    if familiar and (experience.scores != forms[grown].scores).any():
        enough = gain.confidence < confidence
    form = Form.EXPERIENCE if enough and expand is Expand.EVIDENCE else grown
    return Selection(form, means, losses, samples, gain)

"""Signatures of tasks: what a task's samples look like to the frozen backbone, and which earlier tasks look alike
(docs/method.md, Keys and retrieval).

A signature is the mean and the spread (standard deviation) of the pooled features of a few hundred training samples, [P] each. It
needs no label and no training, so a packed data set can be compared with a bank before anything is learnt.

For one sample, a task has a `Density` of the same features: a Gaussian whose covariance is diagonal plus a few directions (from
the principal components of the standardised features). `choose` names the task that a sample most likely belongs to, and refuses
one that lies farther out than the task's own samples do.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float64]

SAMPLES = 512
"""Training samples that a signature is made from, at most."""

FLOOR = 1e-4
"""Smallest spread of a feature: a feature that never varies must not count without bound."""


@dataclass(frozen=True)
class Signature:
    """`mean` and `spread` [P] of pooled features."""

    mean: Vector
    spread: Vector


def similarity(one: Signature, other: Signature) -> float:
    """How alike two tasks' samples are, 1 (the same) to 0: exp of minus half the mean squared distance of the means, in spreads.

    Symmetric. Two tasks whose means are one spread apart in every feature have exp(-1/2) = 0.61.

    >>> a = Signature(np.zeros(2), np.ones(2))
    >>> similarity(a, a)
    1.0
    >>> round(similarity(a, Signature(np.ones(2), np.ones(2))), 2)
    0.61
    """
    variance = (one.spread**2 + other.spread**2) / 2
    distance = np.mean((one.mean - other.mean) ** 2 / np.maximum(variance, FLOOR**2))
    return float(np.exp(-distance / 2))


def nearest(new: Signature, bank: Mapping[str, Signature], count: int) -> tuple[dict[str, float], tuple[str, ...]]:
    """The similarity of every task of the bank to a new one, and the keys of the `count` most similar, in the bank's order.

    Args:
        count: 0 = all of them. Of equally similar ones the later learnt comes first.
    """
    found = {key: similarity(new, signature) for key, signature in bank.items()}
    order = {key: place for place, key in enumerate(bank)}
    chosen = sorted(found, key=lambda key: (-found[key], -order[key]))[: count or None]
    return found, tuple(sorted(chosen, key=order.__getitem__))


DIRECTIONS = 16
"""Directions of a density at most."""

SHRINKAGE = 0.2
"""Share by which the rest of a feature's variance is drawn towards the mean over features, in units of its whole variance."""

QUANTILE = 0.995
"""Share of a task's own samples that its limit lets in."""


@dataclass(frozen=True)
class Density:
    """A Gaussian over P features with the covariance diag(noise) + loadings^T loadings."""

    mean: Vector
    """[P]"""
    noise: Vector
    """[P], variances, positive."""
    loadings: Vector
    """[R, P]; R may be 0."""
    freedom: float
    """How many independent features the P are worth, judged by how the squared distances of held-back samples vary."""
    limit: float
    """The squared distance a feature that `QUANTILE` of the held-back samples do not exceed. 1 is ordinary."""


def fit(rows: Vector) -> Density:
    """The density of a task's samples [n, P], in an order that does not depend on what they show.

    The covariance is scaled, and `freedom` and `limit` are set, by samples that did not make the density they are judged by: each
    half of the rows by the density of the other half.

    Raises:
        ValueError: there is no row.
    """
    if not len(rows):
        raise ValueError("a density needs at least one sample")
    if len(rows) < 2:
        return replace(_gaussian(rows), limit=1.0)
    halves = rows[::2], rows[1::2]
    held_back = np.concatenate([distances(_gaussian(one), other) for one, other in (halves, halves[::-1])])
    scale = max(float(held_back.mean()), FLOOR)
    held_back = held_back / scale
    variance = max(float(held_back.var()), 2 / rows.shape[1])
    found = _gaussian(rows)
    return Density(
        found.mean,
        found.noise * scale,
        found.loadings * math.sqrt(scale),
        freedom=2 / variance,
        limit=max(float(np.quantile(held_back, QUANTILE)), 1.0),
    )


def _gaussian(rows: Vector) -> Density:
    """Mean, directions and noise of rows [n, P], not calibrated."""
    mean, spread = rows.mean(0), np.maximum(rows.std(0), FLOOR)
    count = min(DIRECTIONS, len(rows) // 4, rows.shape[1] - 1)
    _, lengths, axes = np.linalg.svd((rows - mean) / spread, full_matrices=False)
    loadings = (lengths[:count, None] / math.sqrt(len(rows))) * axes[:count]
    rest = np.maximum(1 - (loadings**2).sum(0), 0)
    noise = np.maximum((1 - SHRINKAGE) * rest + SHRINKAGE * rest.mean(), FLOOR)
    return Density(mean, noise * spread**2, loadings * spread, freedom=float(rows.shape[1]), limit=math.inf)


def distances(density: Density, rows: Vector) -> Vector:
    """Squared Mahalanobis distance a feature of rows [n, P], [n]: 1 on average for the task's own samples."""
    squared, _ = _terms(density, rows)
    return np.asarray(squared / rows.shape[1])


def log_likelihoods(density: Density, rows: Vector) -> Vector:
    """Of rows [n, P], [n], without the constant that is the same for every density of P features."""
    squared, log_determinant = _terms(density, rows)
    return np.asarray(-0.5 * (squared + log_determinant))


def _terms(density: Density, rows: Vector) -> tuple[Vector, float]:
    """Squared distances [n] and the logarithm of the covariance's determinant, by the identities of Woodbury and Sylvester."""
    centred = rows - density.mean
    weighted = density.loadings / density.noise
    inner = np.eye(len(density.loadings)) + weighted @ density.loadings.T
    projected = centred @ weighted.T
    squared = (centred**2 / density.noise).sum(1) - (projected * np.linalg.solve(inner, projected.T).T).sum(1)
    return np.maximum(squared, 0), float(np.log(density.noise).sum() + np.linalg.slogdet(inner)[1])


class Form(NamedTuple):
    """What samples are made of: of a task the share of its samples that have each part, of one sample 0 or 1."""

    pictured: float
    """A picture of its own, or two."""
    texted: float
    """A text of its own, other than the one that stands where there is none."""
    paired: float
    """A text of two segments."""


class Parts(NamedTuple):
    """What a request brings along."""

    pictures: int
    choices: int
    texted: bool
    paired: bool


@dataclass(frozen=True)
class TaskProfile:
    """What a task's samples look like: enough to say whether another sample could be one of them."""

    density: Density
    form: Form
    images: int
    """Pictures a sample that has any: 2 for a pair."""
    choices: int
    """Texts to choose between; 0 where a task is not of that kind."""

    def fits(self, request: Parts) -> bool:
        """Whether some of the task's samples have the parts that the request has.

        >>> density = Density(np.zeros(1), np.ones(1), np.zeros((0, 1)), 1.0, 2.0)
        >>> photos = TaskProfile(density, Form(pictured=1.0, texted=0.0, paired=0.0), images=1, choices=0)
        >>> photos.fits(Parts(1, 0, False, False)), photos.fits(Parts(1, 0, True, False)), photos.fits(Parts(2, 0, False, False))
        (True, False, False)
        """
        has = (bool(request.pictures), request.texted, request.paired)
        known = all(share > 0 if part else share < 1 for part, share in zip(has, self.form, strict=True))
        return known and request.choices == self.choices and request.pictures in (0, self.images)


@dataclass(frozen=True)
class Candidate:
    """A task that a sample might belong to."""

    task: str
    probability: float
    """Among the tasks that take such a sample; in [0, 1], they sum to 1."""
    distance: float
    """From the task's samples: 1 is ordinary (`distances`)."""
    limit: float
    """Farther out than this it is not taken for one of them."""


@dataclass(frozen=True)
class TaskChoice:
    """Which task a sample belongs to. `candidates`: most probable first."""

    candidates: tuple[Candidate, ...]

    @property
    def best(self) -> Candidate | None:
        """The most probable; None where no task takes such a sample."""
        return self.candidates[0] if self.candidates else None

    @property
    def refused(self) -> bool:
        """Whether the sample is unlike everything learnt: no task takes its kind, or it lies beyond the limit of the best."""
        return self.best is None or self.best.distance > self.best.limit


def choose(profiles: Mapping[str, TaskProfile], features: Mapping[str, Vector]) -> list[TaskChoice]:
    """The task of each of n samples.

    The most likely one under the tasks' densities. Features are not independent, so that P of them say less than a Gaussian of P
    takes them to say: the log-likelihoods are divided by P over the mean `Density.freedom` before they become probabilities.

    Args:
        profiles: the tasks that take samples of such a kind (`TaskProfile.fits`).
        features: task -> the pooled features [n, P] that the samples have as samples of that task.
    """
    if not profiles:
        raise ValueError("no task to choose from")
    densities = {task: profile.density for task, profile in profiles.items()}
    tempered = np.mean([density.freedom / len(density.mean) for density in densities.values()])
    scores = np.stack([tempered * log_likelihoods(density, features[task]) for task, density in densities.items()])
    shares = np.exp(scores - scores.max(0))
    shares /= shares.sum(0)
    apart = np.stack([distances(density, features[task]) for task, density in densities.items()])
    return [
        TaskChoice(
            tuple(
                sorted(
                    (
                        Candidate(task, float(shares[row, n]), float(apart[row, n]), density.limit)
                        for row, (task, density) in enumerate(densities.items())
                    ),
                    key=lambda candidate: -candidate.probability,
                )
            )
        )
        for n in range(shares.shape[1])
    ]

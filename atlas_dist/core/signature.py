"""Signatures of tasks: what a task's samples look like to the frozen backbone, and which earlier tasks look alike
(docs/method.md, Keys and retrieval).

A signature is the mean and the spread (standard deviation) of the pooled features of a few hundred training samples, [P] each. It
needs no label and no training, so a packed data set can be compared with a bank before anything is learnt.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

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

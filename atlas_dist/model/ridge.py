"""Ridge regression onto classes, in closed form: where the last layer of a head starts, and what it is weighed against in the end
(docs/method.md, The start of a head and The end of a head).

    W, b = argmin Σ_n |W h_n + b - onehot(y_n)|² + λ |W|²          then logits = s (W h + b)

At the start λ and the scale s are those with the smallest cross-entropy of predictions that leave each sample out. These cost
nothing more: with the hat matrix H of the centred problem, 1/n for the mean included, the residual without sample n is
r_n / (1 - H_nn). Once what h is was trained on the same samples, leaving one out of the fit says little, and validation samples
choose. A random layer before it makes this RanPAC (McDonnell et al. 2023, arXiv 2307.02251); ridge first and training after it is
linear probing, then fine-tuning (Kumar et al. 2022, arXiv 2202.10054); weights between two that were found in different ways, as
in WiSE-FT (Wortsman et al. 2022, arXiv 2109.01903).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

PENALTIES = tuple(10.0 ** (power / 2) for power in range(-6, 7))
"""λ, as multiples of the mean squared singular value of the features."""
SCALES = tuple(2.0**power for power in range(8))
"""s: predictions lie between 0 and 1, logits further apart."""


SHARES = tuple(part / 8 for part in range(9))
"""Of the fit, in a head between what was learnt and the fit."""


@dataclass(frozen=True)
class RidgeFit:
    """A last layer, and how well it does on samples that it was not fitted to."""

    weight: Tensor
    """[C, m], float32, scaled by s."""
    bias: Tensor
    """[C]"""
    loss: float
    """Mean cross-entropy of those samples, in nats."""


@dataclass(frozen=True)
class Settled(RidgeFit):
    """A last layer between the one that was learnt and a fit."""

    share: float
    """Of the fit, 0 to 1."""


class _Ridge:
    """n centred samples, decomposed once for every λ. In float64 on the CPU: O(n m min(n, m)).

    Args:
        features: [n, m].
        labels: [n], 0 to C - 1.
        classes: C; a class may have no sample.
    """

    def __init__(self, features: Tensor, labels: Tensor, classes: int) -> None:
        known = features.detach().cpu().double()
        self.target = labels.detach().cpu().long()
        self.wanted = functional.one_hot(self.target, classes).double()
        self.middle, self.share = known.mean(0), self.wanted.mean(0)
        self.left, self.singular, self.right = torch.linalg.svd(known - self.middle, full_matrices=False)
        self.power = self.singular.square()
        self.along = self.left.t() @ (self.wanted - self.share)

    def penalties(self) -> Iterator[float]:
        """Every λ."""
        typical = float(self.power.mean()) or 1.0
        return (factor * typical for factor in PENALTIES)

    def left_out(self, penalty: float) -> Tensor:
        """[n, C]: what is predicted of each sample without it, unscaled."""
        shrunk = self.power / (self.power + penalty)
        hat = self.left.square() @ shrunk + 1.0 / len(self.target)
        residual = self.wanted - self.share - self.left @ (shrunk[:, None] * self.along)
        out: Tensor = self.wanted - residual / (1.0 - hat).clamp_min(1e-6)[:, None]
        return out

    def weights(self, penalty: float) -> tuple[Tensor, Tensor]:
        """W [C, m] and b [C], float64, unscaled."""
        weight = (self.right.t() @ ((self.singular / (self.power + penalty))[:, None] * self.along)).t()
        return weight, self.share - weight @ self.middle


def fit_ridge(features: Tensor, labels: Tensor, classes: int) -> RidgeFit:
    """Fit a linear classifier to n >= 1 samples, each of which also judges what the others give.

    Args:
        features: [n, m].
        labels: [n], 0 to C - 1.
        classes: C; a class may have no sample.
    """
    ridge = _Ridge(features, labels, classes)
    best: tuple[float, float, float] | None = None
    for penalty in ridge.penalties():
        apart = ridge.left_out(penalty)
        for scale in SCALES:
            loss = float(functional.cross_entropy(scale * apart, ridge.target))
            if math.isfinite(loss) and (best is None or loss < best[0]):
                best = (loss, penalty, scale)
    assert best is not None, "finite features give finite predictions"
    loss, penalty, scale = best
    weight, bias = ridge.weights(penalty)
    return RidgeFit((scale * weight).float(), (scale * bias).float(), loss)


def settle(
    learnt: tuple[Tensor, Tensor], fitted_to: tuple[Tensor, Tensor], judged: tuple[Tensor, Tensor], classes: int
) -> Settled:
    """The last layer with the smallest loss on other samples, on the line from what was learnt to a fit.

    The fit is the one whose λ and s are best on these samples. Of equal losses the smallest share of it.

    Args:
        learnt: weight [C, m] and bias [C].
        fitted_to: features [n, m] and labels [n] of the training samples, n >= 1.
        judged: features [v, m] and labels [v] of samples that nothing was trained on, v >= 1.
        classes: C; a class may have no sample.
    """
    ridge = _Ridge(*fitted_to, classes)
    others, target = judged[0].detach().cpu().double(), judged[1].detach().cpu().long()

    def loss_of(logits: Tensor) -> float:
        loss = float(functional.cross_entropy(logits, target))
        return loss if math.isfinite(loss) else math.inf

    said = {penalty: _logits(others, ridge.weights(penalty)) for penalty in ridge.penalties()}
    fits = {(penalty, scale): loss_of(scale * logits) for penalty, logits in said.items() for scale in SCALES}
    penalty, scale = min(fits, key=fits.__getitem__)
    start = (learnt[0].detach().cpu().double(), learnt[1].detach().cpu().double())
    fit = ridge.weights(penalty)
    ends = _logits(others, start), scale * said[penalty]
    losses = {share: loss_of(torch.lerp(*ends, share)) for share in SHARES}
    share = min(losses, key=losses.__getitem__)
    weight, bias = (torch.lerp(a, scale * b, share).float() for a, b in zip(start, fit, strict=True))
    return Settled(weight, bias, losses[share], share)


def _logits(features: Tensor, layer: tuple[Tensor, Tensor]) -> Tensor:
    """[n, C] of features [n, m]."""
    weight, bias = layer
    return features @ weight.t() + bias

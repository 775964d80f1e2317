"""Ridge regression onto classes, in closed form: where the last layer of a head starts (docs/method.md, The start of a head).

    W, b = argmin Σ_n |W h_n + b - onehot(y_n)|² + λ |W|²          then logits = s (W h + b)

λ and the scale s are those with the smallest cross-entropy of predictions that leave each sample out. These cost nothing more:
with the hat matrix H of the centred problem, 1/n for the mean included, the residual without sample n is r_n / (1 - H_nn).
A random layer before it makes this RanPAC (McDonnell et al. 2023, arXiv 2307.02251); ridge first and training after it is linear
probing, then fine-tuning (Kumar et al. 2022, arXiv 2202.10054).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

PENALTIES = tuple(10.0 ** (power / 2) for power in range(-6, 7))
"""λ, as multiples of the mean squared singular value of the features."""
SCALES = tuple(2.0**power for power in range(8))
"""s: predictions lie between 0 and 1, logits further apart."""


@dataclass(frozen=True)
class RidgeFit:
    """A last layer, and how well it does on samples that it was not fitted to."""

    weight: Tensor
    """[C, m], float32, scaled by s."""
    bias: Tensor
    """[C]"""
    loss: float
    """Mean cross-entropy of the predictions that leave each sample out, in nats."""


def fit_ridge(features: Tensor, labels: Tensor, classes: int) -> RidgeFit:
    """Fit a linear classifier to n >= 1 samples.

    Args:
        features: [n, m].
        labels: [n], 0 to C - 1.
        classes: C; a class may have no sample.

    Computed in float64 on the CPU: O(n m min(n, m)) for the decomposition.
    """
    known, target = features.detach().cpu().double(), labels.detach().cpu().long()
    count = len(known)
    wanted = functional.one_hot(target, classes).double()
    middle, share = known.mean(0), wanted.mean(0)
    centred, difference = known - middle, wanted - share
    left, singular, right = torch.linalg.svd(centred, full_matrices=False)
    power, along = singular.square(), left.t() @ difference
    typical = float(power.mean()) or 1.0
    best: tuple[float, float, float] | None = None
    for penalty in (factor * typical for factor in PENALTIES):
        shrunk = power / (power + penalty)
        hat = left.square() @ shrunk + 1.0 / count
        residual = difference - left @ (shrunk[:, None] * along)
        apart = wanted - residual / (1.0 - hat).clamp_min(1e-6)[:, None]
        for scale in SCALES:
            loss = float(functional.cross_entropy(scale * apart, target))
            if math.isfinite(loss) and (best is None or loss < best[0]):
                best = (loss, penalty, scale)
    assert best is not None, "finite features give finite predictions"
    loss, penalty, scale = best
    weight = scale * (right.t() @ ((singular / (power + penalty))[:, None] * along)).t()
    return RidgeFit(weight.float(), (scale * share - weight @ middle).float(), loss)

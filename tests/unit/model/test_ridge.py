"""model/ridge.py beside what it stands for: a fit for every sample that is left out."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from atlas_dist.model.ridge import PENALTIES, SCALES, SHARES, fit_ridge, settle


def samples(count: int, width: int, classes: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Classes apart by less than their spread."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % classes
    middles = torch.randn(classes, width, generator=generator)
    return middles[labels] + torch.randn(count, width, generator=generator), labels


def plain_ridge(features: torch.Tensor, wanted: torch.Tensor, penalty: float) -> tuple[torch.Tensor, torch.Tensor]:
    """The normal equations with an unpunished intercept."""
    middle, share = features.mean(0), wanted.mean(0)
    centred = features - middle
    weight = torch.linalg.solve(
        centred.T @ centred + penalty * torch.eye(features.shape[1]).double(), centred.T @ (wanted - share)
    )
    return weight, share - middle @ weight


@pytest.mark.parametrize(("count", "width"), [(20, 6), (9, 14)])
def test_the_loss_is_that_of_fits_without_each_sample(count: int, width: int) -> None:
    """The smallest over all penalties and scales, each by as many fits as there are samples."""
    features, labels = samples(count, width, 3)
    known, wanted = features.double(), functional.one_hot(labels, 3).double()
    typical = float(torch.linalg.svdvals(known - known.mean(0)).square().mean())
    losses = {}
    for factor in PENALTIES:
        left_out = torch.stack(
            [
                known[n] @ weight + bias
                for n in range(count)
                for weight, bias in [plain_ridge_without(known, wanted, n, factor * typical)]
            ]
        )
        losses |= {(factor, scale): float(functional.cross_entropy(scale * left_out, labels)) for scale in SCALES}
    (factor, scale), loss = min(losses.items(), key=lambda pair: pair[1])
    found = fit_ridge(features, labels, 3)
    assert found.loss == pytest.approx(loss, rel=1e-6)
    weight, bias = plain_ridge(known, wanted, factor * typical)
    torch.testing.assert_close(found.weight.double(), scale * weight.T, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found.bias.double(), scale * bias, rtol=1e-5, atol=1e-6)


def plain_ridge_without(
    features: torch.Tensor, wanted: torch.Tensor, left_out: int, penalty: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """The fit to all samples but one, around the mean of all: the intercept is a column of ones that is centred with them."""
    middle, share = features.mean(0), wanted.mean(0)
    kept = [n for n in range(len(features)) if n != left_out]
    rows = torch.cat([features[kept] - middle, torch.ones(len(kept), 1).double()], dim=1)
    punished = penalty * torch.eye(rows.shape[1]).double()
    punished[-1, -1] = 0.0
    solved = torch.linalg.solve(rows.T @ rows + punished, rows.T @ (wanted[kept] - share))
    return solved[:-1], solved[-1] + share - middle @ solved[:-1]


def test_classes_that_are_apart_are_told_apart() -> None:
    features, labels = samples(200, 16, 4)
    fit = fit_ridge(4 * features, labels, 4)
    fresh, wanted = samples(200, 16, 4)
    right = ((4 * fresh) @ fit.weight.T + fit.bias).argmax(1) == wanted
    assert right.float().mean() > 0.9


def test_features_that_say_nothing_give_the_shares() -> None:
    """Equal features: the prediction is the share of each class, and no number is lost."""
    fit = fit_ridge(torch.ones(6, 3), torch.tensor([0, 0, 0, 0, 1, 1]), 2)
    assert torch.isfinite(fit.weight).all() and torch.isfinite(fit.bias).all()
    assert (fit.weight @ torch.ones(3) + fit.bias).argmax() == 0


@pytest.mark.parametrize("labels", [[0], [0, 1], [2, 2, 2]])
def test_few_samples_and_classes_without_any(labels: list[int]) -> None:
    features = torch.randn(len(labels), 5, generator=torch.Generator().manual_seed(1))
    fit = fit_ridge(features, torch.tensor(labels), 4)
    assert fit.weight.shape == (4, 5) and torch.isfinite(fit.weight).all() and torch.isfinite(fit.bias).all()


def test_a_head_is_settled_where_other_samples_lose_least() -> None:
    """Beside every fit and every share of it, each computed by itself."""
    trained, judged = samples(20, 6, 3), samples(30, 6, 3, seed=1)
    generator = torch.Generator().manual_seed(2)
    learnt = torch.randn(3, 6, generator=generator), torch.randn(3, generator=generator)
    known, wanted = trained[0].double(), functional.one_hot(trained[1], 3).double()
    typical = float(torch.linalg.svdvals(known - known.mean(0)).square().mean())

    def loss(weight: torch.Tensor, bias: torch.Tensor) -> float:
        return float(functional.cross_entropy(judged[0].double() @ weight.T + bias, judged[1]))

    fits = []
    for factor in PENALTIES:
        weight, bias = plain_ridge(known, wanted, factor * typical)
        fits += [(scale * weight.T, scale * bias) for scale in SCALES]
    fit = min(fits, key=lambda layer: loss(*layer))
    between = {share: tuple((1 - share) * a.double() + share * b for a, b in zip(learnt, fit, strict=True)) for share in SHARES}
    share = min(between, key=lambda share: loss(*between[share]))
    found = settle(learnt, trained, judged, 3)
    assert found.share == share and share > 0, "a random head is no help"
    assert found.loss == pytest.approx(loss(*between[share]), rel=1e-6)
    torch.testing.assert_close(found.weight.double(), between[share][0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.bias.double(), between[share][1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("seed", range(5))
def test_settling_never_loses_on_the_samples_that_judge(seed: int) -> None:
    """A head that is right already stays to the last bit; any other gets no worse."""
    trained, judged = samples(12, 6, 3, seed), samples(30, 6, 3, seed + 100)
    best = fit_ridge(*judged, 3)
    for learnt in ((best.weight, best.bias), (torch.zeros(3, 6), torch.zeros(3))):
        found = settle(learnt, trained, judged, 3)
        before = float(functional.cross_entropy(judged[0] @ learnt[0].T + learnt[1], judged[1]))
        assert found.loss <= before + 1e-6
        if found.share == 0:
            assert torch.equal(found.weight, learnt[0]) and torch.equal(found.bias, learnt[1])


def test_a_class_without_samples_and_a_single_sample_can_be_settled() -> None:
    found = settle(
        (torch.zeros(3, 4), torch.zeros(3)), (torch.ones(1, 4), torch.tensor([2])), (torch.ones(2, 4), torch.tensor([2, 2])), 3
    )
    assert torch.isfinite(found.weight).all() and (found.weight @ torch.ones(4) + found.bias).argmax() == 2

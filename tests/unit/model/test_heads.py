"""Heads, losses and scores: per sample, masked exactly, and equal to what docs/method.md, Tasks and docs/method.md, Evaluation
say."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from atlas_dist.core.types import NO_TOKEN, TaskKind
from atlas_dist.errors import ConfigError
from atlas_dist.model.heads import OBJECTIVES, Head, HeadSpec

EXACT = {"rtol": 0.0, "atol": 1e-12}


def rand(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize(
    ("kind", "classes", "images", "texts", "outputs"),
    [
        (TaskKind.SINGLE, 10, 1, 1, 10),
        (TaskKind.ANSWERS, 13, 1, 1, 13),
        (TaskKind.PAIR, 2, 2, 1, 2),
        (TaskKind.CHOICE, 4, 1, 4, 1),
    ],
)
def test_what_a_kind_asks_for(kind: TaskKind, classes: int, images: int, texts: int, outputs: int) -> None:
    spec = HeadSpec(kind, classes)
    assert (spec.images, spec.texts, spec.outputs) == (images, texts, outputs)


def test_every_kind_has_an_objective() -> None:
    assert set(OBJECTIVES) == set(TaskKind)


def test_no_classes_is_refused() -> None:
    with pytest.raises(ConfigError, match="at least 1 class, got 0"):
        HeadSpec(TaskKind.SINGLE, 0)


def test_head_is_linear_norm_gelu_linear() -> None:
    head = Head(6, 3, torch.Generator().manual_seed(0)).double()
    with torch.no_grad():
        for i, parameter in enumerate(head.parameters()):
            parameter.copy_(rand(*parameter.shape, seed=i))
    x = rand(5, 6)
    w = dict(head.named_parameters())
    wide = x @ w["0.weight"].T + w["0.bias"]
    centred = wide - wide.mean(-1, keepdim=True)
    normal = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt() * w["1.weight"] + w["1.bias"]
    bent = normal * 0.5 * (1 + torch.erf(normal / math.sqrt(2)))
    torch.testing.assert_close(head(x), bent @ w["3.weight"].T + w["3.bias"], **EXACT)
    assert list(w) == ["0.weight", "0.bias", "1.weight", "1.bias", "3.weight", "3.bias"]
    assert w["0.weight"].shape == (12, 6)


def test_the_seed_decides_the_head() -> None:
    heads = [Head(4, 2, torch.Generator().manual_seed(seed)) for seed in (3, 3, 4)]
    weights = [torch.cat([p.flatten() for p in head.parameters()]) for head in heads]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_classification() -> None:
    logits, target = rand(4, 3), torch.tensor([0, 2, 1, 1])
    objective = OBJECTIVES[TaskKind.SINGLE]
    expected = torch.stack([-row.softmax(0)[t].log() for row, t in zip(logits, target, strict=True)])
    torch.testing.assert_close(objective.loss(logits, target), expected, **EXACT)
    assert objective.score(logits, logits.argmax(-1)).tolist() == [1.0] * 4
    assert objective.score(logits, logits.argmin(-1)).tolist() == [0.0] * 4


def test_answers() -> None:
    """Mean BCE x number of answers; the score is the target of the arg-max answer."""
    logits, target = rand(3, 5), torch.tensor([[0, 0.3, 0.6, 0.9, 1.0]] * 3)
    objective = OBJECTIVES[TaskKind.ANSWERS]
    p, t = logits.sigmoid(), target.double()
    bce = -(t * p.log() + (1 - t) * (1 - p).log())
    torch.testing.assert_close(objective.loss(logits, target), bce.mean(-1) * 5, **EXACT)
    chosen = target[torch.arange(3), logits.argmax(-1)]
    torch.testing.assert_close(objective.score(logits, target), chosen, rtol=0, atol=0)


def test_written_answers() -> None:
    """Mean cross-entropy of an answer's own tokens; right where each is the likeliest."""
    logits = rand(3, 4, 5)
    target = logits.argmax(-1)
    target[1, 2:], target[2] = NO_TOKEN, NO_TOKEN
    objective = OBJECTIVES[TaskKind.GENERATE]
    log_p = logits.log_softmax(-1).amax(-1)
    expected = torch.stack([-log_p[0].mean(), -log_p[1, :2].mean(), log_p.new_zeros(())])
    torch.testing.assert_close(objective.loss(logits, target), expected, **EXACT)
    assert objective.score(logits, target).tolist() == [1.0, 1.0, 1.0], "an answer without a token is a masked slot"
    target[0, 3] = (target[0, 3] + 1) % 5
    assert objective.score(logits, target).tolist() == [0.0, 1.0, 1.0]
    assert not objective.ridge and HeadSpec(TaskKind.GENERATE, 0).outputs == 0
    with pytest.raises(ConfigError, match="at least 1 class"):
        HeadSpec(TaskKind.SINGLE, 0)


@pytest.mark.parametrize("kind", TaskKind)
def test_half_precision_logits_are_judged_in_float32(kind: TaskKind) -> None:
    logits = rand(*((4, 1, 3) if kind is TaskKind.GENERATE else (4, 3))).bfloat16()
    target = torch.zeros((4, 1) if kind is TaskKind.GENERATE else 4, dtype=torch.long)
    target = torch.full((4, 3), 0.3) if kind is TaskKind.ANSWERS else target
    objective = OBJECTIVES[kind]
    assert objective.loss(logits, target).dtype is torch.float32
    assert objective.loss(logits, target).shape == objective.score(logits, target).shape == (4,)

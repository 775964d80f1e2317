"""What defines each rival, on cases small enough to work out by hand."""

from __future__ import annotations

import doctest
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from atlas_dist.core.sampling import Ordinals
from atlas_dist.core.types import AuxiliaryTask, Budget, TaskKind, TaskSpec
from atlas_dist.methods import ewc, lwf, replay
from atlas_dist.methods.ewc import ANCHOR, IMPORTANCE, FisherMemory, PullBack, penalty
from atlas_dist.methods.replay import RESERVOIR, Everything, Reservoir, shared, smallest
from atlas_dist.model.fusion import FusionSite, adapter_outputs
from atlas_dist.model.heads import Head, HeadSpec
from atlas_dist.model.mixing_spec import MixingSpec, Weighting

AUXILIARY = AuxiliaryTask(TaskSpec("old", TaskKind.SINGLE, 3, 8, "old", "train", "val", "t", "v"), Budget())


@dataclass
class FakeStageContext:
    """A stage context with everything given."""

    task: str = "new"
    seed: int = 0
    samples: Ordinals = field(default_factory=lambda: np.arange(0))
    backbone: dict[str, Tensor] = field(default_factory=dict)
    memory: dict[str, Tensor] = field(default_factory=dict)
    heads: dict[str, tuple[HeadSpec, Head]] = field(default_factory=dict)
    importance: dict[str, Tensor] = field(default_factory=dict)
    earlier: Tensor | None = None
    frozen: dict[str, Head] = field(default_factory=dict)

    def before(self, batch: Any) -> tuple[Tensor, dict[str, Head]]:
        assert self.earlier is not None
        return self.earlier, self.frozen

    def fisher(self, samples: int) -> dict[str, Tensor]:
        return self.importance


@pytest.mark.parametrize("module", [ewc, replay, lwf])
def test_the_examples_in_the_docstrings_hold(module: object) -> None:
    assert doctest.testmod(module, extraglobs={"torch": torch}).failed == 0  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------------------------------------------- EWC


def test_ewc_holds_weights_as_the_sum_over_all_earlier_tasks_would() -> None:
    """λ/2 (F_1 (θ - θ_1)² + F_2 (θ - θ_2)²), by hand: the folded memory gives the same gradient at any θ."""
    first = FakeStageContext(backbone={"w": torch.tensor([1.0, -2.0, 0.5])}, importance={"w": torch.tensor([4.0, 1.0, 0.0])})
    second = FakeStageContext(
        backbone={"w": torch.tensor([3.0, 0.0, 0.7])},
        importance={"w": torch.tensor([2.0, 3.0, 0.0])},
        memory=FisherMemory(8)(first),
    )
    memory = FisherMemory(8)(second)
    torch.testing.assert_close(memory[IMPORTANCE + "w"], torch.tensor([6.0, 4.0, 0.0]))
    torch.testing.assert_close(memory[ANCHOR + "w"], torch.tensor([10 / 6, -0.5, 0.7]))
    now = torch.tensor([0.0, 1.0, 9.0], requires_grad=True)
    regularizer = PullBack(10.0)(FakeStageContext(backbone={"w": now}, memory=memory))
    regularizer({}, now).backward()
    by_hand = 10.0 * torch.tensor([4.0 * (0 - 1) + 2.0 * (0 - 3), 1.0 * (1 + 2) + 3.0 * (1 - 0), 0.0])
    torch.testing.assert_close(now.grad, by_hand)


def test_ewc_asks_nothing_of_weights_that_stayed_or_do_not_matter() -> None:
    stayed = {"a": torch.ones(2), "b": torch.tensor([5.0])}
    held = {"a": (torch.tensor([3.0, 3.0]), torch.ones(2)), "b": (torch.zeros(1), torch.zeros(1))}
    assert penalty(stayed, held).item() == 0.0


# ----------------------------------------------------------------------------------------------------------------------- replay


def test_the_reservoir_is_uniform_over_everything_seen() -> None:
    """Two tasks of 20 and 60 samples, 8 kept: every sample is kept in 8 of 80 draws, whichever task it is of."""
    seen = {"a": np.arange(20), "b": np.arange(60)}
    kept = Counter((task, n) for seed in range(2000) for task, chosen in smallest(seen, 8, seed).items() for n in chosen.tolist())
    assert sum(kept.values()) == 2000 * 8
    expected = 2000 * 8 / 80
    chi_squared = sum((kept[task, n] - expected) ** 2 / expected for task, samples in seen.items() for n in samples)
    assert chi_squared < 120, "79 degrees of freedom: 120 has a probability of 0.2 %"
    of_the_smaller = sum(count for (task, _), count in kept.items() if task == "a")
    assert of_the_smaller / (2000 * 8) == pytest.approx(0.25, abs=0.02)


@settings(deadline=None)
@given(st.integers(0, 30), st.integers(0, 30), st.integers(1, 40), st.integers(0, 2**40))
def test_folding_task_by_task_is_choosing_at_once(first: int, second: int, capacity: int, seed: int) -> None:
    reservoir = Reservoir(capacity, 10)
    memory = reservoir(FakeStageContext(task="a", seed=seed, samples=np.arange(first)))
    memory = reservoir(FakeStageContext(task="b", seed=seed, samples=np.arange(second), memory=memory))
    at_once = smallest({"a": np.arange(first), "b": np.arange(second)}, capacity, seed)
    assert {name: ordinals.tolist() for name, ordinals in memory.items()} == {
        RESERVOIR + task: chosen.tolist() for task, chosen in at_once.items() if len(chosen)
    }
    assert sum(len(ordinals) for ordinals in memory.values()) == min(capacity, first + second)


def test_rehearsal_is_shared_by_what_is_held() -> None:
    memory = {RESERVOIR + "a": torch.arange(30), RESERVOIR + "b": torch.arange(10)}
    auxiliary_tasks = dict.fromkeys(("a", "b", "never kept"), (AUXILIARY, 50))
    reservoir = Reservoir(40, every=5)
    assert reservoir.steps(100, auxiliary_tasks, memory) == {"a": 15, "b": 5}
    assert reservoir.samples("b", memory) == tuple(range(10))
    assert reservoir.samples("never kept", memory) == ()


@settings(deadline=None)
@given(st.integers(0, 1000), st.dictionaries(st.text(max_size=3), st.integers(1, 50), min_size=1))
def test_shares_add_up_and_none_is_a_whole_step_off(total: int, weights: dict[str, int]) -> None:
    parts = shared(total, weights)
    assert sum(parts.values()) == total
    whole = sum(weights.values())
    assert all(abs(parts[name] - total * weight / whole) < 1 for name, weight in weights.items())


def test_multitask_sees_every_task_for_its_own_length_and_all_its_samples() -> None:
    everything = Everything()
    assert everything.steps(7, {"a": (AUXILIARY, 3), "b": (AUXILIARY, 5)}, {}) == {"a": 3, "b": 5}
    assert everything.samples("a", {}) is None


# -------------------------------------------------------------------------------------------------------------------------- LwF


def head_of(spec: HeadSpec, width: int, seed: int) -> Head:
    return Head(spec.images * width, spec.outputs, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("kind", TaskKind)
def test_lwfs_targets_are_frozen_and_pull_the_student_to_them(kind: TaskKind) -> None:
    spec = HeadSpec(kind, 3)
    student, teacher = head_of(spec, 4, 1), head_of(spec, 4, 2).requires_grad_(False)
    features = torch.randn(5, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()
    stage_context = FakeStageContext(heads={"old": (spec, student)}, earlier=torch.ones(5, 4), frozen={"old": teacher})
    regularizer = lwf.Distilled(1.0, 2.0)(stage_context)  # type: ignore[arg-type]
    losses = regularizer({"input_ids": torch.zeros(5, 1, 3)}, features)
    assert losses.shape == (5,)
    losses.sum().backward()
    assert features.grad is not None
    assert all(p.grad is not None for p in student.parameters())
    assert all(p.grad is None for p in teacher.parameters())


@pytest.mark.parametrize("kind", TaskKind)
@settings(deadline=None)
@given(st.integers(0, 2**30))
def test_nothing_distils_better_than_the_teachers_own_answer(kind: TaskKind, seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    spec = HeadSpec(kind, 3)
    wanted, other = (torch.randn(4, spec.outputs, generator=draw, dtype=torch.float64) for _ in range(2))
    own = lwf.distance(spec, wanted, wanted, 2.0)
    assert bool((own <= lwf.distance(spec, other, wanted, 2.0) + 1e-12).all())


def test_softened_cross_entropy_by_hand() -> None:
    """Targets softmax([2 ln 3, 0] / 2) = [3/4, 1/4], a student without an opinion: 4 ln 2."""
    wanted = torch.tensor([[2 * torch.log(torch.tensor(3.0)).item(), 0.0]])
    loss = lwf.distance(HeadSpec(TaskKind.SINGLE, 2), torch.zeros(1, 2), wanted, 2.0)
    assert loss.item() == pytest.approx(4 * torch.log(torch.tensor(2.0)).item(), rel=1e-6)


def test_a_head_for_two_images_sees_a_single_one_twice() -> None:
    spec = HeadSpec(TaskKind.PAIR, 2)
    head = head_of(spec, 4, 0)
    features = torch.randn(3, 4, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(lwf.read(head, features), head(torch.cat([features, features], dim=1)))
    single = head_of(HeadSpec(TaskKind.SINGLE, 2), 4, 0)
    pair = torch.randn(3, 8, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(lwf.read(single, pair), single(pair[:, :4]))


# ----------------------------------------------------------------------------------------------------------------------- fusion


def site_with(visible: int, *, grows: bool = False) -> FusionSite:
    generator = torch.Generator().manual_seed(3)
    spec = MixingSpec(rank=2, weighting=Weighting.PLAIN)
    site = FusionSite(4, 2, spec, visible=visible, grows=grows, generator=generator).double()
    with torch.no_grad():
        for parameter in site.frozen.parameters():
            parameter.normal_(generator=generator)
    return site


def test_fusion_attends_over_the_adapters_token_by_token() -> None:
    site = site_with(3)
    with torch.no_grad():
        for parameter in site.fusion.parameters():
            parameter.normal_(generator=torch.Generator().manual_seed(4))
    x = torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    fusion = site.fusion
    for b in range(2):
        for l in range(5):  # noqa: E741
            token = x[b, l]
            outputs = []
            for i in range(3):
                inner = site.frozen.down[i] @ token + site.frozen.down_bias[i]
                hidden = inner * torch.sigmoid(inner)
                outputs.append(token + site.frozen.up[i] @ hidden + site.frozen.up_bias[i])
            query = fusion.query @ token + fusion.query_bias
            scores = torch.stack([query @ (fusion.key @ y + fusion.key_bias) for y in outputs])
            expected = sum(p * (fusion.value @ y) for p, y in zip(scores.softmax(0), outputs, strict=True))
            torch.testing.assert_close(site(x).mixed[b, l], expected)


def test_an_untrained_fusion_without_preference_is_the_mean_of_what_the_adapters_say() -> None:
    site = site_with(3)
    with torch.no_grad():
        site.fusion.query.zero_()
    x = torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    output = site(x)
    torch.testing.assert_close(output.mixed, adapter_outputs(site.frozen, x).mean(dim=0))
    torch.testing.assert_close(output.alpha, torch.full((2, 3), 1 / 3, dtype=torch.float64))


def test_an_imitating_adapter_learns_from_the_fusion_and_nothing_else_does() -> None:
    site = site_with(2, grows=True)
    site.frozen.requires_grad_(False)
    x = torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(5), dtype=torch.float64).requires_grad_()
    output = site(x)
    assert site.grown is not None
    expected = (adapter_outputs(site.grown, x)[0] - output.mixed).square().mean()
    torch.testing.assert_close(output.penalty, expected)
    output.penalty.backward()
    assert x.grad is None
    assert site.grown.up.grad is not None
    assert all(p.grad is None for p in site.fusion.parameters()), "the fusion is the teacher"
    fused, _ = site.fusion(x, adapter_outputs(site.frozen, x))
    torch.testing.assert_close(output.mixed, fused)  # the backbone goes on with what the fusion says

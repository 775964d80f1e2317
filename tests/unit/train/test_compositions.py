"""train/compositions.py: stage two goes on from experience, from the adapter that was learnt apart, or from some of both."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from torch import Tensor

from atlas_dist.core.result_files import ADAPTER_FILE
from atlas_dist.core.results import TrainResult
from atlas_dist.core.types import HeadStart, StageJob
from atlas_dist.methods import make_method
from atlas_dist.model.ridge import Settled
from atlas_dist.model.site_files import scaled_adapter
from atlas_dist.train import compositions, learn
from atlas_dist.train.compositions import APART, COMPOSITIONS, EXPERIENCE, Composition
from atlas_dist.train.inputs import coefficients_of, head_of, read_if_there, read_task
from tests.kits.stage import Bench, pack_toys, toy_config

SECOND = "2 toy_pair stage2"
STILL = (
    *("train.both.lr=1e-12", "train.both.head_lr=1e-12", "train.both.max_steps=1", "train.budget.head_refit=false"),
    *("method.settings.start=mean", "method.settings.coefficient_lr=1e-12"),
)


def bench(folder: Path, *words: str) -> Bench:
    """A bench for two tasks; what is learnt apart and in stage one moves visibly."""
    moving = ("train.budget.max_steps=6", "train.stage1.max_steps=6", "train.budget.lr=1e-2")
    tasks = ("sequence.upstream=[toy_shape,toy_pair]", "sequence.downstream=[]", "method.settings.expand=always")
    config = toy_config(folder, "method=atlas", *tasks, *moving, *words)
    pack_toys(config, samples=48)
    return Bench(config)


@pytest.fixture(scope="module")
def still(tmp_path_factory: pytest.TempPathFactory) -> tuple[Bench, StageJob]:
    """A stage two that ends where it starts, and what comes before it is learnt."""
    worker = bench(tmp_path_factory.mktemp("still"), *STILL)
    return worker, worker.learn_until(SECOND)


@pytest.fixture(scope="module")
def moving(tmp_path_factory: pytest.TempPathFactory) -> tuple[Bench, StageJob]:
    """One that learns."""
    worker = bench(tmp_path_factory.mktemp("moving"), "train.both.max_steps=6", "train.checkpoint_every=2")
    return worker, worker.learn_until(SECOND)


def adapter(worker: Bench, key: str) -> dict[str, Tensor]:
    return read_if_there(worker.context.store, worker.done[key], ADAPTER_FILE)


def test_a_scaled_adapter_says_so_much_of_the_same() -> None:
    shapes = {"down.weight": (2, 8), "down.bias": (2,), "up.weight": (8, 2), "up.bias": (8,)}
    whole = {f"adapter/L0/{name}": torch.randn(shape) for name, shape in shapes.items()} | {"key/L0": torch.ones(8)}

    def said(tensors: dict[str, Tensor], x: Tensor) -> Tensor:
        down = torch.relu(x @ tensors["adapter/L0/down.weight"].t() + tensors["adapter/L0/down.bias"])
        return down @ tensors["adapter/L0/up.weight"].t() + tensors["adapter/L0/up.bias"]

    x, half = torch.randn(5, 8), scaled_adapter(whole, 0.5)
    torch.testing.assert_close(said(half, x), 0.5 * said(whole, x))
    assert half["key/L0"].equal(whole["key/L0"]), "its key says what its task's samples look like, at any share"
    lora = scaled_adapter({"adapter/L0/lora_A.weight": torch.ones(2, 8), "adapter/L0/lora_B.weight": torch.ones(8, 2)}, 0.5)
    assert lora["adapter/L0/lora_A.weight"].eq(1).all() and lora["adapter/L0/lora_B.weight"].eq(0.5).all()


@pytest.mark.parametrize("wanted", COMPOSITIONS, ids=str)
def test_the_composition_with_the_smallest_loss_is_what_it_starts_from(
    still: tuple[Bench, StageJob], monkeypatch: pytest.MonkeyPatch, wanted: Composition
) -> None:
    worker, job = still
    tried = iter(COMPOSITIONS)

    def loss(*given: Any) -> Settled:
        weight, bias = given[3]
        return Settled(weight, bias, float(next(tried) != wanted), 0.0)

    monkeypatch.setattr(compositions, "settled_head", loss)
    ref = worker.learn(job)
    result = TrainResult.of(ref)
    assert result.composition == str(wanted) and list(tried) == [], "each is tried once"
    began = coefficients_of(read_task(worker.context.store, worker.done[job.model_from]))
    assert any(value.any() for value in began.values())
    for name, value in coefficients_of(read_task(worker.context.store, ref)).items():
        torch.testing.assert_close(value, wanted.experience * began[name], atol=1e-6, rtol=0)
    learnt, apart = read_if_there(worker.context.store, ref, ADAPTER_FILE), adapter(worker, job.adapter_from)
    for name, value in learnt.items():
        if name.startswith("adapter/") and wanted.apart:
            torch.testing.assert_close(value, scaled_adapter(apart, wanted.apart)[name], atol=1e-6, rtol=0)
        elif name.endswith(("up.weight", "up.bias")):
            assert value.abs().max() < 1e-6, "a new one adds nothing yet"


def test_the_real_losses_choose_and_the_head_begins_as_it_was_settled(
    still: tuple[Bench, StageJob], monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[Settled] = []
    real = compositions.settled_head

    def noted(*given: Any) -> Settled:
        found.append(real(*given))
        return found[-1]

    monkeypatch.setattr(compositions, "settled_head", noted)
    worker, job = still
    ref = worker.learn(job)
    losses = [settled.loss for settled in found]
    best = losses.index(min(losses))
    assert TrainResult.of(ref).composition == str(COMPOSITIONS[best]) and len(set(losses)) == len(COMPOSITIONS)
    head = head_of(read_task(worker.context.store, ref))
    assert any(
        value.shape == found[best].weight.shape and value.allclose(found[best].weight, atol=1e-6) for value in head.values()
    )


@pytest.mark.parametrize(("rate", "stay"), [(0.0, True), (0.05, False)])
def test_coefficients_stay_where_it_starts_or_train_on_where_told(
    moving: tuple[Bench, StageJob], monkeypatch: pytest.MonkeyPatch, rate: float, stay: bool
) -> None:
    worker, job = moving
    monkeypatch.setattr(compositions, "COMPOSITIONS", (EXPERIENCE,))
    ref = worker.learn(replace(job, settings={**job.settings, "stage_two_coefficient_lr": rate}))
    assert TrainResult.of(ref).best_step > 0
    began = coefficients_of(read_task(worker.context.store, worker.done[job.model_from]))
    ended = coefficients_of(read_task(worker.context.store, ref))
    assert all(torch.equal(began[name], value) for name, value in ended.items()) == stay
    learnt = read_if_there(worker.context.store, ref, ADAPTER_FILE)
    assert any(value.any() for name, value in learnt.items() if name.endswith("up.weight")), "the adapter trains either way"


def test_a_state_that_went_on_is_kept_where_training_does_not_improve_on_it(
    moving: tuple[Bench, StageJob], monkeypatch: pytest.MonkeyPatch
) -> None:
    worker, job = moving
    monkeypatch.setattr(compositions, "COMPOSITIONS", (APART,))
    result = TrainResult.of(worker.learn(replace(job, budget=replace(job.budget, lr=30.0, head_lr=30.0))))
    assert result.best_step == 0, "a rate that destroys destroys nothing"
    assert result.loss <= TrainResult.of(worker.done[job.adapter_from]).loss + 0.05


def test_without_fitted_heads_the_better_form_is_gone_on_from(still: tuple[Bench, StageJob]) -> None:
    worker, job = still[0], replace(still[1], budget=replace(still[1].budget, head_start=HeadStart.RANDOM))
    keys = {EXPERIENCE: job.model_from, APART: job.adapter_from}
    was = dict(worker.done)
    for better, key in keys.items():
        for form, other in keys.items():
            worker.done[other] = replace(was[other], metrics={**was[other].metrics, "loss": 1.0 if form is better else 2.0})
        ref = worker.learn(job)
        assert TrainResult.of(ref).composition == str(better)
        learnt = head_of(read_task(worker.context.store, was[key]))
        for name, value in head_of(read_task(worker.context.store, ref)).items():
            torch.testing.assert_close(value, learnt[name], atol=1e-6, rtol=0)
    worker.done.update(was)


def test_a_stage_that_goes_on_from_a_checkpoint_ends_as_one_that_never_stopped(
    moving: tuple[Bench, StageJob], monkeypatch: pytest.MonkeyPatch
) -> None:
    worker, job = moving
    whole = worker.learn(job)
    choices = Mock(wraps=learn.Compositions)
    monkeypatch.setattr(learn, "Compositions", choices)
    resumed = worker.learn_in_two(job, step=4)
    assert choices.call_count == 1, "it is chosen once"
    assert TrainResult.of(resumed).composition == TrainResult.of(whole).composition != ""
    assert TrainResult.of(resumed).resumed_at > 0
    for one, other in zip(*((both(worker, ref)) for ref in (whole, resumed)), strict=True):
        assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def both(worker: Bench, ref: Any) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    return read_task(worker.context.store, ref), read_if_there(worker.context.store, ref, ADAPTER_FILE)


def test_it_starts_on_top_of_experience_where_it_is_told_to(moving: tuple[Bench, StageJob]) -> None:
    worker, job = moving
    (told,) = (stage for stage in make_method("atlas", {"stage_two_start": "nothing"}).spec.stages if stage.grows)
    ref = worker.learn(replace(job, adapter_from="", stage=told))
    assert TrainResult.of(ref).composition == ""
    began = coefficients_of(read_task(worker.context.store, worker.done[job.model_from]))
    assert all(torch.equal(began[name], value) for name, value in coefficients_of(read_task(worker.context.store, ref)).items())

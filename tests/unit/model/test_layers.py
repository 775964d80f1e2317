"""How layers are run: computed again they give the same bits, compiled they go through the compiler; then all is as before."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
import torch

from atlas_dist.errors import TrainingError
from atlas_dist.model.layers import LayerRuns, run_layers
from tests.kits.step import ONE, SIZES, TWO, new_feeder, open_model, random_backbone, random_batches

SIZE, CPU = SIZES["tiny"], torch.device("cpu")


def step(backbone: Any, runs: LayerRuns, roles: Any) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Outputs and coefficients, and gradients, of one forward and backward."""
    (batch,) = random_batches(SIZE, 3, 1)
    (fed,) = new_feeder(CPU)(batch)
    with open_model(backbone, SIZE, 2, roles, runs=runs) as model:
        model.train()
        logits, penalty = model(fed.inputs)
        (logits.square().sum() + 0.1 * penalty).backward()
        seen = {"logits": logits, "penalty": penalty, **model.alpha_report()}
        return seen, {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("roles", [ONE, TWO], ids=["stage one", "stage two"])
def test_recomputed_layers_give_the_same_bits(roles: Any) -> None:
    backbone = random_backbone(SIZE, CPU)
    for ours, theirs in zip(step(backbone, LayerRuns(recompute=True), roles), step(backbone, LayerRuns(), roles), strict=True):
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs), "and nothing was noted twice"


def test_recomputed_layers_remember_less() -> None:
    backbone = random_backbone(SIZE, CPU)
    (batch,) = random_batches(SIZE, 3, 1)
    (fed,) = new_feeder(CPU)(batch)
    kept = {}
    for recompute in (False, True):
        storages: dict[int, int] = {}

        def pack(tensor: torch.Tensor, storages: dict[int, int] = storages) -> torch.Tensor:
            storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with (
            open_model(backbone, SIZE, 2, TWO, runs=LayerRuns(recompute=recompute)) as model,
            torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
        ):
            output = model.train()(fed.inputs)
        kept[recompute] = sum(storages.values())
        del output
    assert kept[True] < 0.5 * kept[False]


def test_layers_run_as_before_when_the_model_is_closed() -> None:
    backbone = random_backbone(SIZE, CPU)
    with open_model(backbone, SIZE, 0, TWO, runs=LayerRuns(recompute=True)):
        assert all("forward" in vars(layer) for layer in backbone.encoder.layer)
        with pytest.raises(TrainingError, match="in use"):
            open_model(backbone, SIZE, 0, TWO)
    assert not any("forward" in vars(layer) for layer in backbone.encoder.layer)


def test_compiled_layers_go_through_the_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether the compiler's numbers are right is a slow test (tests/gpu)."""
    calls: list[int] = []

    def compile_(function: Any) -> Any:
        def compiled(*args: Any, **kwargs: Any) -> Any:
            calls.append(1)
            return function(*args, **kwargs)

        return compiled

    monkeypatch.setattr(torch, "compile", compile_)
    step(random_backbone(SIZE, CPU), LayerRuns(compiled=True), TWO)
    assert len(calls) == SIZE.layers


def test_every_layer_of_every_job_finds_room_in_the_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    """Layers are one piece of code: at the compiler's limit of 8 versions, 8 of 10 were compiled, and none of the next job's."""
    settings = torch._dynamo.config
    kept = {name: getattr(settings, name) for name in ("recompile_limit", "accumulated_recompile_limit")}
    resets: list[int] = []
    monkeypatch.setattr(torch._dynamo, "reset", lambda: resets.append(1))
    monkeypatch.setattr(torch, "compile", lambda function: function)
    layers = [torch.nn.Identity() for _ in range(24)]
    try:
        run_layers(layers, LayerRuns(compiled=True), nullcontext)()
        assert settings.recompile_limit >= 2 * len(layers)
        assert settings.accumulated_recompile_limit >= settings.recompile_limit
        assert resets == [1], "the next job begins anew"
    finally:
        for name, value in kept.items():
            setattr(settings, name, value)

"""Mid-stage checkpoints keep the names that version 0.1 wrote: an interrupted stage goes on after an upgrade."""

from __future__ import annotations

from types import SimpleNamespace

import torch
from safetensors.torch import load
from torch import nn

from atlas_dist.train.checkpoint import TENSORS, capture, restore
from atlas_dist.train.loop import LoopState


class Module(nn.Module):
    """A model and the head of one auxiliary task."""

    def __init__(self) -> None:
        super().__init__()
        self.model = nn.Linear(2, 2)
        self.auxiliary_heads = nn.ModuleList([nn.Linear(2, 1)])


def engine_of(module: Module) -> SimpleNamespace:
    optimizer = torch.optim.AdamW(module.parameters(), lr=0.1)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 1.0)
    return SimpleNamespace(optimizer=optimizer, lr_scheduler=schedule, zero_optimization_stage=lambda: 0)


def test_heads_of_auxiliary_tasks_are_stored_under_the_old_name_and_come_back() -> None:
    module = Module()
    engine = engine_of(module)
    module.auxiliary_heads[0](module.model(torch.ones(3, 2))).sum().backward()
    engine.optimizer.step()
    names = [name for name, _ in module.named_parameters()]
    best = {name: torch.full_like(p, 7.0).detach() for name, p in module.named_parameters()}
    captured = capture(engine, module, names, LoopState(step=5, best_tensors=best))
    assert captured is not None
    files = captured.files()
    stored = load(files[TENSORS])
    assert {k for k in stored if "guests" in k} == {
        f"{k}/guests.0.{n}" for k in ("param", "m", "v", "best") for n in ("weight", "bias")
    }
    assert not any("auxiliary" in key for key in stored)

    other = Module()
    again = engine_of(other)
    state = restore(files, again, other, names, accumulation=1)
    assert state.step == 5
    for name, parameter in other.named_parameters():
        assert torch.equal(parameter, dict(module.named_parameters())[name])
        assert torch.equal(state.best_tensors[name], best[name])
        assert again.optimizer.state[parameter]["step"] == 1

"""The only file that knows DeepSpeed: a stage's model in, an engine that steps out.

Optimizer, schedule and groups: docs/method.md, What trains. The optimizer is torch's own AdamW handed to DeepSpeed,
which then compiles nothing; ZeRO stage, accumulation and clipping come from the run's configuration.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from atlas_dist.core.types import Budget
from atlas_dist.device import device
from atlas_dist.errors import ConfigError
from atlas_dist.train.module import StageModule


@dataclass(frozen=True)
class EngineSettings:
    """How the engine steps: the part of `train.*` and of a budget that DeepSpeed is told."""

    zero_stage: int
    micro_batch: int
    """Samples a rank per forward pass."""
    accumulation: int
    """Forward passes a step."""
    budget: Budget
    total_steps: int


def learning_rate_factor(step: int, total: int, warmup: float) -> float:
    """Share of the peak learning rate at `step` (0-based): linear up over `warmup` of the steps, then linear to 0.

    >>> [learning_rate_factor(s, 10, 0.2) for s in (0, 1, 2, 6, 10)]
    [0.0, 0.5, 1.0, 0.5, 0.0]
    """
    rise = int(total * warmup)
    if step < rise:
        return step / rise
    return max(0.0, (total - step) / max(1, total - rise))


def build_optimizer(groups: list[dict[str, Any]], budget: Budget) -> torch.optim.AdamW:
    """AdamW over parameter groups (`model/trained.py`).

    On a GPU all tensors of a group are updated together: one at a time, hundreds of small ones would be thousands of launches a
    step. On a CPU that gains nothing.
    """
    together = any(p.is_cuda for group in groups for p in group["params"])
    return torch.optim.AdamW(groups, lr=budget.lr, betas=(budget.beta1, budget.beta2), eps=budget.eps, foreach=together)


class TrainedPart(nn.Module):
    """A stage's module with the parameters that train as its only ones.

    DeepSpeed sends every parameter of its module to every rank when an engine is made, and goes over all of them several times a
    step. Here most belong to a frozen backbone, which all ranks have loaded.

    Args:
        module: already on its device.
        parameters: those of it that train.
    """

    whole: StageModule

    def __init__(self, module: StageModule, parameters: Iterable[nn.Parameter]) -> None:
        super().__init__()
        self.trained = nn.ParameterList(parameters)
        object.__setattr__(self, "whole", module)  # as an attribute of a module it would bring its other parameters along

    def forward(self, *args: Any) -> Any:
        """As the whole module."""
        return self.whole(*args)


def build_engine(module: StageModule, groups: list[dict[str, Any]], settings: EngineSettings) -> Any:
    """Wrap `module` in a DeepSpeed engine over the process group that already exists.

    Args:
        groups: AdamW parameter groups with `params`, `lr`, `weight_decay` (`model/trained.py`).

    Raises:
        ConfigError: DeepSpeed refuses the combination.
    """
    import deepspeed

    budget = settings.budget
    optimizer = build_optimizer(groups, budget)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: learning_rate_factor(step, settings.total_steps, budget.warmup)
    )
    # ZeRO-3 takes the frozen parameters apart too.
    seen = module if settings.zero_stage == 3 else TrainedPart(module, (p for group in groups for p in group["params"]))
    try:
        engine, *_ = deepspeed.initialize(
            model=seen, optimizer=optimizer, lr_scheduler=schedule, config=_deepspeed_config(settings), dist_init_required=False
        )
    except (AssertionError, ValueError) as error:
        raise ConfigError(
            f"DeepSpeed refuses zero_stage={settings.zero_stage}: {error}.", fix="Try train.zero_stage=0."
        ) from error
    _begin_moments(engine)
    engine.allreduce_and_copy = partial(_reduce_together, engine)
    return engine


def _deepspeed_config(settings: EngineSettings) -> dict[str, Any]:
    world = torch.distributed.get_world_size()
    return {
        "train_batch_size": settings.micro_batch * settings.accumulation * world,
        "train_micro_batch_size_per_gpu": settings.micro_batch,
        "gradient_accumulation_steps": settings.accumulation,
        "gradient_clipping": settings.budget.clip,
        "zero_optimization": {"stage": settings.zero_stage},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 10**12,
        "wall_clock_breakdown": False,
        # Off, or it waits for the device at each pass and each step. The loop measures for itself.
        "timers": {"throughput": {"enabled": False}},
    }


def gathered(engine: Any, parameters: Sequence[Tensor], *, change: bool = False) -> AbstractContextManager[Any]:
    """Inside, `parameters` are whole on every rank; with `change`, what rank 0 writes into them is kept. Only ZeRO-3 needs it."""
    if engine.zero_optimization_stage() < 3:
        return nullcontext()
    from deepspeed.runtime.zero import GatheredParameters

    context: AbstractContextManager[Any] = GatheredParameters(list(parameters), modifier_rank=0 if change else None)
    return context


@dataclass(frozen=True)
class AdamState:
    """A parameter that trains and what AdamW knows of it: whole tensors of the parameter's shape, on any number of ranks."""

    value: Tensor
    moments: tuple[Tensor, Tensor] | None
    """`exp_avg` and `exp_avg_sq`; None where it has not been stepped yet."""
    steps: float
    """Steps that the moments have seen."""


def read_adam(engine: Any, parameter: nn.Parameter) -> AdamState:
    """The state of a parameter of the engine, put together from all ranks with ZeRO 1 to 3: every rank must call it then, for the
    same parameters in the same order. May share memory with what trains."""
    stage, states, value = engine.zero_optimization_stage(), engine.optimizer.state, parameter.detach()
    if stage == 0:
        own = states.get(parameter)
        return AdamState(value, (own["exp_avg"], own["exp_avg_sq"]), float(own["step"])) if own else AdamState(value, None, 0)
    from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

    if stage == 3:  # else the parameter itself is whole, and as exact: nothing here trains in less than float32
        value = safe_get_full_fp32_param(parameter)
    first, second = (safe_get_full_optimizer_state(parameter, key) for key in ("exp_avg", "exp_avg_sq"))
    return AdamState(value, (first, second), max(float(states[part]["step"]) for part in _parts(engine)))


def write_adam(engine: Any, found: Iterable[tuple[nn.Parameter, AdamState]]) -> None:
    """Put states back into an engine that has not stepped yet, each rank its own part: they may come from another number of ranks
    and from another ZeRO stage. Every rank must call it, with the same states in the same order.

    With ZeRO 1 to 3 DeepSpeed steps whole groups, so there is one count of steps, the highest. The counts of parameters differ
    only where ZeRO 0 left some out, in steps that gave them no gradient.
    """
    states, steps = engine.optimizer.state, 0.0
    for parameter, state in found:
        steps = max(steps, state.steps)
        with torch.no_grad(), gathered(engine, [parameter], change=True):
            parameter.copy_(state.value)
        if engine.zero_optimization_stage() > 0:
            _write_part(engine, parameter, state)
        elif state.moments is not None:
            first, second = (moment.to(parameter, copy=True) for moment in state.moments)
            states[parameter] = {"step": torch.tensor(state.steps), "exp_avg": first, "exp_avg_sq": second}
    for part in _parts(engine):
        states[part]["step"].fill_(steps)


def _parts(engine: Any) -> list[Tensor]:
    """What this rank steps with ZeRO 1 to 3: its part of each group, in one row; [] with ZeRO 0."""
    stage, optimizer = engine.zero_optimization_stage(), engine.optimizer
    if stage == 0:
        return []
    return list(optimizer.fp32_partitioned_groups_flat if stage == 3 else optimizer.single_partition_of_fp32_groups)


def _reduce_together(engine: Any, gradients: list[Tensor], group: Any, world: Any = None) -> None:
    """Average gradients over the ranks, with ZeRO 0. As DeepSpeed does, which then copies each to its place by itself: on a GPU a
    launch for each of what an adapter trains."""
    averaged = engine.allreduce_bucket(gradients, group, world)
    torch._foreach_copy_(gradients, engine.unflatten(averaged, gradients))


def _begin_moments(engine: Any) -> None:
    """Give every part the moments that its first step would give it. DeepSpeed tells parameters of ZeRO 1 and 2 where their
    moments are when the first group has been stepped, and the later groups have none at that time."""
    states = engine.optimizer.state
    for part in _parts(engine):
        first, second = (torch.zeros_like(part, requires_grad=False) for _ in range(2))
        states[part] = {"step": torch.tensor(0.0), "exp_avg": first, "exp_avg_sq": second}
    if engine.zero_optimization_stage() in (1, 2):
        engine.optimizer._lazy_init_hp_params_optimizer_state()


def _write_part(engine: Any, parameter: nn.Parameter, state: AdamState) -> None:
    """This rank's part of a parameter's float32 value and of its moments."""
    from deepspeed import utils

    whole: dict[str, Tensor] = {"": state.value}
    if state.moments is not None:
        whole |= zip(("exp_avg", "exp_avg_sq"), state.moments, strict=True)
    for key, tensor in whole.items():
        value = tensor.to(parameter.device, torch.float32)
        if engine.zero_optimization_stage() == 3:
            # The last rank's part is filled up, which DeepSpeed's own way of setting whole tensors does not do.
            size, rank = parameter.ds_tensor.ds_numel, torch.distributed.get_rank()  # type: ignore[attr-defined]
            row = nn.functional.pad(value.flatten(), (0, size * torch.distributed.get_world_size() - value.numel()))
            part = row.narrow(0, size * rank, size)
            if key:
                utils.safe_set_local_optimizer_state(parameter, part, key)
            else:
                utils.safe_set_local_fp32_param(parameter, part)
        elif key:
            utils.safe_set_full_optimizer_state(parameter, value, key)
        else:
            utils.safe_set_full_fp32_param(parameter, value)


def prepare_process() -> None:
    """Once a process, before any engine: no JIT build of a communication kernel (58 s, and it needs ninja), no chatter."""
    os.environ["DS_ACCELERATOR"] = device().type
    with _without("mlflow"):
        import deepspeed.ops

    if os.environ["DS_ACCELERATOR"] == "cpu":
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    for name in ("DeepSpeed", "deepspeed"):
        logging.getLogger(name).setLevel(logging.WARNING)


@contextmanager
def _without(package: str) -> Iterator[None]:
    """Inside, a package cannot be imported. DeepSpeed's autotuner, which nobody asks for, would import MLflow with its web server
    where that is installed: a fifth of a worker's start."""
    if package in sys.modules:
        yield
        return
    sys.modules[package] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules[package]


def join_alone() -> None:
    """Make a process group of one when nobody made one: tests, benchmarks and `bank` commands run without Ray."""
    os.environ.setdefault("LOCAL_RANK", "0")
    if not torch.distributed.is_initialized():
        store = torch.distributed.HashStore()  # type: ignore[attr-defined]
        torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)

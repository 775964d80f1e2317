"""Mid-stage checkpoints: everything a stage needs to go on bit for bit, as one safetensors file and one JSON.

Full state, so that a stage may go on with another number of workers. An adapter's trainable state is small (1.8 million
parameters at ViLT-B), so with ZeRO stage 0 every rank holds all of it and rank 0 writes. Sharded optimizers (ZeRO 1 to 3) repeat
the stage instead.

    param/<name>   current value        best/<name>   value at the best validation so far
    m/<name>, v/<name>   Adam's moments       rng          torch's CPU generator
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor, nn

from atlas_dist.errors import DataError
from atlas_dist.train.loop import LoopState

TENSORS, META = "state.safetensors", "state.json"
_FORMAT = 1


@dataclass(frozen=True)
class Captured:
    """The state after a step, in CPU memory of its own: later steps do not change it."""

    tensors: Mapping[str, Tensor]
    meta: Mapping[str, Any]

    def files(self) -> dict[str, bytes]:
        """The files of the checkpoint, name -> bytes. May be called in any thread."""
        return {TENSORS: save(dict(self.tensors)), META: json.dumps(self.meta, sort_keys=True).encode()}


def capture(engine: Any, module: nn.Module, names: Sequence[str], state: LoopState) -> Captured:
    """Copy everything that a checkpoint keeps."""
    parameters = dict(module.named_parameters())
    tensors: dict[str, Tensor] = {"rng": torch.get_rng_state()}
    counts: dict[str, float] = {}
    for name in names:
        stored = _stored(name)
        tensors[f"param/{stored}"] = parameters[name].detach()
        moments = engine.optimizer.state.get(parameters[name])
        if moments:
            tensors[f"m/{stored}"], tensors[f"v/{stored}"] = moments["exp_avg"], moments["exp_avg_sq"]
            counts[stored] = float(moments["step"])
    copies = {name: value.detach().to("cpu", copy=True).contiguous() for name, value in tensors.items()}
    # The best state is a copy already, and is replaced as a whole.
    copies |= {f"best/{_stored(name)}": value.contiguous() for name, value in state.best_tensors.items()}
    meta = {
        "format": _FORMAT,
        "step": state.step,
        "best_score": state.best_score if math.isfinite(state.best_score) else None,
        "best_step": state.best_step,
        "curve": list(state.curve),
        "validation": list(state.validation),
        "started_from": state.started_from,
        "adam_steps": counts,
    }
    return Captured(copies, meta)


def restore(files: Mapping[str, bytes], engine: Any, module: nn.Module, names: Sequence[str], accumulation: int) -> LoopState:
    """Put a captured state back into a freshly built engine; the stage goes on at `.step`.

    Raises:
        DataError: the checkpoint is of another format or trains other parameters.
    """
    tensors, meta = load(files[TENSORS]), json.loads(files[META])
    found = {k.removeprefix("param/") for k in tensors if k.startswith("param/")}
    wanted = {_stored(name) for name in names}
    if meta.get("format") != _FORMAT or found != wanted:
        odd = sorted(found ^ wanted)[:5]
        raise DataError(f"The checkpoint does not fit this stage (format {meta.get('format')}, differing parameters {odd}).")
    parameters = dict(module.named_parameters())
    optimizer = engine.optimizer
    with torch.no_grad():
        for name in names:
            parameter, stored = parameters[name], _stored(name)
            parameter.copy_(tensors[f"param/{stored}"])
            if f"m/{stored}" in tensors:
                optimizer.state[parameter] = {
                    "step": torch.tensor(meta["adam_steps"][stored]),
                    "exp_avg": tensors[f"m/{stored}"].to(parameter),
                    "exp_avg_sq": tensors[f"v/{stored}"].to(parameter),
                }
    torch.set_rng_state(tensors["rng"])
    _move_schedule(engine, meta["step"], accumulation)
    return LoopState(
        step=meta["step"],
        best_score=-math.inf if meta["best_score"] is None else meta["best_score"],
        best_step=meta["best_step"],
        best_tensors={name: v for name in names if (v := tensors.get(f"best/{_stored(name)}")) is not None},
        curve=meta["curve"],
        validation=meta["validation"],
        started_from=meta.get("started_from", ""),
    )


def _stored(name: str) -> str:
    """A parameter's name in the file. Version 0.1 called the heads of auxiliary tasks `guests`, and its checkpoints go on."""
    return f"guests.{name.removeprefix('auxiliary_heads.')}" if name.startswith("auxiliary_heads.") else name


def _move_schedule(engine: Any, step: int, accumulation: int) -> None:
    """Learning rates are a pure function of the step: set the counters, and the rates follow."""
    schedule = engine.lr_scheduler
    schedule.last_epoch = step
    for group, base, factor in zip(engine.optimizer.param_groups, schedule.base_lrs, schedule.lr_lambdas, strict=True):
        group["lr"] = base * factor(step)
    engine.global_steps = step
    engine.micro_steps = step * accumulation

"""Mid-stage checkpoints: everything a stage needs to go on bit for bit, as one safetensors file and one JSON.

Whole tensors by the names of parameters, whatever is divided among the workers (ZeRO 1 to 3), so that a stage may go on with
another number of workers, and at another ZeRO stage. All ranks take part in putting them together, one parameter after the
other; rank 0 keeps them.

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
from atlas_dist.train.engine import AdamState, read_adam, write_adam
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


def capture(engine: Any, module: nn.Module, names: Sequence[str], state: LoopState, *, keeps: bool = True) -> Captured | None:
    """Copy everything that a checkpoint keeps. Every rank must call it; None where this one `keeps` nothing."""
    parameters = dict(module.named_parameters())
    copies: dict[str, Tensor] = {"rng": torch.get_rng_state()}
    counts: dict[str, float] = {}
    for name in names:
        found = read_adam(engine, parameters[name])
        if not keeps:
            continue
        stored = _stored(name)
        copies[f"param/{stored}"] = _copy(found.value)
        if found.moments is not None:
            copies[f"m/{stored}"], copies[f"v/{stored}"] = map(_copy, found.moments)
            counts[stored] = found.steps
    if not keeps:
        return None
    # The best state is a copy already, and is replaced as a whole.
    copies |= {f"best/{_stored(name)}": value.contiguous() for name, value in state.best_tensors.items()}
    meta = {
        "format": _FORMAT,
        "step": state.step,
        "best_score": state.best_worth if math.isfinite(state.best_worth) else None,
        "best_step": state.best_step,
        "curve": list(state.curve),
        "validation": list(state.validation),
        "started_from": state.started_from,
        "composition": state.composition,
        "head_refit": state.head_refit,
        "adam_steps": counts,
    }
    return Captured(copies, meta)


def restore(files: Mapping[str, bytes], engine: Any, module: nn.Module, names: Sequence[str], accumulation: int) -> LoopState:
    """Put a captured state back into a freshly built engine; the stage goes on at `.step`. Every rank must call it.

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

    def stored_state(name: str) -> AdamState:
        stored = _stored(name)
        moments = (tensors[f"m/{stored}"], tensors[f"v/{stored}"]) if f"m/{stored}" in tensors else None
        return AdamState(tensors[f"param/{stored}"], moments, meta["adam_steps"].get(stored, 0.0))

    write_adam(engine, ((parameters[name], stored_state(name)) for name in names))
    torch.set_rng_state(tensors["rng"])
    _move_schedule(engine, meta["step"], accumulation)
    return LoopState(
        step=meta["step"],
        best_worth=-math.inf if meta["best_score"] is None else meta["best_score"],
        best_step=meta["best_step"],
        best_tensors={name: v for name in names if (v := tensors.get(f"best/{_stored(name)}")) is not None},
        curve=meta["curve"],
        validation=meta["validation"],
        started_from=meta.get("started_from", ""),
        composition=meta.get("composition", ""),
        head_refit=meta.get("head_refit", 0.0),
    )


def _copy(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", copy=True).contiguous()


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

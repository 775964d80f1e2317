"""Flat, named tensors in and out of a model, strictly: exact names, shapes and dtypes, finite values.

Weights never load by halves (docs/method.md, Faults of the released code: the released code loads with `strict=False`). A *slot*
is where a named tensor lives in a model: one or more parameters (or views of them), laid end to end along the first dimension.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from atlas_dist.errors import DataError

Slots = dict[str, list[Tensor]]


def load(slots: Slots, tensors: Mapping[str, Tensor], what: str) -> None:
    """Copy `tensors` into `slots`; nothing is written unless everything fits.

    Args:
        slots: name -> the tensors that the values go to.
        tensors: name -> value, in float32 (float64 for float64 slots), on any device.
        what: subject of the error message, such as "the head".

    Raises:
        DataError: names missing or unexpected, a shape or dtype that differs, a value that is not finite; all of them listed.
    """
    faults = [f"{name} is missing" for name in sorted(slots.keys() - tensors.keys())]
    faults += [f"{name} is not expected" for name in sorted(tensors.keys() - slots.keys())]
    for name in sorted(slots.keys() & tensors.keys()):
        faults += [f"{name} {fault}" for fault in _faults(slots[name], tensors[name])]
    if faults:
        shown = "; ".join(faults[:5]) + (f"; and {len(faults) - 5} more" if len(faults) > 5 else "")
        raise DataError(f"Cannot load {what}: {shown}.", fix="The artifact belongs to another backbone, method or task.")
    with torch.no_grad():
        for name, parts in slots.items():
            values = tensors[name]
            if len(parts) == 1:
                parts[0].copy_(values)
            else:
                for part, value in zip(parts, values.split([len(p) for p in parts]), strict=True):  # type: ignore[no-untyped-call]
                    part.copy_(value)


def export(slots: Slots) -> dict[str, Tensor]:
    """Copies of the slots' values: contiguous, on the CPU, in float32 at least (exact for half precisions)."""
    return {
        name: (parts[0] if len(parts) == 1 else torch.cat(parts)).detach().to("cpu", _dtype(parts), copy=True).contiguous()
        for name, parts in slots.items()
    }


def _faults(parts: list[Tensor], value: Tensor) -> list[str]:
    shape = tuple(parts[0].shape) if len(parts) == 1 else (sum(len(p) for p in parts), *parts[0].shape[1:])
    if tuple(value.shape) != shape:
        return [f"is {list(value.shape)} and should be {list(shape)}"]
    if value.dtype is not _dtype(parts):
        return [f"is {value.dtype} and should be {_dtype(parts)}"]
    return [] if bool(torch.isfinite(value).all()) else ["has values that are not finite"]


def _dtype(parts: list[Tensor]) -> torch.dtype:
    return torch.promote_types(parts[0].dtype, torch.float32)

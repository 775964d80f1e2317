"""Tensors as the files of results (core/result_files.py), and reading those of earlier jobs, verified."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from safetensors.torch import load as parse_tensors
from safetensors.torch import save
from torch import Tensor

from atlas_dist.core.attempts import CommittedRef
from atlas_dist.core.result_files import ADAPTER_FILE, TASK_FILE
from atlas_dist.store import artifacts
from atlas_dist.store.objects import ObjectStore


def pack_tensors(tensors: Mapping[str, Tensor]) -> bytes:
    """Tensors as a safetensors file; the same tensors give the same bytes."""
    data: bytes = save({name: tensors[name].contiguous() for name in sorted(tensors)})
    return data


def read_adapters(store: ObjectStore, inputs: Mapping[str, CommittedRef], bank: Sequence[str]) -> list[dict[str, Tensor]]:
    """The adapters of `bank`, in order. Raises DataError when a file does not match its hash."""
    return [parse_tensors(artifacts.load(store, inputs[key], ADAPTER_FILE)) for key in bank]


def read_task(store: ObjectStore, ref: CommittedRef) -> dict[str, Tensor]:
    """Queries, fusion and heads of a committed training job. Raises DataError when the file does not match its hash."""
    tensors: dict[str, Tensor] = parse_tensors(artifacts.load(store, ref, TASK_FILE))
    return tensors


def read_if_there(store: ObjectStore, ref: CommittedRef | None, name: str) -> dict[str, Tensor]:
    """The tensors in one file of a committed job; {} when it has no such file. Raises DataError as `read_task`."""
    if ref is None or all(blob.name != name for blob in ref.blobs):
        return {}
    tensors: dict[str, Tensor] = parse_tensors(artifacts.load(store, ref, name))
    return tensors


def queries_of(task: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The `queries/…` part of a task file."""
    return _part(task, "queries/")


def coefficients_of(task: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The `coefficients/…` part of a task file; {} where adapters are not weighed so."""
    return _part(task, "coefficients/")


def fusion_of(task: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The `fusion/…` part of a task file; {} when the task is not read through a fusion."""
    return _part(task, "fusion/")


def head_of(task: Mapping[str, Tensor], auxiliary: str = "") -> dict[str, Tensor]:
    """The `head/…` part of a task file, or that of the task called `auxiliary` where the file has one."""
    prefix = f"guest/{auxiliary}/"
    found = {name.removeprefix(prefix): value for name, value in task.items() if name.startswith(prefix)}
    return _part(found or task, "head/")


def has_auxiliary_head(task: Mapping[str, Tensor], auxiliary: str) -> bool:
    """Whether the file holds the head of the task called `auxiliary`."""
    return any(name.startswith(f"guest/{auxiliary}/") for name in task)


def as_auxiliary_head(task: str, head: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Another task's head (`head/…`) under the names that `head_of` finds."""
    return {f"guest/{task}/{name}": value for name, value in head.items()}


def _part(task: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name: value for name, value in task.items() if name.startswith(prefix)}

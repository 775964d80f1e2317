"""The files that results consist of, and reading those of earlier jobs, verified.

`adapter.safetensors`  what later tasks see: `adapter/<site>/…`, `key/<site>`
`task.safetensors`     what only the task itself needs: `queries/<site>`, `head/…`
`details.json`         for people and reports: learning curves, statistics of α; the ledger keeps the short metrics only
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from safetensors.torch import load as parse_tensors
from safetensors.torch import save
from torch import Tensor

from atlas_dist.core.types import CommittedRef
from atlas_dist.store import artifacts
from atlas_dist.store.objects import ObjectStore

ADAPTER_FILE, TASK_FILE, DETAILS_FILE = "adapter.safetensors", "task.safetensors", "details.json"


def pack_tensors(tensors: Mapping[str, Tensor]) -> bytes:
    """Tensors as a safetensors file; the same tensors give the same bytes."""
    data: bytes = save({name: tensors[name].contiguous() for name in sorted(tensors)})
    return data


def read_adapters(store: ObjectStore, inputs: Mapping[str, CommittedRef], bank: Sequence[str]) -> list[dict[str, Tensor]]:
    """The adapters of `bank`, in order. Raises DataError when a file does not match its hash."""
    return [parse_tensors(artifacts.load(store, inputs[key], ADAPTER_FILE)) for key in bank]


def read_task(store: ObjectStore, ref: CommittedRef) -> dict[str, Tensor]:
    """Queries and head of a committed training job. Raises DataError when the file does not match its hash."""
    tensors: dict[str, Tensor] = parse_tensors(artifacts.load(store, ref, TASK_FILE))
    return tensors


def queries_of(task: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The `queries/…` part of a task file."""
    return {k: v for k, v in task.items() if k.startswith("queries/")}


def head_of(task: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The `head/…` part of a task file."""
    return {k: v for k, v in task.items() if k.startswith("head/")}

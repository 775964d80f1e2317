"""Which device this process computes on, and how exactly: decided once, here; everybody else asks.

A worker of a pool is told by whoever started it (`take`). A process that nobody told, such as a test, a benchmark or
`bank verify`, takes the GPU that it sees, unless `DS_ACCELERATOR=cpu` says that it shall not.
"""

from __future__ import annotations

import gc
import os
from typing import Any

_taken: Any = None
HIDDEN = {"DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""}
"""The environment of a process that computes on CPUs on a machine with GPUs: libraries that look for themselves find none."""


def take(device: Any) -> None:
    """Decide for the whole process. `device`: torch.device; None = forget what was decided."""
    global _taken
    _taken = device


def device() -> Any:
    """The torch.device that this process computes on."""
    import torch

    if _taken is not None:
        return _taken
    if os.environ.get("DS_ACCELERATOR") == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))


def device_name() -> str:
    """What it is called: `NVIDIA H100 80GB HBM3`, or `cpu`."""
    import torch

    where = device()
    return str(torch.cuda.get_device_name(where)) if where.type == "cuda" else str(where.type)


def visible_gpus() -> int:
    """GPUs that a process started here would see (`CUDA_VISIBLE_DEVICES` counts); none of them is opened."""
    import torch

    return int(torch.cuda.device_count())


def cpu_multiplies_bf16() -> bool | None:
    """Whether this machine's CPU multiplies matrices in bfloat16 at speed (AVX-512 or better); None where torch does not say.

    torch tells it by a private operator only; should that go away, nobody is warned and nothing breaks.
    """
    import torch

    try:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    except (AttributeError, RuntimeError):
        return None


def set_arithmetic(*, tf32: bool = False, deterministic: bool = False) -> None:
    """How exactly products are computed on a GPU. Called before the first of them.

    fp32 means fp32: no TensorFloat-32 unless asked for, no sums kept in half precision. Attention never goes through cuDNN, which
    may choose another algorithm every time. With `deterministic` an operation that has no repeatable form raises.
    """
    import torch

    torch.backends.cuda.matmul.allow_tf32 = tf32
    torch.backends.cudnn.allow_tf32 = tf32
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
    torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False
    torch.backends.cudnn.benchmark = False
    torch.backends.cuda.enable_cudnn_sdp(False)
    torch.backends.cuda.enable_mem_efficient_sdp(not deterministic)  # its backward adds up in any order
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it when a device is opened
    torch.use_deterministic_algorithms(deterministic)


def release_memory() -> None:
    """Give back what ended jobs left: an engine and its optimizer refer to each other, and only the collector takes both."""
    import torch

    gc.collect()
    if device().type == "cuda":
        torch.cuda.empty_cache()

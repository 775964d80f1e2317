"""Nobody waits for anybody: within these, a value that comes back from the device to the host is an error."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class ValuesAreRead(TorchDispatchMode):
    """Raises where a device would have to be waited for: a value, or a shape that depends on values, comes back to the host."""

    READS = (torch.ops.aten._local_scalar_dense, torch.ops.aten.nonzero, torch.ops.aten.masked_select, torch.ops.aten.equal)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert func._overloadpacket not in self.READS, f"{func} reads a value back"
        return func(*args, **(kwargs or {}))


@contextmanager
def no_host_sync(device: str) -> Iterator[None]:
    """On a GPU its own guard, on a CPU the dispatcher's."""
    if device == "cpu":
        with ValuesAreRead():
            yield
        return
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")

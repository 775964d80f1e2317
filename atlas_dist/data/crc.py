"""CRC32C of memory that is not `bytes`, without copying it and without holding the interpreter's lock.

The extension of google-crc32c takes `bytes` only and keeps the lock while it sums; a fetch thread would copy every part, and
stop the decoders meanwhile. The C library inside that package (github.com/google/crc32c, `crc32c_value`) has neither limit, so it
is called directly; where the package is built in another way, the extension does the same sum more slowly.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable

import google_crc32c
import numpy as np


def _library_sum() -> Callable[[int, int], int] | None:
    """`crc32c_value(address, length)` of the library that the extension is linked with; None when it cannot be reached."""
    try:
        from google_crc32c import _crc32c

        function = ctypes.CDLL(_crc32c.__file__).crc32c_value  # the loader looks into linked libraries too
    except (ImportError, OSError, AttributeError):
        return None
    function.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    function.restype = ctypes.c_uint32
    summed: Callable[[int, int], int] = function
    return summed


_sum = _library_sum()


def crc32c(data: bytes | memoryview) -> int:
    """CRC32C (Castagnoli) of contiguous memory.

    >>> hex(crc32c(b"123456789"))
    '0xe3069283'
    """
    if _sum is None or isinstance(data, bytes):
        return int(google_crc32c.value(bytes(data)))
    view = np.frombuffer(data, np.uint8)
    return _sum(view.ctypes.data, view.size)

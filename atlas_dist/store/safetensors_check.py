"""Is this a whole, sane safetensors file? Read without torch, without trust, and without running anything it says."""

from __future__ import annotations

import json
import math

from atlas_dist.errors import DataError

_HEADER_LIMIT = 16 << 20
_WIDTH = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}
# Exponent bits all set means infinity or NaN, in every IEEE format; numpy has no bfloat16, so all are judged by bits.
_EXPONENT = {
    "F64": ("u8", 0x7FF << 52),
    "F32": ("u4", 0xFF << 23),
    "F16": ("u2", 0x1F << 10),
    "BF16": ("u2", 0xFF << 7),
}


def check_safetensors(data: bytes | bytearray | memoryview, name: str) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Check layout and finiteness; return tensor -> (dtype, shape).

    Raises:
        DataError: cut, overlapping, padded or foreign layout, an unknown dtype, or a value that is not finite.
    """
    view = memoryview(data)
    header, start = _header(view, name)
    spans: list[tuple[int, int]] = []
    tensors: dict[str, tuple[str, tuple[int, ...]]] = {}
    for tensor, about in header.items():
        if tensor == "__metadata__":
            continue
        dtype, shape, begin, end = _tensor(about, f"{name}: {tensor}")
        spans.append((begin, end))
        if start + end > len(view):
            raise DataError(f"{name}: {tensor} reaches beyond the end of the file.")
        _check_finite(view[start + begin : start + end], dtype, f"{name}: {tensor}")
        tensors[tensor] = (dtype, shape)
    position = 0
    for begin, end in sorted(spans):
        if begin != position:
            raise DataError(f"{name}: tensors overlap or leave a hole at byte {position}.")
        position = end
    if start + position != len(view):
        raise DataError(f"{name} has {len(view) - start - position} bytes behind its last tensor.")
    return tensors


def _header(view: memoryview, name: str) -> tuple[dict[str, object], int]:
    if len(view) < 8:
        raise DataError(f"{name} is too short for a safetensors file.")
    length = int.from_bytes(view[:8], "little")
    if length > min(_HEADER_LIMIT, len(view) - 8):
        raise DataError(f"{name} is not a safetensors file (header of {length} bytes).")
    try:
        header = json.loads(bytes(view[8 : 8 + length]))
    except ValueError as error:
        raise DataError(f"{name} has an unreadable safetensors header: {error}.") from error
    if not isinstance(header, dict):
        raise DataError(f"{name} has a safetensors header that is not an object.")
    return header, 8 + length


def _tensor(about: object, where: str) -> tuple[str, tuple[int, ...], int, int]:
    if not isinstance(about, dict) or set(about) != {"dtype", "shape", "data_offsets"}:
        raise DataError(f"{where} is described by {about!r:.80}.")
    dtype, shape, offsets = about["dtype"], about["shape"], about["data_offsets"]
    if dtype not in _WIDTH:
        raise DataError(f"{where} has dtype {dtype!r:.20}; known are {sorted(_WIDTH)}.")
    if not _are_counts(shape) or not _are_counts(offsets) or len(offsets) != 2:
        raise DataError(f"{where} has shape {shape!r:.40} at {offsets!r:.40}.")
    begin, end = offsets
    if end - begin != math.prod(shape) * _WIDTH[dtype]:
        raise DataError(f"{where}: {end - begin} bytes are not {dtype} of shape {tuple(shape)}.")
    return dtype, tuple(shape), begin, end


def _are_counts(values: object) -> bool:
    return isinstance(values, list) and all(type(v) is int and v >= 0 for v in values)


def _check_finite(data: memoryview, dtype: str, where: str) -> None:
    if dtype not in _EXPONENT or not len(data):
        return
    import numpy as np  # a tenth of a second that a shell's TAB and --help need not pay

    unsigned, mask = _EXPONENT[dtype]
    bits = np.frombuffer(data, unsigned)
    bad = int(np.count_nonzero((bits & bits.dtype.type(mask)) == mask))
    if bad:
        raise DataError(f"{where} has {bad} values that are not finite.")

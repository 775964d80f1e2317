"""TensorBoard's event files, written without TensorBoard: the only file that knows their format.

A file is a sequence of TFRecords (length, masked CRC-32C of the length, data, masked CRC-32C of the data), each one `Event`:
wall_time = 1 (double), step = 2 (int64), file_version = 3 (string), summary = 5 { value = 1 { tag = 1, simple_value = 2 } }. That
has been stable since 2015, and three types of field are all that scalars need: no reason to depend on a package with a web server
inside. `tensorboard --logdir <report>/tensorboard` shows them.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from atlas_dist.data.crc import crc32c

FILE = "events.out.tfevents.0.atlas-dist"
"""TensorBoard looks for `tfevents` in the name; a fixed one, because writing again replaces."""


@dataclass(frozen=True)
class Scalar:
    """One point of a curve. `at`: seconds since 1970."""

    tag: str
    step: int
    value: float
    at: float = 0.0


def write_events(folder: Path, scalars: Iterable[Scalar]) -> Path:
    """Write one event file into `folder`, replacing the one of an earlier call. Raises OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / FILE
    with path.open("wb") as file:
        file.write(_record(_double(1, 0.0) + _bytes(3, b"brain.Event:2")))
        for scalar in scalars:
            value = _bytes(1, scalar.tag.encode()) + _float(2, scalar.value)
            file.write(_record(_double(1, scalar.at) + _varint(2, scalar.step) + _bytes(5, _bytes(1, value))))
    return path


def _record(data: bytes) -> bytes:
    length = struct.pack("<Q", len(data))
    return length + _masked(length) + data + _masked(data)


def _masked(data: bytes) -> bytes:
    """TFRecord's CRC-32C: rotated and shifted, because a plain CRC of something that holds CRCs is a poor check."""
    crc = crc32c(data)
    return struct.pack("<I", (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF)


def _key(field: int, wire: int) -> bytes:
    return bytes([field << 3 | wire])


def _double(field: int, value: float) -> bytes:
    return _key(field, 1) + struct.pack("<d", value)


def _float(field: int, value: float) -> bytes:
    return _key(field, 5) + struct.pack("<f", value)


def _varint(field: int, value: int) -> bytes:
    return _key(field, 0) + _number(value)


def _bytes(field: int, value: bytes) -> bytes:
    return _key(field, 2) + _number(len(value)) + value


def _number(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])

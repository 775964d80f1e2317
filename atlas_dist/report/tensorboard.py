"""TensorBoard's event files, written without TensorBoard: the only file that knows their format.

A file is a sequence of TFRecords (length, masked CRC-32C of the length, data, masked CRC-32C of the data), each one `Event`:
wall_time = 1 (double), step = 2 (int64), file_version = 3 (string), summary = 5 { value = 1 { tag = 1, simple_value = 2 } },
session_log = 7. That has been stable since 2015, and three types of field are all that scalars need: no reason to depend on a
package with a web server inside. `tensorboard --logdir <report>/tensorboard` shows them, also while the run learns.

A folder is a stage. Each attempt has a file of its own, which holds the whole curve so far and begins with a session start at
step 0: TensorBoard then drops what the files before it said (its `purge_step`), so a stage that was resumed has each point once.
A file is a function of its points, and points only come: writing it again, after a crash in the middle of a record or by another
process, adds what is missing and changes nothing.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from atlas_dist.data.crc import crc32c
from atlas_dist.store.curves import Point

_START = b"\x08\x01"
"""SessionLog { status = 1: START = 1 }."""


@dataclass(frozen=True)
class Scalar:
    """One point of a curve. `at`: seconds since 1970."""

    tag: str
    step: int
    value: float
    at: float = 0.0


def scalars(points: Iterable[Point]) -> Iterator[Scalar]:
    """Each value of each point, under `<split>/<value>`: train/loss, validation/score, train/samples_per_s, …"""
    for point in points:
        for name, value in point.values.items():
            yield Scalar(f"{point.split}/{name}", point.step, value, point.at)


def event_file(folder: Path, number: int) -> Path:
    """The event file of a stage's attempt `number`. TensorBoard looks for `tfevents` in the name, and reads in order of names."""
    return folder / f"events.out.tfevents.{number:06d}.atlas-dist"


def write_events(path: Path, scalars: Iterable[Scalar], *, purge: bool = True) -> Path:
    """Make the file at `path` hold exactly these; what is there already and right is left alone. Raises OSError.

    Args:
        purge: what earlier files of the folder say is void.
    """
    head = _record(_double(1, 0.0) + _bytes(3, b"brain.Event:2"))
    start = _record(_double(1, 0.0) + _bytes(7, _START)) if purge else b""
    data = head + start + b"".join(map(_event, scalars))
    path.parent.mkdir(parents=True, exist_ok=True)
    there = path.read_bytes() if path.exists() else b""
    if data.startswith(there):
        with path.open("ab") as file:
            file.write(data[len(there) :])
    else:
        path.write_bytes(data)
    return path


def _event(scalar: Scalar) -> bytes:
    value = _bytes(1, scalar.tag.encode()) + _float(2, scalar.value)
    return _record(_double(1, scalar.at) + _varint(2, scalar.step) + _bytes(5, _bytes(1, value)))


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

"""Walk a tar that lies in memory and index its samples, without copying a byte.

The format is POSIX ustar with the GNU and pax long-name extensions. A tar ends with a zero block: one that just stops, even
exactly at a header, is truncated, and says so here (most readers take it for complete). Source: POSIX.1-2017, pax, "ustar
Interchange Format".
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from atlas_dist.errors import DataError

BLOCK = 512
_ZEROS = bytes(BLOCK)
_HEADER = struct.Struct("100s24x11s21xB188xB")
"""name; the size's eleven digits; type; the first byte of the prefix"""
_FILE_TYPES = (0x30, 0, 0x37)  # '0', NUL (old tars) and '7' (contiguous) are plain files
_NAME_CAP = 1 << 16


class Member(NamedTuple):
    """A plain file in a tar: its content is `size` bytes from `offset`."""

    name: str
    offset: int
    size: int


@dataclass(slots=True)
class Span:
    """Where one sample lies: its key, and (offset, size) by extension."""

    key: str
    files: dict[str, tuple[int, int]] = field(default_factory=dict)

    def content(self, data: memoryview) -> dict[str, memoryview]:
        """The sample's members by extension, as views of the tar."""
        return {ext: data[at : at + size] for ext, (at, size) in self.files.items()}


def members(data: memoryview, *, trusted: bool = False) -> Iterator[Member]:
    """The plain files of a tar, in order.

    Args:
        trusted: the bytes passed a checksum already: those of the headers are not summed again (half of the walk's time).

    Raises:
        DataError: a damaged header, content past the end, or no end-of-archive block.
    """
    position, end = 0, len(data)
    long_name = ""
    long_size = -1
    while position + BLOCK <= end:
        short, octal, kind, prefix = _HEADER.unpack_from(data, position)
        if not short[0] and data[position : position + BLOCK] == _ZEROS:
            return
        size = long_size
        if size < 0:
            try:
                size = int(octal, 8)  # what nearly every writer leaves; there are a thousand headers a shard
            except ValueError:
                size = _number(bytes(data[position + 124 : position + 136]), position)
        content = position + BLOCK
        if size < 0 or content + size > end:
            raise DataError(f"the tar is cut: a member at byte {position} needs {content + size} bytes, there are {end}")
        if not trusted:
            _check_sum(bytes(data[position : position + BLOCK]), position)
        header, position = position, content + (size + BLOCK - 1) // BLOCK * BLOCK
        if kind in _FILE_TYPES:
            name = _text(short) if not prefix else _prefixed(bytes(data[header : header + BLOCK]))
            yield Member(long_name or name, content, size)
        elif kind == 0x4C:  # 'L': GNU long name of the next member
            long_name = _long_text(data, content, size).rstrip("\0")
            continue
        elif kind == 0x78:  # 'x': pax records of the next member
            long_name, long_size = _pax(bytes(data[content : content + min(size, _NAME_CAP)]), content)
            continue
        long_name, long_size = "", -1
    raise DataError(f"the tar is cut: it stops at byte {end} without its end block")


def samples(data: memoryview, extensions: frozenset[str], *, trusted: bool = False) -> list[Span]:
    """Group members into samples by key, as WebDataset does: the key is the path up to the first dot of the file name, neighbours
    with one key are one sample. Extensions outside the allow-list are passed over.

    Raises:
        DataError: as `members`, or a member appears twice in a sample.
    """
    spans: list[Span] = []
    key = ""
    files: dict[str, tuple[int, int]] = {}
    for name, offset, size in members(data, trusted=trusted):
        dot = name.find(".", name.rfind("/") + 1)
        ext = name[dot + 1 :]
        if ext not in extensions:
            ext = ext.lower()
        if ext not in extensions or dot <= 0 or name[dot - 1] == "/":
            continue
        if name[:dot] != key:
            key, files = name[:dot], {}
            spans.append(Span(key, files))
        if ext in files:
            raise DataError(f"the tar is damaged: {name} appears twice")
        files[ext] = (offset, size)
    return spans


def _check_sum(header: bytes, position: int) -> None:
    """The sum counts the checksum's own eight bytes as spaces."""
    if sum(header) - sum(header[148:156]) + 256 != _number(header[148:156], position):
        raise DataError(f"the tar is damaged: the header at byte {position} fails its checksum")


def _number(field_bytes: bytes, position: int) -> int:
    if field_bytes[0] & 0x80:  # base 256, for sizes beyond 8 GiB
        return int.from_bytes(field_bytes, "big") & ((1 << (8 * len(field_bytes) - 1)) - 1)
    try:
        return int(field_bytes.strip(b" \0") or b"0", 8)
    except ValueError as error:
        raise DataError(f"the tar is damaged: the header at byte {position} holds no octal number") from error


def _prefixed(header: bytes) -> str:
    """The name of a header that has something where ustar, and only ustar, puts the folders of a long path."""
    name = _text(header[:100])
    return f"{_text(header[345:500])}/{name}" if header[257:263] == b"ustar\0" else name


def _text(raw: bytes) -> str:
    return raw.partition(b"\0")[0].decode("utf-8", "surrogateescape")


def _long_text(data: memoryview, start: int, size: int) -> str:
    if size > _NAME_CAP:
        raise DataError(f"the tar is damaged: a name of {size} bytes at byte {start}")
    return bytes(data[start : start + size]).decode("utf-8", "surrogateescape")


def _pax(records: bytes, start: int) -> tuple[str, int]:
    """(path, size) of a pax header, "" and -1 where it has none. A record is "LENGTH KEY=VALUE\\n"."""
    path, size = "", -1
    while records:
        length, space, _ = records.partition(b" ")
        if not space or not length.isdigit() or not len(length) < int(length) <= len(records):
            raise DataError(f"the tar is damaged: pax records at byte {start}")
        key, _, value = records[len(length) + 1 : int(length) - 1].partition(b"=")
        if key == b"path":
            path = value.decode("utf-8", "surrogateescape")
        elif key == b"size" and value.isdigit():
            size = int(value)
        records = records[int(length) :]
    return path, size

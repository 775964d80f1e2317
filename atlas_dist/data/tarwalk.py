"""Walk a tar that lies in memory and index its samples, without copying a byte.

The format is POSIX ustar with the GNU and pax long-name extensions. A tar ends with a zero block: one that just stops, even
exactly at a header, is truncated, and says so here (most readers take it for complete). Source: POSIX.1-2017, pax, "ustar
Interchange Format".

There are two ways through a tar. The walk goes from header to header and knows every dialect. The sweep looks at all blocks at
once, takes those that look like headers, and believes them only if each one's size leads exactly to the next and the last to the
end block; whatever is not that plain is left to the walk.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from atlas_dist.errors import DataError

BLOCK = 512
_ZEROS = bytes(BLOCK)
_HEADER = struct.Struct("100s24x11s21xB188xB")
"""name; the size's eleven digits; type; the first byte of the prefix"""
_FILE_TYPES = (0x30, 0, 0x37)  # '0', NUL (old tars) and '7' (contiguous) are plain files
_SILENT = (0x35, 0x67, 0x56)  # '5' a folder, 'g' pax records of the whole archive, 'V' the archive's label
_OTHER = {0x31: "a hard link", 0x32: "a symbolic link", 0x53: "a sparse file"}
JOINED = "more bytes, which no reader sees: if a tar was joined on with cat, join them with tar -A"
_NAME_CAP = 1 << 16
_MAGIC = np.frombuffer(b"ustar", np.uint8)
_UST = int.from_bytes(b"ust", "little")
_OCTAL = 8 ** np.arange(10, -1, -1, dtype=np.int64)


class Member(NamedTuple):
    """A plain file in a tar: its content is `size` bytes from `offset`."""

    name: str
    offset: int
    size: int


@dataclass(frozen=True, slots=True)
class SampleIndex:
    """Where the samples of a tar lie. Sample i has the members `first[i]` to `first[i + 1]` of the other lists.

    Lists of strings and numbers, not an object a sample: the garbage collector would visit those again and again.
    """

    keys: list[str] = field(default_factory=list)
    first: list[int] = field(default_factory=list)
    extensions: list[str] = field(default_factory=list)
    begins: list[int] = field(default_factory=list)
    ends: list[int] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.keys)

    def content(self, sample: int, data: memoryview) -> dict[str, memoryview]:
        """A sample's members by extension, as views of the tar."""
        members = range(self.first[sample], self.first[sample + 1])
        return {self.extensions[m]: data[self.begins[m] : self.ends[m]] for m in members}


def members(data: memoryview, *, trusted: bool = False, others: list[tuple[str, str]] | None = None) -> Iterator[Member]:
    """The plain files of a tar, in order.

    Args:
        trusted: the bytes passed a checksum already: those of the headers are not summed again (half of the walk's time).
        others: receives (name, what it is) of members that are no plain files, but for folders, and of what lies behind the end.

    Raises:
        DataError: a damaged header, content past the end, or no end-of-archive block.
    """
    position, end = 0, len(data)
    long_name = ""
    long_size, sparse = -1, False
    while position + BLOCK <= end:
        short, octal, kind, prefix = _HEADER.unpack_from(data, position)
        if not short[0] and data[position : position + BLOCK] == _ZEROS:
            if others is not None and bytes(data[position:]).strip(b"\0"):
                others.append(("behind its end", JOINED))
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
        if sparse:
            if others is not None:
                others.append((long_name or _text(short), _OTHER[0x53]))
        elif kind in _FILE_TYPES:
            name = _text(short) if not prefix else _prefixed(bytes(data[header : header + BLOCK]))
            yield Member(long_name or name, content, size)
        elif kind == 0x4C:  # 'L': GNU long name of the next member
            long_name = _long_text(data, content, size).rstrip("\0")
            continue
        elif kind == 0x4B:  # 'K': GNU long target of the next member, a link
            continue
        elif kind == 0x78:  # 'x': pax records of the next member
            long_name, long_size, sparse = _pax(bytes(data[content : content + min(size, _NAME_CAP)]), content)
            continue
        elif others is not None and kind not in _SILENT:
            others.append((long_name or _text(short), _OTHER.get(kind, "no plain file")))
        long_name, long_size, sparse = "", -1, False
    raise DataError(f"the tar is cut: it stops at byte {end} without its end block")


def samples(data: memoryview, extensions: frozenset[str], *, trusted: bool = False) -> SampleIndex:
    """Group members into samples by key, as WebDataset does: the key is the path up to the first dot of the file name, neighbours
    with one key are one sample. Extensions outside the allow-list are passed over.

    Args:
        trusted: as in `members`.

    Raises:
        DataError: as `members`, or a member appears twice in a sample.
    """
    return group((_sweep(data) if trusted else None) or members(data, trusted=trusted), extensions)


def group(
    files: Iterable[tuple[str, int, int]], extensions: frozenset[str], passed_over: list[tuple[str, str]] | None = None
) -> SampleIndex:
    """The samples that (name, offset, size) make, in order; `passed_over` receives (name, its extension) of those that make none.

    Raises:
        DataError: a member appears twice in a sample.
    """
    index = SampleIndex()
    exts, begins, ends = index.extensions, index.begins, index.ends
    key, start = None, 0
    for name, offset, size in files:
        dot = name.find(".", name.rfind("/") + 1)
        ext = name[dot + 1 :]
        if ext not in extensions:
            ext = ext.lower()
        if ext not in extensions or dot <= 0 or name[dot - 1] == "/":
            if passed_over is not None:
                passed_over.append((name, name[dot + 1 :] if dot > 0 else ""))
            continue
        if name[:dot] != key:
            key, start = name[:dot], len(exts)
            index.keys.append(key)
            index.first.append(start)
        elif ext in exts[start:]:
            raise DataError(f"the tar is damaged: {name} appears twice")
        exts.append(ext)
        begins.append(offset)
        ends.append(offset + size)
    index.first.append(len(exts))
    return index


def _sweep(data: memoryview) -> Iterable[tuple[str, int, int]] | None:
    """(name, offset, size) of every member of a tar that holds nothing but plain files with short names; None for any other.

    A block within a file's content that looks like a header breaks the chain, and so costs a walk, not the truth.
    """
    blocks = np.frombuffer(data[: len(data) // BLOCK * BLOCK], np.uint8).reshape(-1, BLOCK)
    # One aligned word a block is what costs: "ust" stands at byte 257.
    found = np.flatnonzero(blocks.view("<u4")[:, 64] >> 8 == _UST)
    if not len(found) or found[0]:
        return None
    heads = blocks[found]
    digits = heads[:, 124:135] - np.uint8(0x30)  # below "0" wraps around to large numbers
    plain = (heads[:, 257:262] == _MAGIC).all() and (digits < 8).all()
    plain = plain and np.isin(heads[:, 156], _FILE_TYPES).all() and not heads[:, 345].any()
    if not plain:
        return None
    sizes = digits.astype(np.int64) @ _OCTAL
    following = found + 1 + (sizes + BLOCK - 1) // BLOCK
    if (following[:-1] != found[1:]).any() or following[-1] >= len(blocks) or blocks[following[-1]].any():
        return None
    names: list[bytes] = np.ascontiguousarray(heads[:, :100]).view("S100").ravel().tolist()
    if not all(names) or b"\0" in b"".join(names):
        return None
    texts = (name.decode("utf-8", "surrogateescape") for name in names)
    return zip(texts, ((found + 1) * BLOCK).tolist(), sizes.tolist(), strict=True)


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


def _pax(records: bytes, start: int) -> tuple[str, int, bool]:
    """(path, size, whether it is sparse) of a pax header, "" and -1 where it has none. A record is "LENGTH KEY=VALUE\\n"."""
    path, size, sparse = "", -1, False
    while records:
        length, space, _ = records.partition(b" ")
        if not space or not length.isdigit() or not len(length) < int(length) <= len(records):
            raise DataError(f"the tar is damaged: pax records at byte {start}")
        key, _, value = records[len(length) + 1 : int(length) - 1].partition(b"=")
        if key == b"path":
            path = value.decode("utf-8", "surrogateescape")
        elif key == b"size" and value.isdigit():
            size = int(value)
        elif key.startswith(b"GNU.sparse."):
            sparse = True
        records = records[int(length) :]
    return path, size, sparse

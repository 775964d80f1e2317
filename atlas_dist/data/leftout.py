"""What could not be used of somebody's data, and why: one count for packing, indexing and whoever reads their reports."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from atlas_dist.errors import DataError

SHOWN = 3
"""Records that are named of each reason."""


class UnusableError(DataError):
    """A record or picture that cannot be used. `reason` is the kind of trouble in a few words, the same for all alike, to
    count by."""

    def __init__(self, message: str, *, fix: str = "", reason: str = "unreadable") -> None:
        super().__init__(message, fix=fix)
        self.reason = reason


@dataclass(frozen=True)
class LeftOut:
    """A record or file that is not among the samples."""

    record: str
    reason: str
    """In a few words, to count by."""
    detail: str = ""
    """What is wrong with this one."""
    bad: bool = True
    """False: by the data set's own rules (no gold label), which is no fault and counts for no limit."""


def left_out_by(record: str, error: DataError, what: str = "") -> LeftOut:
    """The entry for a record that `error` stopped; `what` names the file where the record does not."""
    detail = f"{what}: {error}" if what and what != record else str(error)
    return LeftOut(shown(record), getattr(error, "reason", "unreadable"), shown(detail))


def by_reason(left_out: Iterable[LeftOut]) -> dict[str, list[LeftOut]]:
    """The entries of each reason, the commonest reason first."""
    groups: dict[str, list[LeftOut]] = {}
    for entry in left_out:
        groups.setdefault(entry.reason, []).append(entry)
    return dict(sorted(groups.items(), key=lambda item: (-len(item[1]), item[0])))


def summary(left_out: Iterable[LeftOut]) -> str:
    """One line: each reason with its count and its first records."""
    parts = []
    for reason, entries in by_reason(left_out).items():
        named = "; ".join(f"{e.record} ({e.detail})" if e.detail else e.record for e in entries[:SHOWN])
        parts.append(f"{len(entries)} {reason}: {named}{'; …' if len(entries) > SHOWN else ''}")
    return " | ".join(parts)


def shown(name: str) -> str:
    """`name` as text that every file and terminal takes: bytes that are no UTF-8 become \\xe9, control characters \\x0a.

    >>> shown("caf\\udce9.png")
    'caf\\\\xe9.png'
    """
    if name.isprintable():
        return name
    return "".join(c if c.isprintable() else _escaped(c) for c in name)


def writable(name: str) -> str:
    """`name` as text that can be written as UTF-8: bytes of a file name that are none become \\xe9, all else stays."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return "".join(_escaped(c) if 0xD800 <= ord(c) <= 0xDFFF else c for c in name)
    return name


def _escaped(character: str) -> str:
    number = ord(character)
    if 0xDC80 <= number <= 0xDCFF:
        return f"\\x{number - 0xDC00:02x}"  # a byte of a file name that is not UTF-8
    return character.encode("ascii", "backslashreplace").decode() if number > 0x7F else f"\\x{number:02x}"

"""Canonical JSON, digests and the names of facts.

Everything durable is named by what it depends on. Two processes that agree on the inputs agree on the name without talking.
Canonical form: UTF-8 JSON, keys sorted, no white space, no NaN or infinity, floats in Python's shortest round-trip form.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from enum import Enum
from typing import Any

from atlas_dist.errors import DataError

KEY_CHARS = 32
"""Hex characters of a job key: 128 bits, far beyond any chance of collision, and short enough to read in a path."""
SHORT = 8
"""Characters of a key that are enough to tell two results of one run apart."""

_SEGMENT = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._=-]{0,199}")


def plain(value: Any) -> Any:
    """Reduce dataclasses, enums, tuples and mappings to what JSON knows; refuse anything else."""
    if isinstance(value, Enum):
        return value.value
    if value is None or isinstance(value, str | bool | int | float):
        return value
    if is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, Sequence):
        return [plain(v) for v in value]
    raise TypeError(f"{type(value).__name__} has no canonical JSON form")


def canonical_json(value: Any) -> bytes:
    """The one byte string that stands for `value`.

    >>> canonical_json({"b": 1, "a": [True, None]})
    b'{"a":[true,null],"b":1}'
    """
    text = json.dumps(plain(value), sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.encode("utf-8")


def sha256_hex(data: bytes | memoryview) -> str:
    """SHA-256 of `data` as 64 lower-case hex characters."""
    return hashlib.sha256(data).hexdigest()


def digest_of(value: Any) -> str:
    """SHA-256 of the canonical JSON of `value`, 64 hex characters."""
    return sha256_hex(canonical_json(value))


def key_of(value: Any) -> str:
    """The short name of a fact: the first 128 bits of its digest."""
    return digest_of(value)[:KEY_CHARS]


def flattened(value: Any, prefix: str = "") -> list[tuple[str, Any]]:
    """Leaves of nested mappings by dotted name, in order; an empty mapping is a leaf.

    >>> flattened({"a": {"b": 1, "c": [2]}, "d": {}})
    [('a.b', 1), ('a.c', [2]), ('d', {})]
    """
    if isinstance(value, Mapping) and value:
        return [pair for name, inner in value.items() for pair in flattened(inner, f"{prefix}.{name}" if prefix else str(name))]
    return [(prefix, value)]


def check_name(name: str, what: str) -> str:
    """Return `name` when it is one safe path segment, else raise.

    Store keys are built from names that come from users, manifests and ledgers; a name may never climb out of its folder.

    Raises:
        DataError: `name` is empty, too long, starts with a dot or dash, or holds anything but letters, digits, `. _ = -`.
    """
    if not _SEGMENT.fullmatch(name):
        raise DataError(
            f"{what} {name[:80]!r} is not a safe name.",
            fix="Use letters, digits, '.', '_', '=' and '-', not starting with '.' or '-'.",
        )
    return name


def check_key(key: str) -> str:
    """Return `key` when every '/'-separated segment is a safe name, else raise DataError."""
    for segment in key.split("/"):
        check_name(segment, "store key segment")
    return key

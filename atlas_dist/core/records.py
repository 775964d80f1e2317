"""The vocabulary of the ledger, and its strict JSON form.

A record is a small frozen dataclass; its JSON is its fields and nothing else. Reading is strict (unknown field, missing field,
wrong type: refused), because a ledger outlives the program that wrote it. A field may be added with a default; none may ever
change its meaning: tests/chaos/golden holds ledgers that must read the same for ever.
"""

from __future__ import annotations

import typing
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from enum import StrEnum
from types import UnionType
from typing import Any, TypeVar

from atlas_dist.core.attempts import Blob, FailureKind
from atlas_dist.errors import DataError


@dataclass(frozen=True)
class Begin:
    """The run exists and means this specification. Entry 0, epoch 0, once."""

    run: str
    spec_digest: str
    plan_digest: str
    spec: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Elect:
    """The writer leads from here on; whoever led before collides on its next append."""

    reason: str


@dataclass(frozen=True)
class Dispatch:
    """The attempt is about to start (intent: it may never have)."""

    job: str
    attempt: str
    prefix: str
    pool: str
    reason: str
    resume_from: str = ""
    resume_digest: str = ""
    """sha256 of the DONE file of the checkpoint at `resume_from`: what this run knows of it before anything is loaded."""


@dataclass(frozen=True)
class Commit:
    """The attempt's files were re-read and are right. From here on they are the job's result, for ever."""

    job: str
    attempt: str
    prefix: str
    blobs: tuple[Blob, ...]
    metrics: Mapping[str, Any]


@dataclass(frozen=True)
class Adopt:
    """Another run had committed the same job; its files were re-read and are right."""

    job: str
    attempt: str
    prefix: str
    blobs: tuple[Blob, ...]
    metrics: Mapping[str, Any]
    run: str


@dataclass(frozen=True)
class Fail:
    """The attempt ended without a result, or was given up."""

    job: str
    attempt: str
    kind: FailureKind
    reason: str
    step: int


@dataclass(frozen=True)
class Quarantine:
    """The job is not tried again until somebody resumes the run; what depends on it waits."""

    job: str
    reason: str


@dataclass(frozen=True)
class Abandon:
    """The attempt's files are about to be deleted; nothing of it may be used from here on."""

    job: str
    attempt: str
    reason: str


@dataclass(frozen=True)
class Halt:
    """Something that trying again can't mend: the run stops until somebody resumes it."""

    reason: str
    job: str = ""


@dataclass(frozen=True)
class Pause:
    """Somebody asked the run to stop for now."""

    request: str
    reason: str


@dataclass(frozen=True)
class Resume:
    """Somebody asked the run to go on."""

    request: str
    reason: str


@dataclass(frozen=True)
class Cancel:
    """Somebody asked the run to stop for good."""

    request: str
    reason: str


@dataclass(frozen=True)
class Finish:
    """Every job is committed."""

    reason: str


Record = Begin | Elect | Dispatch | Commit | Adopt | Fail | Quarantine | Abandon | Halt | Pause | Resume | Cancel | Finish

RECORD_TYPES: Mapping[str, type[Record]] = {kind.__name__.lower(): kind for kind in typing.get_args(Record)}

_T = TypeVar("_T")
_shapes: dict[Any, dict[str, tuple[Any, bool]]] = {}
"""Type hints are slow to resolve; a ledger of 10,000 entries asks for the same few."""


def from_json(kind: type[_T], raw: object) -> _T:
    """Build the dataclass `kind` from parsed JSON, strictly. Raises DataError naming the field."""
    if not isinstance(raw, dict):
        raise DataError(f"{kind.__name__} is not a JSON object.")
    shape = _shape(kind)
    foreign = sorted(set(raw) - set(shape))
    if foreign:
        raise DataError(f"{kind.__name__} has unknown fields {foreign}; known are {sorted(shape)}.")
    missing = sorted(name for name, (_, required) in shape.items() if required and name not in raw)
    if missing:
        raise DataError(f"{kind.__name__} lacks the fields {missing}.")
    return kind(**{name: _value(shape[name][0], value, f"{kind.__name__}.{name}") for name, value in raw.items()})


def known_fields(kind: type[Any], raw: object) -> dict[str, Any]:
    """Lenient reading: the fields of the dataclass `kind` that parsed JSON has in the right type; the others are passed over."""
    found: dict[str, Any] = {}
    if not isinstance(raw, Mapping):
        return found
    for name, (want, _) in _shape(kind).items():
        if name not in raw:
            continue
        if isinstance(want, type) and is_dataclass(want):
            found[name] = want(**known_fields(want, raw[name]))
        else:
            with suppress(DataError):
                found[name] = _value(want, raw[name], name)
    return found


def _shape(kind: Any) -> dict[str, tuple[Any, bool]]:
    """field -> (type, required)"""
    known = _shapes.get(kind)
    if known is not None:
        return known
    hints = typing.get_type_hints(kind)
    shape = {f.name: (hints[f.name], f.default is MISSING and f.default_factory is MISSING) for f in fields(kind)}
    return _shapes.setdefault(kind, shape)


def _value(want: Any, raw: object, where: str) -> Any:
    """`raw` as the annotated type; the few shapes that records use, and no coercion but int -> float."""
    origin = typing.get_origin(want)
    if origin is UnionType:  # "… | None"
        return None if raw is None else _value(typing.get_args(want)[0], raw, where)
    if origin is tuple and isinstance(raw, list | tuple):
        return tuple(_value(typing.get_args(want)[0], each, where) for each in raw)
    if origin in (Mapping, dict) and isinstance(raw, dict):
        return raw
    if isinstance(want, type) and origin is None:
        if is_dataclass(want):
            return from_json(want, raw)
        if issubclass(want, StrEnum) and isinstance(raw, str):
            if raw not in {each.value for each in want}:
                raise DataError(f"{where} is {raw!r}; known are {[each.value for each in want]}.")
            return want(raw)
        if want is float and isinstance(raw, int | float) and not isinstance(raw, bool):
            return float(raw)
        if want in (str, int, bool) and type(raw) is want:
            return raw
    raise DataError(f"{where} is {raw!r:.80}, which is not a {getattr(want, '__name__', want)}.")

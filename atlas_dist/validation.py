"""Groups of settings as pydantic models, and what pydantic finds wrong in the user's words: one line a fault, with the key, its
value and what would be valid."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

NAME_PATTERN = r"^[A-Za-z0-9_][A-Za-z0-9._-]{0,79}$"
"""Of runs, tasks and data sets: they become parts of paths and keys."""
NAME_IN_WORDS = "Write letters A to Z, digits, '.', '_' and '-', at most 80, the first a letter, a digit or '_'"
Name = Annotated[str, Field(pattern=NAME_PATTERN)]

Location = tuple[Any, ...]
"""Names of the sections, fields and items down to a value."""


class Section(BaseModel):
    """A group of settings: frozen, without keys that nobody declared; the text below a field is its description."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


def faults(
    error: ValidationError,
    valid: Callable[[Location], Iterable[str]] = lambda _: (),
    *,
    prefix: str = "",
    unknown: str = "there is no such key",
    whole: str = "it",
) -> list[str]:
    """Every fault as a line.

    Args:
        valid: the names that may stand at a location, for a name that may not.
        prefix: what the location of every fault begins with, as in `method.settings.`.
        unknown: what is said of such a name.
        whole: what a fault of everything at once is called.
    """
    return [_line(each, valid, prefix, unknown, whole) for each in error.errors()]


def _line(fault: Any, valid: Callable[[Location], Iterable[str]], prefix: str, unknown: str, whole: str) -> str:
    where = prefix + ".".join(str(part) for part in fault["loc"])
    if fault["type"] == "extra_forbidden":
        names = sorted(valid(fault["loc"][:-1]))
        near = difflib.get_close_matches(str(fault["loc"][-1]), names, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        return f"{where}: {unknown}" + (f"; {hint}valid here: {', '.join(names)}." if names else ".")
    value = fault.get("input")
    if fault["type"] == "string_type" and isinstance(value, bool | int | float):
        return f"{where}: a text is needed, and {value!r} is none: write it in quotes where it is meant as one."
    if fault["type"] == "string_pattern_mismatch" and fault["ctx"]["pattern"] == NAME_PATTERN:
        return f"{where or whole}: {fault['msg']} (it is {value!r:.200}). {NAME_IN_WORDS}."
    shown = "" if isinstance(value, Mapping) else f" (it is {value!r:.200})"
    return f"{where or whole}: {fault['msg'].removeprefix('Value error, ')}{shown}."

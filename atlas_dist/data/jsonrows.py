"""JSON as people write records: an object a line, or all of them in one array. What is neither is told with its line, its column
and what makes it so."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any, NoReturn

from atlas_dist.errors import DataError

_BOM = "\ufeff"
_ONE_A_LINE = "Write one object a line."


def json_rows(text: str, name: str) -> Iterator[tuple[str, dict[str, Any], int]]:
    """(where it stands, the object, its number) of each record: lines counted as editors do, blank ones included; of an array the
    number among its items, from 1.

    Raises:
        DataError: with line and column.
    """
    whole = _array(text, name)
    if whole is not None:
        yield from ((f"{name}, item {number}", item, number) for number, item in enumerate(whole, start=1))
        return
    # Only these end a line: texts may hold other Unicode separators.
    for number, line in enumerate(re.split(r"\r\n|\n|\r", text), start=1):
        row = line.removeprefix(_BOM)  # of a file that was joined on
        if not row.strip():
            continue
        where = f"{name}, line {number}"
        try:
            value = _parsed(row)
        except json.JSONDecodeError as error:
            told = f"column {error.colno + len(line) - len(row)}: {error.msg}{_comma(row, error.pos)}"
            raise DataError(f"{where}: not JSON ({told}).", fix=_mend(text, name, row, error)) from error
        except (ValueError, RecursionError) as error:
            raise DataError(f"{where}: not JSON ({str(error)[:120]}).") from error
        if not isinstance(value, dict):
            raise DataError(f"{where}: not an object but {_kind(value)}.", fix=_ONE_A_LINE)
        yield where, value, number


def _array(text: str, name: str) -> list[dict[str, Any]] | None:
    """The objects of a file that is one array of them; None where it is anything else."""
    begun = text.lstrip()
    if not re.match(r"\[\s*\{", begun):
        return None
    try:
        value = _parsed(text)
    except json.JSONDecodeError as error:
        if error.msg.startswith("Extra data"):
            return None
        told = f"column {error.colno}: {error.msg}{_comma(text, error.pos)}"
        raise DataError(f"{name}, line {error.lineno}: not JSON ({told}).", fix=_ONE_A_LINE) from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{name}: not JSON ({str(error)[:120]}).", fix=_ONE_A_LINE) from error
    odd = next((number for number, item in enumerate(value, start=1) if not isinstance(item, dict)), 0)
    if odd:
        raise DataError(f"{name}, item {odd}: not an object but {_kind(value[odd - 1])}.", fix=_ONE_A_LINE)
    return list(value)


def _parsed(text: str) -> Any:
    return json.loads(text, parse_constant=_no_number, object_pairs_hook=_once)


def _mend(text: str, name: str, row: str, error: json.JSONDecodeError) -> str:
    """What to do about a line that is no JSON, where that is known."""
    if error.msg.startswith("Extra data") and row[error.pos :].lstrip()[:1] in ("{", "["):
        return f"{_ONE_A_LINE} `jq -c . {name}` does."
    if row.lstrip()[:1] in ("{", "[") and row.rstrip(" \t,")[-1:] not in ("}", "]") and _spread(text):
        return f"An object stands over several lines: `jq -c . {name}` writes one a line."
    if re.match(r"\s*\{\s*'", row):
        return "JSON wants double quotes; Python's json.dumps writes them, str() and print() do not."
    return ""


def _spread(text: str) -> bool:
    try:
        json.JSONDecoder().raw_decode(text.lstrip(_BOM + " \t\r\n"))
    except (ValueError, RecursionError):
        return False
    return True


def _comma(text: str, at: int) -> str:
    too_many = text[:at].rstrip().endswith(",") or text[at:][:1] == ","
    return ", after a comma too many" if too_many else ""


def _kind(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return "a list" if isinstance(value, list) else "a text" if isinstance(value, str) else "a number"


def _no_number(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not a value of JSON")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        twice = next(key for number, (key, _) in enumerate(pairs) if key in dict(pairs[:number]))
        raise ValueError(f"the field {twice!r} stands twice")
    return found

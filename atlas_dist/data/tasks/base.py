"""What a converter is: from the files of one raw data set to a list of `RawSample`.

A converter reads annotations only; images stay names in the source until a shard that holds them is written. So the list is
light, the same on every machine, and known in full before the first shard: packing can be cut up, run in parallel and resumed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any, Generic, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from atlas_dist.core.types import TaskKind
from atlas_dist.data.sample import RawSample
from atlas_dist.data.source import Source
from atlas_dist.errors import ConfigError, DataError
from atlas_dist.validation import faults


class Options(BaseModel):
    """Options of a converter: frozen, unknown names refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


@dataclass(frozen=True)
class RawSet:
    """One split of a raw data set, listed."""

    kind: TaskKind
    images: int
    """Images a sample (0 for text-only data)."""
    classes: tuple[str, ...]
    samples: Sequence[RawSample]
    source: Source
    """Where the samples' image names are read."""
    left_out: tuple[tuple[str, str], ...] = ()
    """Records without a use, as (id, reason): no gold label, an answer outside the list, …"""


OptionsT = TypeVar("OptionsT", bound=Options)


@dataclass(frozen=True)
class Converter(Generic[OptionsT]):
    """A named converter: `convert(source path or None, split, options)`. `splits` are the split names it can make."""

    name: str
    options: type[OptionsT]
    convert: Callable[[Path | None, str, OptionsT], RawSet]
    splits: tuple[str, ...]
    about: str

    def run(self, path: Path | None, split: str, options: dict[str, Any]) -> RawSet:
        """Validate, then convert. Raises ConfigError for options or splits that do not exist, DataError for raw data."""
        if self.splits and split not in self.splits:
            raise ConfigError(f"{self.name} has no split {split!r}.", fix=f"Use one of: {', '.join(self.splits)}.")
        try:
            checked = self.options.model_validate(options)
        except ValidationError as error:
            known = ", ".join(self.options.model_fields) or "(none)"
            lines = faults(error, lambda _: self.options.model_fields, unknown="there is no such option")
            raise ConfigError(f"{self.name}: option {' '.join(lines)}", fix=f"Options: {known}.") from error
        return self.convert(path, split, checked)


def need(path: Path | None, name: str) -> Path:
    """`path`, or a ConfigError that says the converter needs one."""
    if path is None:
        raise ConfigError(f"{name} needs a source.", fix="Give the folder or .zip of the raw data set.")
    return path


def json_lines(source: Source, name: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line number, object) of a JSON-lines file. Raises DataError naming the line."""
    for number, line in enumerate(text_lines(source, name), start=1):
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{name}, line {number}: not JSON ({error}).") from error
        if not isinstance(value, dict):
            raise DataError(f"{name}, line {number}: not an object.")
        yield number, value


def json_file(source: Source, name: str) -> Any:
    """The JSON document in a file. Raises DataError."""
    try:
        return json.loads(source.read(name))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{name} is not JSON ({error}).") from error


def text_lines(source: Source, name: str) -> list[str]:
    """The non-empty lines of a UTF-8 file, stripped. Only line feeds end a line: texts may hold other Unicode separators."""
    try:
        text = source.read(name).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{name} is not UTF-8 ({error}).") from error
    return [line.strip() for line in text.split("\n") if line.strip()]


def find_file(source: Source, *candidates: str) -> str:
    """The first of `candidates` that exists. Raises DataError listing them."""
    for name in candidates:
        if source.has(name):
            return name
    raise DataError(
        f"The raw data set has none of: {', '.join(candidates)}.", fix="Check that the source is the right folder or zip."
    )


def field(record: dict[str, Any], name: str, where: str) -> Any:
    """`record[name]`, or a DataError that says where it is missing."""
    if name not in record:
        raise DataError(f"{where} has no field {name!r}: it has {sorted(record)[:20]}.")
    return record[name]


def share_of(text: str, seed: int) -> float:
    """A number in [0, 1) that depends on `text` and `seed` only: splits carved with it never move when records are added."""
    digest = blake2b(f"{seed}\0{text}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64

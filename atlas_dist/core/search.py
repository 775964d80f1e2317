"""Which settings to try, for how long, and which go on: rounds of successive halving, as pure functions.

    rung 0   9 candidates, a ninth of the stage     rung 1   the best 3, a third of it     rung 2   the best 1, all of it

The first round's candidates are drawn evenly; further rounds look where earlier ones did well (app/proposals.py).

A rung is a plan like any other, so a search that was interrupted goes on by giving the same command: the candidates depend on the
seed alone, what was learnt is a fact, and who survives follows from the facts.
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from atlas_dist.errors import ConfigError

_SPACE = re.compile(r"(?P<key>[\w.+-]+)=(?P<kind>log|uniform|int|choice)\((?P<inside>.*)\)")
KINDS = "log(low,high), uniform(low,high), int(low,high), choice(a,b,c)"


@dataclass(frozen=True)
class Space:
    """The values that a key may take. `choices` for `choice`; else `low` to `high`, both included."""

    key: str
    kind: str
    low: float = 0.0
    high: float = 0.0
    choices: tuple[str, ...] = ()

    def at(self, share: float) -> str:
        """The value at `share` (0 to 1) of the way, as it is written on a command line, in four digits."""
        if self.kind == "choice":
            return self.choices[min(int(share * len(self.choices)), len(self.choices) - 1)]
        if self.kind == "int":
            return self.written(min(int(self.low + share * (self.high - self.low + 1)), int(self.high)))
        if self.kind == "log":
            return self.written(self.low * (self.high / self.low) ** share)
        return self.written(self.low + share * (self.high - self.low))

    def written(self, value: float | str) -> str:
        """`value` as a word of a command line has it: a number in four digits."""
        return f"{value:.4g}" if self.kind in ("log", "uniform") else str(value)

    def read(self, text: str) -> float | str:
        """What `written` wrote, within the ends: four digits may lie just beyond one."""
        if self.kind == "choice":
            return text
        if self.kind == "int":
            return int(text)
        return min(max(float(text), self.low), self.high)


def space_of(word: str) -> Space | None:
    """What `key=log(1e-4,1e-2)` means; None for a word that is no space.

    Raises:
        ConfigError: a space that has no values.
    """
    found = _SPACE.fullmatch(word)
    if found is None:
        return None
    key, kind, parts = found["key"], found["kind"], [part.strip() for part in found["inside"].split(",")]
    if kind == "choice":
        if not all(parts) or len(set(parts)) != len(parts):
            raise ConfigError(f"{word!r} names no choices, or one twice.", fix=f"Spaces are: {KINDS}.")
        return Space(key, kind, choices=tuple(parts))
    try:
        low, high = map(float, parts)
    except ValueError:
        raise ConfigError(f"{word!r} needs two numbers.", fix=f"Spaces are: {KINDS}.") from None
    whole = kind != "int" or (low.is_integer() and high.is_integer())
    if not (math.isfinite(low) and math.isfinite(high) and low < high and whole and (kind != "log" or low > 0)):
        raise ConfigError(f"{word!r} is empty.", fix="The lower number first; log needs both above 0, int whole ones.")
    return Space(key, kind, low, high)


def draw(spaces: Sequence[Space], count: int, seed: int) -> list[dict[str, str]]:
    """`count` candidates, key -> value: a Latin hypercube, so each `count`-th part of each axis has exactly one. The same
    arguments give the same candidates; of equal ones (few choices) only the first is kept."""
    dice = random.Random(seed)
    columns = []
    for space in spaces:
        places = list(range(count))
        dice.shuffle(places)
        columns.append([space.at((place + dice.random()) / count) for place in places])
    drawn = [dict(zip((s.key for s in spaces), row, strict=True)) for row in zip(*columns, strict=True)]
    return list({tuple(candidate.items()): candidate for candidate in drawn}.values())


@dataclass(frozen=True)
class Rung:
    """How many candidates learn for which share of the stage."""

    count: int
    share: float


def rungs(count: int, factor: int) -> list[Rung]:
    """From `count` candidates to one; each rung has a `factor`-th of the candidates and learns `factor` times as long.

    Raises:
        ConfigError: nothing to choose from.
    """
    if count < 2 or factor < 2:
        raise ConfigError(f"{count} trials by a factor of {factor} leave nothing to choose.", fix="Both are at least 2.")
    counts = [count]
    while counts[-1] > 1:
        counts.append(max(1, counts[-1] // factor))
    return [Rung(n, 1.0 / factor ** (len(counts) - 1 - number)) for number, n in enumerate(counts)]


def survivors(scores: Mapping[str, float], count: int) -> list[str]:
    """The best `count`, best first; of equal ones the one that was drawn first."""
    return sorted(scores, key=lambda name: -scores[name])[:count]


@dataclass(frozen=True)
class Trial:
    """A candidate (key -> value) and what it scored, share of the stage -> score, after each rung that it learnt in."""

    candidate: Mapping[str, str]
    scores: Mapping[float, float]

    @property
    def furthest(self) -> tuple[float, float]:
        """The longest share that it learnt, and its score then."""
        return max(self.scores.items())


def ranked(trials: Sequence[Trial]) -> list[Trial]:
    """Best first: who went further, then who scored more; of equal ones the one that was drawn first."""
    return sorted(trials, key=lambda trial: trial.furthest, reverse=True)

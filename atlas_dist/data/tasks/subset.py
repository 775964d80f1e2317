"""Part of another data set, with splits of one's own: some of its classes, and so many samples of each class in every split.

    converter: subset
    source: omniglot_inat.zip
    options:
      of: inaturalist2019                  # any other converter; `options` below are its own
      images: ["*/Balinese/*"]             # samples whose picture is called so
      parts: 3                             # deal the classes of each of `images`, in their order, into three parts …
      take: [0, 1]                         # … and keep the first two
      per_class: {train: 12, val: 4, test: 4}

Samples are drawn from all splits of the other converter together, in an order that depends on their ids and the seed alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from pydantic import Field

from atlas_dist.core.types import TaskKind
from atlas_dist.data.sample import RawSample
from atlas_dist.data.tasks.base import Converter, Options, RawSet, share_of
from atlas_dist.errors import ConfigError, DataError


class SubsetOptions(Options):
    """Which part of which data set. Empty lists keep everything."""

    of: str
    options: dict[str, Any] = Field(default_factory=dict)
    classes: tuple[str, ...] = ()
    """Patterns (`*`, `?`, `[…]`) of class names, in the order in which the classes are numbered here."""
    images: tuple[str, ...] = ()
    """Patterns of the name of a sample's first picture."""
    parts: int = Field(default=1, ge=1)
    """The classes of each pattern of `images` are dealt into so many parts, apart from those of the other patterns."""
    take: tuple[int, ...] = (0,)
    """Which of the `parts` are kept, from 0."""
    per_class: dict[str, int] = Field(default_factory=dict)
    """Samples a class of each split, in the order in which they are drawn; {} = the other converter's own splits."""
    seed: int = 0


def subset_of(find: Callable[[str], Converter[Any]]) -> Converter[SubsetOptions]:
    """The converter, given how others are found by name."""

    def convert(path: Path | None, split: str, options: SubsetOptions) -> RawSet:
        other = find(options.of)
        _check(options, split)
        whole = {name: other.run(path, name, options.options) for name in other.splits or (split,)}
        if not options.per_class and split not in whole:
            raise ConfigError(f"{options.of} has no split {split!r}.", fix=f"Use one of: {', '.join(whole)}; or set per_class.")
        first = next(iter(whole.values()))
        if first.kind is not TaskKind.SINGLE:
            raise ConfigError(f"subset takes data sets with classes; {options.of} is of kind {first.kind.value}.")
        every = [sample for raw in whole.values() for sample in raw.samples if _named(sample, options.images)]
        # Classes are dealt by the first pattern that one of their pictures has, whatever stands in front of it.
        there: dict[int, int] = {}
        for sample in every:
            there[sample.label] = min(_pattern(sample, options.images), there.get(sample.label, len(options.images)))
        kept = _classes(first.classes, there, options)
        number = {label: place for place, label in enumerate(kept)}
        mine = every if options.per_class else [s for s in whole[split].samples if _named(s, options.images)]
        mine = [sample for sample in mine if sample.label in number]
        if options.per_class:
            mine = _drawn(mine, split, options, first.classes)
        samples = [replace(sample, label=number[sample.label]) for sample in mine]
        left_out = tuple(left for raw in whole.values() for left in raw.left_out)
        return RawSet(first.kind, first.images, tuple(first.classes[c] for c in kept), samples, first.source, left_out)

    return Converter("subset", SubsetOptions, convert, (), "Some classes of another data set, with splits of one's own")


def _check(options: SubsetOptions, split: str) -> None:
    if options.per_class and split not in options.per_class:
        raise ConfigError(f"subset draws no split {split!r}.", fix=f"per_class names: {', '.join(options.per_class)}.")
    beyond = [part for part in options.take if not 0 <= part < options.parts]
    if beyond or not options.take:
        raise ConfigError(f"subset: take is {list(options.take)}, of {options.parts} parts.", fix="Parts are counted from 0.")


def _named(sample: RawSample, patterns: tuple[str, ...]) -> bool:
    return not patterns or (bool(sample.images) and any(fnmatchcase(sample.images[0], pattern) for pattern in patterns))


def _pattern(sample: RawSample, patterns: tuple[str, ...]) -> int:
    """Number of the first pattern that the sample's picture has; 0 where there are none."""
    return next((number for number, pattern in enumerate(patterns) if fnmatchcase(sample.images[0], pattern)), 0)


def _classes(names: tuple[str, ...], there: dict[int, int], options: SubsetOptions) -> list[int]:
    """Labels that are kept, in their new order. `there`: label -> the number of its pattern of pictures."""
    patterns = options.classes or ("*",)
    matching = [c for pattern in patterns for c, name in enumerate(names) if c in there and fnmatchcase(name, pattern)]
    dealt, places = [], Counter[int]()
    for c in dict.fromkeys(matching):
        if places[there[c]] % options.parts in options.take:
            dealt.append(c)
        places[there[c]] += 1
    if not dealt:
        raise DataError(
            f"subset of {options.of} keeps no class.", fix=f"The data set has {len(names)} classes: {', '.join(names[:8])}, …"
        )
    return dealt


def _drawn(samples: list[RawSample], split: str, options: SubsetOptions, names: tuple[str, ...]) -> list[RawSample]:
    """The split's share of each class."""
    before = sum(count for name, count in list(options.per_class.items())[: list(options.per_class).index(split)])
    count = options.per_class[split]
    by_class: dict[int, list[RawSample]] = {}
    for sample in sorted(samples, key=lambda s: (share_of(s.id, options.seed), s.id)):
        by_class.setdefault(sample.label, []).append(sample)
    chosen = []
    for label, members in sorted(by_class.items()):
        if len(members) < before + count:
            raise DataError(
                f"subset: class {names[label]} has {len(members)} samples; per_class asks for {sum(options.per_class.values())}.",
                fix="Ask for fewer samples a class.",
            )
        chosen += members[before : before + count]
    return chosen

"""Places365 (Zhou et al. 2017), image -> scene, in both layouts it is distributed in. CIFAR-10 12k uses the first.

1. easyformat: `{train,val}/CLASS/x.jpg` and `{train,val}.txt`, a line "train/airfield/00000001.jpg". Labels: sorted class names
   (the released loaders take `os.listdir` order, which differs from machine to machine).
2. file lists: `categories_places365.txt` "/a/airfield 0", `places365_train_standard.txt` "/a/airfield/00000001.jpg 0",
   `places365_val.txt` "Places365_val_00000001.jpg 165"; images below `data_large/` (train) and `val_large/`, or as options say.
"""

from __future__ import annotations

from pathlib import Path

from atlas_dist.core.types import TaskKind
from atlas_dist.data.sample import IMAGE_PROMPT, RawSample
from atlas_dist.data.source import Source, open_source
from atlas_dist.data.tasks.base import Converter, Options, RawSet, find_file, need, text_lines
from atlas_dist.errors import DataError


class Places365Options(Options):
    """Where things lie; the defaults are the layouts as distributed."""

    prompt: str = IMAGE_PROMPT
    train_images: str = "data_large"
    """File-list layout: folder of the training images."""
    val_images: str = "val_large"
    val_list: str = "places365_val.txt"
    train_list: str = "places365_train_standard.txt"


def convert(path: Path | None, split: str, options: Places365Options) -> RawSet:
    """List a split. Both layouts name every image's class."""
    source = open_source(need(path, "places365"))
    if source.has("categories_places365.txt"):
        return _file_lists(source, split, options)
    return _easyformat(source, split, options)


def _easyformat(source: Source, split: str, options: Places365Options) -> RawSet:
    prefix = "places365_standard/" if source.has(f"places365_standard/{split}.txt") else ""
    lines = text_lines(source, find_file(source, f"{prefix}{split}.txt"))
    # Classes of all splits together: a small validation split may miss some.
    every = [
        line
        for name in ("train", "val")
        if source.has(f"{prefix}{name}.txt")
        for line in text_lines(source, f"{prefix}{name}.txt")
    ]
    classes = tuple(sorted({_class_of(line) for line in every}))
    label = {name: number for number, name in enumerate(classes)}
    samples = [RawSample(line, ((options.prompt,),), (prefix + line,), label[_class_of(line)]) for line in lines]
    return RawSet(TaskKind.SINGLE, 1, classes, samples, source)


def _class_of(line: str) -> str:
    # A class may itself be a path ("train/apartment_building/outdoor/x.jpg"): all between split and file.
    parts = line.split("/")
    if len(parts) < 3:
        raise DataError(f"{line[:200]!r} is not SPLIT/CLASS/FILE.")
    return "/".join(parts[1:-1])


def _file_lists(source: Source, split: str, options: Places365Options) -> RawSet:
    names = dict(_name_and_label(line) for line in text_lines(source, "categories_places365.txt"))
    if sorted(names.values()) != list(range(len(names))):
        raise DataError("categories_places365.txt does not number its classes 0, 1, 2, ….")
    classes = tuple(name.strip("/").partition("/")[2] for name in sorted(names, key=names.__getitem__))
    listing, folder = (options.train_list, options.train_images) if split == "train" else (options.val_list, options.val_images)
    samples = []
    for line in text_lines(source, find_file(source, listing)):
        name, label = _name_and_label(line)
        if not 0 <= label < len(classes):
            raise DataError(f"{listing}: {line!r} names class {label} of {len(classes)}.")
        member = name.lstrip("/")
        samples.append(RawSample(member, ((options.prompt,),), (f"{folder}/{member}" if folder else member,), label))
    return RawSet(TaskKind.SINGLE, 1, classes, samples, source)


def _name_and_label(line: str) -> tuple[str, int]:
    name, _, number = line.rpartition(" ")
    if not name or not number.isdigit():
        raise DataError(f"{line[:200]!r} is not NAME LABEL.")
    return name, int(number)


PLACES365 = Converter("places365", Places365Options, convert, ("train", "val"), "Places365, easyformat or file lists")

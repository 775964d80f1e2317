"""NLVR2 (Suhr et al. 2019): two photographs + sentence -> false / true.

`{train,dev,test1}.json`, an object a line: identifier "dev-850-0-0", sentence, label "True"/"False", directory (train only). The
pictures are the identifier without its last part + `-img0.png` (left) and `-img1.png` (right); some hold JPEG, which packing sees
by content.
"""

from __future__ import annotations

from pathlib import Path

from atlas_dist.core.types import TaskKind
from atlas_dist.data.sample import RawSample
from atlas_dist.data.source import Source, open_source
from atlas_dist.data.tasks.base import Converter, Options, RawSet, field, find_file, json_lines, need
from atlas_dist.errors import DataError

CLASSES = ("false", "true")
_UPSTREAM = {"train": "train", "val": "dev", "test": "test1"}


class Nlvr2Options(Options):
    """`images`: folder that holds a folder of pictures a split."""

    images: str = "images"


def convert(path: Path | None, split: str, options: Nlvr2Options) -> RawSet:
    """List a split; `val` is dev, `test` is test1."""
    source = open_source(need(path, "nlvr2"))
    upstream = _UPSTREAM[split]
    name = find_file(
        source, f"data/{upstream}.json", f"{upstream}.json", f"nlvr2/data/{upstream}.json", f"NLVR2/data/{upstream}.json"
    )
    root = name.removesuffix(f"{upstream}.json").removesuffix("data/")
    samples: list[RawSample] = []
    for number, record in json_lines(source, name):
        where = f"{name}, line {number}"
        verdict = str(field(record, "label", where)).lower()
        if verdict not in CLASSES:
            raise DataError(f"{where}: label {verdict!r} is neither true nor false.")
        identifier = str(field(record, "identifier", where))
        pictures = _pictures(source, f"{root}{options.images}/{upstream}", identifier, record.get("directory"))
        samples.append(RawSample(identifier, ((str(field(record, "sentence", where)),),), pictures, CLASSES.index(verdict)))
    return RawSet(TaskKind.PAIR, 2, CLASSES, samples, source)


def _pictures(source: Source, folder: str, identifier: str, directory: object) -> tuple[str, str]:
    """(left, right). Upstream keeps training pictures in numbered folders, most copies are flat."""
    stem = identifier.rpartition("-")[0]
    left = f"{folder}/{stem}-img0.png"
    if directory is not None and not source.has(left):
        folder = f"{folder}/{directory}"
    return f"{folder}/{stem}-img0.png", f"{folder}/{stem}-img1.png"


NLVR2 = Converter("nlvr2", Nlvr2Options, convert, tuple(_UPSTREAM), "NLVR2: two pictures + sentence, true or false")

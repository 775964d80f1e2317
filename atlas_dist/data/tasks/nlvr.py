"""NLVR v1 (Suhr et al. 2017): one picture of three boxes + a human sentence -> false / true.

`SPLIT/SPLIT.json`, an object a line; the picture of permutation K of the boxes is
`SPLIT/images/DIRECTORY/SPLIT-IDENTIFIER-K.png`.
`train` and `val` here are upstream splits of your choice: the train file of 2017 is hard to get, so dev is learnt from by
default.
"""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from atlas_dist.core.types import TaskKind
from atlas_dist.data.sample import RawSample
from atlas_dist.data.source import open_source
from atlas_dist.data.tasks.base import Converter, Options, RawSet, field, find_file, json_lines, need
from atlas_dist.errors import DataError

CLASSES = ("false", "true")


class NLVROptions(Options):
    """Which upstream split becomes `train` and `val`, and which box permutations of a picture are taken."""

    train_from: str = "dev"
    val_from: str = "test"
    train_permutations: tuple[int, ...] = Field(default=(0, 1, 2, 3), min_length=1)
    val_permutations: tuple[int, ...] = Field(default=(0,), min_length=1)


def convert(path: Path | None, split: str, options: NLVROptions) -> RawSet:
    """List a split; permutations of one picture are samples of their own."""
    source = open_source(need(path, "nlvr"))
    upstream = options.train_from if split == "train" else options.val_from
    permutations = options.train_permutations if split == "train" else options.val_permutations
    name = find_file(source, f"{upstream}/{upstream}.json", f"{upstream}.json")
    folder = name.rpartition("/")[0]
    folder = folder and folder + "/"
    samples: list[RawSample] = []
    for number, record in json_lines(source, name):
        where = f"{name}, line {number}"
        verdict = str(field(record, "label", where)).lower()
        if verdict not in CLASSES:
            raise DataError(f"{where}: label {verdict!r} is neither true nor false.")
        identifier, sentence = str(field(record, "identifier", where)), str(field(record, "sentence", where))
        for k in permutations:
            image = f"{folder}images/{field(record, 'directory', where)}/{upstream}-{identifier}-{k}.png"
            samples.append(RawSample(f"{upstream}-{identifier}-{k}", ((sentence,),), (image,), CLASSES.index(verdict)))
    return RawSet(TaskKind.SINGLE, 1, CLASSES, samples, source)


NLVR = Converter("nlvr", NLVROptions, convert, ("train", "val"), "NLVR v1: three boxes in one picture, true or false")

"""SNLI-VE (Xie et al. 2019): Flickr30k picture + hypothesis -> entailment, contradiction or neutral.

`snli_ve_{train,dev,test}.jsonl`: Flickr30K_ID, gold_label, sentence2 (the hypothesis; sentence1 is the caption and not used),
pairID.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from atlas_dist.core.types import TaskKind
from atlas_dist.data.sample import RawSample
from atlas_dist.data.source import open_source
from atlas_dist.data.tasks.base import Converter, Options, RawSet, field, find_file, json_lines, need
from atlas_dist.errors import DataError

CLASSES = ("entailment", "contradiction", "neutral")
"""The order of labels in CLiMB and ATLAS."""


class SnliVeOptions(Options):
    """`images`: folder of ID.jpg below the source; "" tries the places where CLiMB and ATLAS keep it."""

    images: str = ""


def convert(path: Path | None, split: str, options: SnliVeOptions) -> RawSet:
    """List a split; `val` is the file upstream calls dev. Records without a gold label ("-") are left out."""
    source = open_source(need(path, "snli_ve"))
    file = f"snli_ve_{'dev' if split == 'val' else split}.jsonl"
    name = find_file(source, file, f"snli-ve/{file}", f"snli_ve_data/{file}")
    folder = options.images.rstrip("/")
    samples: list[RawSample] = []
    left_out: list[tuple[str, str]] = []
    for number, record in json_lines(source, name):
        where = f"{name}, line {number}"
        gold, pair = field(record, "gold_label", where), str(record.get("pairID", number))
        if gold == "-":
            left_out.append((pair, "no gold label"))
            continue
        if gold not in CLASSES:
            raise DataError(f"{where}: gold_label {gold!r} is none of {CLASSES}.")
        try:
            picture = f"{int(field(record, 'Flickr30K_ID', where))}.jpg"
        except ValueError as error:
            raise DataError(f"{where}: Flickr30K_ID {record['Flickr30K_ID']!r} is no number.") from error
        if not folder:
            folder = _image_folder([f"{place}/{picture}" for place in _PLACES], source.has)
        samples.append(
            RawSample(pair, ((str(field(record, "sentence2", where)),),), (f"{folder}/{picture}",), CLASSES.index(gold))
        )
    return RawSet(TaskKind.SINGLE, 1, CLASSES, samples, source, tuple(left_out))


_PLACES = ("flickr30k_images", "flickr30k/flickr30k_images", "snli_ve_data/flickr30k_images")


def _image_folder(candidates: list[str], has: Callable[[str], bool]) -> str:
    # Without the picture itself, the first place: packing then reports every picture by its name.
    return next((name for name in candidates if has(name)), candidates[0]).rpartition("/")[0]


SNLI_VE = Converter("snli_ve", SnliVeOptions, convert, ("train", "val", "test"), "SNLI-VE: picture + hypothesis, three classes")

"""iNaturalist 2019 (Van Horn et al.), image -> species, COCO-style JSON; Omniglot here comes in the same layout.

`{train,val}2019.json`: images[]{id, file_name}, annotations[]{image_id, category_id}, categories[]{id, name}. The two lists are
joined on `image_id`; the released loaders zip them by position, which is right only by luck.
"""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

from atlas_dist.core.types import TaskKind
from atlas_dist.data.sample import IMAGE_PROMPT, RawSample
from atlas_dist.data.source import Source, open_source
from atlas_dist.data.tasks.base import Converter, Options, RawSet, find_file, json_file, need
from atlas_dist.errors import DataError


class INaturalistOptions(Options):
    """Nothing to set for the data as distributed."""

    prompt: str = IMAGE_PROMPT


def convert(path: Path | None, split: str, options: INaturalistOptions) -> RawSet:
    """List a split; labels are the ranks of the category ids, which are 0 … C-1 as released."""
    source = open_source(need(path, "inaturalist2019"))
    body = _load(source, find_file(source, f"{split}2019.json", f"{split}2019.json.gz"))
    try:
        categories = {int(c["id"]): str(c["name"]) for c in body["categories"]}
        files = {int(i["id"]): str(i["file_name"]) for i in body["images"]}
        category_of = {int(a["image_id"]): int(a["category_id"]) for a in body["annotations"]}
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{split}2019.json lacks a field of the COCO layout: {error}") from error
    label = {number: rank for rank, number in enumerate(sorted(categories))}
    samples, left_out = [], []
    for number, name in files.items():
        category = category_of.get(number)
        if category is None or category not in label:
            left_out.append((name, "no annotation" if category is None else f"unknown category {category}"))
            continue
        samples.append(RawSample(name, ((options.prompt,),), (name,), label[category]))
    # Names repeat across genera (and alphabets): the id keeps them apart.
    classes = tuple(f"{number} {categories[number]}" for number in sorted(categories))
    return RawSet(TaskKind.SINGLE, 1, classes, samples, source, tuple(left_out))


def _load(source: Source, name: str) -> Any:
    if not name.endswith(".gz"):
        return json_file(source, name)
    try:
        return json.loads(gzip.decompress(source.read(name)))
    except (OSError, EOFError, ValueError) as error:
        raise DataError(f"{name} is not gzipped JSON ({error}).") from error


INATURALIST = Converter("inaturalist2019", INaturalistOptions, convert, ("train", "val"), "iNaturalist 2019 (COCO-style JSON)")

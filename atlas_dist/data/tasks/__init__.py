"""Converters, one a raw data set format. `CONVERTERS` names them; `converter(name)` finds one or lists them."""

from __future__ import annotations

from typing import Any

from atlas_dist.data.tasks.base import Converter, Options, RawSet
from atlas_dist.data.tasks.commonsenseqa import COMMONSENSEQA
from atlas_dist.data.tasks.digits import DIGITS
from atlas_dist.data.tasks.easyvqa import EASYVQA
from atlas_dist.data.tasks.generic import CHOICE_JSONL, CLASSIFY_JSONL, IMAGE_FOLDER
from atlas_dist.data.tasks.inaturalist import INATURALIST
from atlas_dist.data.tasks.instruct import INSTRUCT_JSONL
from atlas_dist.data.tasks.nlvr import NLVR
from atlas_dist.data.tasks.nlvr2 import NLVR2
from atlas_dist.data.tasks.piqa import PIQA
from atlas_dist.data.tasks.places365 import PLACES365
from atlas_dist.data.tasks.snlive import SNLI_VE
from atlas_dist.data.tasks.subset import subset_of
from atlas_dist.data.tasks.toy import TOY
from atlas_dist.data.tasks.vcr import VCR
from atlas_dist.data.tasks.vqav2 import VQAV2
from atlas_dist.errors import ConfigError

_ALL: tuple[Converter[Any], ...] = (
    COMMONSENSEQA,
    DIGITS,
    EASYVQA,
    INATURALIST,
    NLVR,
    NLVR2,
    PIQA,
    PLACES365,
    SNLI_VE,
    VCR,
    VQAV2,
    IMAGE_FOLDER,
    CLASSIFY_JSONL,
    CHOICE_JSONL,
    INSTRUCT_JSONL,
    TOY,
)

CONVERTERS: dict[str, Converter[Any]] = {c.name: c for c in _ALL}


def converter(name: str) -> Converter[Any]:
    """The converter called `name`. Raises ConfigError listing those that exist."""
    if name not in CONVERTERS:
        raise ConfigError(f"There is no converter {name!r}.", fix=f"Use one of: {', '.join(sorted(CONVERTERS))}.")
    return CONVERTERS[name]


CONVERTERS["subset"] = subset_of(converter)


__all__ = ["CONVERTERS", "Converter", "Options", "RawSet", "converter"]

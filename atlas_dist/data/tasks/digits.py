"""Handwritten digits (Alpaydin & Kaynak 1998, UCI; 1,797 scans of 8x8 pixels, 16 greys) as the package scikit-learn ships
them."""

from __future__ import annotations

import importlib.util
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image
from pydantic import Field

from atlas_dist.core.types import TaskKind
from atlas_dist.data.sample import IMAGE_PROMPT, RawSample
from atlas_dist.data.tasks.base import Converter, Options, RawSet, share_of
from atlas_dist.errors import ConfigError, DataError

PARITY = ("even", "odd")


class DigitsOptions(Options):
    """What is asked of a scan, how `val` is carved, and how large the pictures are drawn."""

    label: Literal["digit", "parity"] = "digit"
    """Which digit it is, or whether that is even or odd."""

    val_share: float = Field(default=0.25, gt=0, lt=1)
    seed: int = 0
    side: int = Field(default=64, ge=8, le=1024)


class DigitsSource:
    """Scan number n as `n.png`, black on white, enlarged smoothly."""

    def __init__(self, side: int) -> None:
        self._side = side
        self._scans, self.labels = _load()

    def read(self, name: str) -> bytes:
        number, _, ext = name.partition(".")
        if ext != "png" or not number.isdigit() or int(number) >= len(self._scans):
            raise DataError(f"there is no scan {name!r}")
        ink = self._scans[int(number)]
        grey = (255 - np.clip(ink * (255 / 16), 0, 255)).astype(np.uint8)
        out = io.BytesIO()
        picture = Image.fromarray(grey).resize((self._side, self._side), Image.Resampling.BICUBIC)
        picture.convert("RGB").save(out, "PNG")
        return out.getvalue()

    def has(self, name: str) -> bool:
        return name.endswith(".png")

    def names(self, under: str = "") -> Iterator[str]:
        yield from (f"{n}.png" for n in range(len(self._scans)))

    def stamp(self, name: str) -> str:
        return ""


def convert(path: Path | None, split: str, options: DigitsOptions) -> RawSet:
    """List a split; which scan falls into which depends on its number and the seed only. `path` is not used."""
    source, parity = DigitsSource(options.side), options.label == "parity"
    samples = [
        RawSample(f"digit-{n}", ((IMAGE_PROMPT,),), (f"{n}.png",), int(label) % 2 if parity else int(label))
        for n, label in enumerate(source.labels)
        if (share_of(str(n), options.seed) < options.val_share) == (split == "val")
    ]
    return RawSet(TaskKind.SINGLE, 1, PARITY if parity else tuple("0123456789"), samples, source)


def _load() -> tuple[np.ndarray, np.ndarray]:
    if importlib.util.find_spec("sklearn") is None:
        raise ConfigError("digits needs the package scikit-learn, which ships the scans.", fix="pip install 'atlas-dist[demo]'")
    from sklearn.datasets import load_digits

    digits = load_digits()
    return digits.images, digits.target


DIGITS = Converter("digits", DigitsOptions, convert, ("train", "val"), "handwritten digits, from the package scikit-learn")

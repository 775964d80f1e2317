"""Film stills with the boxes of the named objects drawn in, made while packing (nothing is written beside the raw data)."""

from __future__ import annotations

import colorsys
import io
from collections.abc import Iterator, Mapping

from PIL import ImageDraw

from atlas_dist.data.images import open_rgb
from atlas_dist.data.source import Source
from atlas_dist.data.tasks.base import json_file
from atlas_dist.errors import DataError


class BoxedSource:
    """A source whose picture `id` is another source's still with some of its boxes drawn.

    Args:
        boxes: by id: (picture, metadata file, indices of the boxes to draw).
    """

    def __init__(self, source: Source, boxes: Mapping[str, tuple[str, str, tuple[int, ...]]]) -> None:
        self._source = source
        self._boxes = boxes

    def read(self, name: str) -> bytes:
        """The picture as JPEG. Raises DataError when picture or metadata are missing, damaged or do not fit."""
        if name not in self._boxes:
            return self._source.read(name)
        picture, metadata, indices = self._boxes[name]
        image = open_rgb(self._source.read(picture))
        facts = json_file(self._source, metadata)
        try:
            # Boxes are in the metadata's pixels; the still may come in another size.
            sx, sy = image.width / float(facts["width"]), image.height / float(facts["height"])
            pen = ImageDraw.Draw(image)
            for i in indices:
                left, top, right, bottom = (float(v) for v in facts["boxes"][i][:4])
                pen.rectangle(
                    (left * sx, top * sy, right * sx, bottom * sy), outline=_colour(i), width=max(2, image.width // 200)
                )
        except (KeyError, IndexError, TypeError, ValueError, ZeroDivisionError) as error:
            raise DataError(f"{metadata} does not hold the boxes {indices}: {error!r}") from error
        out = io.BytesIO()
        image.save(out, "JPEG", quality=95, subsampling=0)
        return out.getvalue()

    def has(self, name: str) -> bool:
        """Whether `read` knows the name."""
        return name in self._boxes or self._source.has(name)

    def names(self, under: str = "") -> Iterator[str]:
        """The raw data's own names."""
        return self._source.names(under)

    def stamp(self, name: str) -> str:
        """Of the picture and of what is drawn into it."""
        if name not in self._boxes:
            return self._source.stamp(name)
        picture, metadata, _ = self._boxes[name]
        return f"{self._source.stamp(picture)}/{self._source.stamp(metadata)}"


def _colour(index: int) -> tuple[int, int, int]:
    # Golden-ratio steps around the colour wheel: neighbours differ most.
    red, green, blue = colorsys.hsv_to_rgb(index * 0.618034 % 1.0, 0.9, 1.0)
    return int(red * 255), int(green * 255), int(blue * 255)

"""How pictures become pixels for a checkpoint, by its preprocessor_config.json, as far as ours can do the same.

Ours: a picture is decoded as a viewer shows it, squashed whole into the model's square, divided by 255 and normalised. Mean,
standard deviation, filter and the number of tiles that the square is cut into are the checkpoint's. SigLIP's own preprocessing
makes just one square: whatever asks for more is refused. ViLT's, CLIP's and SmolVLM's keep the sides' ratio, and CLIP's cuts off
what is beyond a square; ours does neither, because a question may be about what would be cut off (docs/method.md, Another
backbone).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from transformers.utils import cached_file

from atlas_dist.core.types import Resample
from atlas_dist.errors import DataError
from atlas_dist.model.backbones import Architecture, PictureForm
from atlas_dist.model.backbones.base import Floats
from atlas_dist.model.tiling import check_tiles

FILES = ("processor_config.json", "preprocessor_config.json")
"""Where a checkpoint keeps it: below `image_processor` of the first, or all of the second."""

_FILTERS = {1: Resample.LANCZOS, 2: Resample.BILINEAR, 3: Resample.BICUBIC}
"""Pillow's numbers."""
_FIXED = {"do_resize": True, "do_rescale": True, "do_flip_channel_order": False, "do_reduce_labels": False}
"""What has no choice here."""


def usual_form(architecture: Architecture) -> PictureForm:
    """Of checkpoints that say nothing."""
    return PictureForm(architecture.pixel_mean, architecture.pixel_std)


def read_settings(source: str, revision: str | None) -> Mapping[str, Any]:
    """What a checkpoint in a folder or on the hub says of its pictures; {} = nothing.

    Raises:
        OSError: the hub can't be asked.
        DataError: a file of it is no JSON object.
    """
    for name in FILES:
        file = cached_file(source, name, revision=revision or "main", _raise_exceptions_for_missing_entries=False)
        if file is None:
            continue
        try:
            tree = json.loads(Path(file).read_bytes())
        except ValueError as error:
            raise DataError(f"{name} of {source!r} is not JSON: {error}.", fix="Download it again.") from error
        said = tree.get("image_processor") if isinstance(tree, dict) and name == FILES[0] else tree
        if isinstance(said, dict):
            return said
        if name == FILES[1]:
            raise DataError(f"{name} of {source!r} is not a JSON object.", fix="Download it again.")
    return {}


def form_of(said: Mapping[str, Any], architecture: Architecture, side: int, name: str, tiles: int | None = None) -> PictureForm:
    """The form that settings ask for.

    Args:
        said: as `read_settings`.
        side: of the squares that the model sees, in pixels.
        name: the backbone's, for messages.
        tiles: that a user names instead; see `PictureForm.tiles`.

    Raises:
        DataError: a setting that cannot be honoured, or that is none.
        ConfigError: as `check_tiles`.
    """
    usual = usual_form(architecture)
    for key, only in _FIXED.items():
        if said.get(key) not in (None, only):
            raise _refused(name, key, said[key], f"it is always {str(only).lower()} here")
    factor = said.get("rescale_factor")
    if factor is not None and not (isinstance(factor, int | float) and math.isclose(factor, 1 / 255, rel_tol=1e-6)):
        raise _refused(name, "rescale_factor", factor, "pixels are divided by 255 here")
    _check_square(said, architecture, side, name)
    number = said.get("resample")
    if number is not None and number not in _FILTERS:
        raise _refused(name, "resample", number, "there are 1 (Lanczos), 2 (bilinear) and 3 (bicubic)")
    resample = usual.resample if number is None else _FILTERS[number]
    form = replace(usual, resample=resample, tiles=_asked_tiles(said, architecture, side, name) if tiles is None else tiles)
    check_tiles(name, form.tiles, architecture)
    if said.get("do_normalize") is False:
        return replace(form, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    mean, std = (_channels(said, key, own, name) for key, own in (("image_mean", usual.mean), ("image_std", usual.std)))
    if min(std) <= 0:
        raise _refused(name, "image_std", list(std), "it must be above 0")
    return replace(form, mean=mean, std=std)


def _asked_tiles(said: Mapping[str, Any], architecture: Architecture, side: int, name: str) -> int:
    """n, where settings ask for tiles and the architecture has them; else 1."""
    if architecture.tiling is None or not said.get("do_image_splitting"):
        return 1
    instead = "; or set backbone.tiles, to 1 for pictures that are seen whole, once"
    tile, whole = (said.get(key) for key in ("max_image_size", "size"))
    edges = [size.get("longest_edge") if isinstance(size, Mapping) else None for size in (tile, whole)]
    if edges[0] != side:
        raise _refused(name, "max_image_size", tile, f"tiles are squares of {side} pixels, as config.json says", instead)
    if not isinstance(edges[1], int) or edges[1] < side or edges[1] % side:
        raise _refused(name, "size", whole, f"its longest_edge must be a multiple of a tile's {side} pixels", instead)
    return edges[1] // side


def _check_square(said: Mapping[str, Any], architecture: Architecture, side: int, name: str) -> None:
    """Whether whole pictures become the model's square, where the architecture's own preprocessing does that; elsewhere whether
    a square that is named is the model's."""
    if architecture.squashes and said.get("do_center_crop"):
        raise _refused(name, "do_center_crop", True, "pictures are not cut here")
    for key in ("size", "crop_size") if not architecture.squashes else ("size",):
        size = said.get(key)
        sides = (size.get("height"), size.get("width")) if isinstance(size, dict) else (size, size)
        if size is None or (not architecture.squashes and None in sides):
            continue
        if key == "size" and not architecture.squashes and not isinstance(size, dict):
            continue  # the shorter side, in the form of old versions
        if sides != (side, side):
            raise _refused(name, key, size, f"pictures are squares of {side} pixels, as config.json says")


def _channels(said: Mapping[str, Any], key: str, usual: Floats, name: str) -> Floats:
    given = said.get(key)
    if given is None:
        return usual
    numbers = isinstance(given, Sequence) and all(isinstance(v, int | float) and math.isfinite(v) for v in given)
    if not numbers or isinstance(given, str) or len(given) != 3:
        raise _refused(name, key, given, "it must be three numbers")
    first, second, third = map(float, given)
    return first, second, third


def _refused(name: str, key: str, value: Any, why: str, instead: str = "") -> DataError:
    return DataError(
        f"The preprocessor_config.json of backbone {name!r} has {key}={json.dumps(value)}; {why}.",
        fix=f"Use the file that belongs to config.json; correct it only if you know how the model was trained{instead}.",
    )

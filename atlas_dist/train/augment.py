"""Varied training pictures (docs/method.md, Varied pictures): each is turned, sheared, scaled and shifted a little, anew at every
step.

What happens to a picture is drawn from the seed, the step, the sample and its place in the sample, and from nothing else: it is
the same at any number of workers and after any resume. It runs on the device, on pixels that are normalised already.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from atlas_dist.core.types import Augment
from atlas_dist.train.feed import ModelBatch

TURN, SHEAR, SCALE, ASPECT, SHIFT = math.radians(15), 0.15, 0.15, 0.1, 0.1
"""Largest change each way: radians; sideways a height; two shares of the size; the same as share of half a picture."""
_DRAWS = 7
OFTEN = 8.0
"""Passes over the samples from which on `auto` varies them, and fits every head (train/head_start.py): before that they are not
learnt by heart, and a stage has no steps to spare (docs/experience.md, Fourth round)."""


def resolved(kind: Augment, passes: float) -> Augment:
    """What `auto` means for a stage that sees each of its samples so many times."""
    if kind is not Augment.AUTO:
        return kind
    return Augment.AFFINE if passes >= OFTEN else Augment.NONE


def augmented(part: ModelBatch, kind: Augment, seed: int, step: int) -> ModelBatch:
    """`part` with varied pictures; as it is where nothing is to vary, or where all samples share one blank picture.

    Args:
        kind: `resolved`.
    """
    pixels = part.inputs["pixel_values"]
    if kind is Augment.NONE or pixels.stride(0) == 0:
        return part
    count, images = pixels.shape[:2]
    draws = torch.from_numpy(uniform(seed, step, part.index.numpy(), images)).to(pixels.device, pixels.dtype)
    places = functional.affine_grid(_matrices(draws, kind), [count * images, *pixels.shape[2:]], align_corners=False)
    varied = functional.grid_sample(pixels.flatten(0, 1), places, padding_mode="border", align_corners=False)
    return replace(part, inputs={**part.inputs, "pixel_values": varied.view_as(pixels)})


def _matrices(draws: Tensor, kind: Augment) -> Tensor:
    """[n, 2, 3] of draws [n, 7] in [-1, 1): where each pixel of the result comes from."""
    turn, shear, scale, aspect, right, down, mirror = draws.unbind(1)
    cos, sin = (TURN * turn).cos(), (TURN * turn).sin()
    high = 1 + SCALE * scale
    wide = high * (1 + ASPECT * aspect)
    if kind is Augment.AFFINE_FLIP:
        wide = torch.where(mirror < 0, -wide, wide)
    rows = (
        torch.stack((cos * wide, (SHEAR * shear - sin) * high, SHIFT * right), dim=1),
        torch.stack((sin * wide, cos * high, SHIFT * down), dim=1),
    )
    return torch.stack(rows, dim=1)


def uniform(seed: int, step: int, samples: NDArray[np.int64], images: int) -> NDArray[np.float32]:
    """Numbers in [-1, 1), [n · images, 7], each from its own coordinates: the finaliser of SplitMix64 (Steele et al. 2014)."""
    with np.errstate(over="ignore"):
        at_step = _scrambled(np.uint64(seed & (2**64 - 1)) + np.uint64(step + 1))
        by_sample = _scrambled(at_step + samples.astype(np.uint64)[:, None])
        places = np.arange(1, images * _DRAWS + 1, dtype=np.uint64)
        bits = _scrambled(by_sample + _GAMMA * places[None])
    values = (bits >> np.uint64(40)).astype(np.float32) * np.float32(2.0**-23) - np.float32(1.0)
    return values.reshape(-1, _DRAWS)


_GAMMA = np.uint64(0x9E3779B97F4A7C15)


def _scrambled(value: np.uint64 | NDArray[np.uint64]) -> NDArray[np.uint64]:
    mixed = np.asarray(value, dtype=np.uint64) + _GAMMA
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))

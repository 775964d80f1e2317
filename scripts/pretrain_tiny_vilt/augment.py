"""Random changes of whole batches of pictures, as a few tensor operations: uint8 in, normalised float out."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

MEAN = STD = 0.5  # ViLT's own normalisation: [0, 1] -> [-1, 1]


def normalise(pictures: Tensor) -> Tensor:
    """uint8 or float in [0, 255] -> float in [-1, 1]."""
    return (pictures.float() / 255 - MEAN) / STD


def photos(pictures: Tensor, generator: torch.Generator) -> Tensor:
    """Crop, flip, blur by shrinking, and jitter colours of uint8 photos [B, 3, 64, 64]."""
    batch = len(pictures)
    zoom = _uniform((batch,), 0.55, 1.0, generator)
    stretch = _uniform((batch,), 0.85, 1.18, generator)
    mirror = _coin(batch, 0.5, generator) * 2 - 1
    across, down = (zoom * stretch).clamp(max=1), (zoom / stretch).clamp(max=1)
    theta = torch.zeros(batch, 2, 3)
    theta[:, 0, 0] = across * mirror
    theta[:, 1, 1] = down
    theta[:, 0, 2] = (1 - across) * _uniform((batch,), -1, 1, generator)
    theta[:, 1, 2] = (1 - down) * _uniform((batch,), -1, 1, generator)
    moved = _warp(pictures.float(), theta, None, "reflection")
    coarse = functional.interpolate(functional.avg_pool2d(moved, 2), scale_factor=2, mode="bilinear")
    shrunk = _coin(batch, 0.5, generator).view(-1, 1, 1, 1)
    moved = shrunk * coarse + (1 - shrunk) * moved
    return normalise(_jitter_colours(moved, generator))


def pen_strokes(skeletons: Tensor, generator: torch.Generator) -> Tensor:
    """Ink for skeletons [B, 64, 64] in {0, 1}: pen width, slant, size, wobble; dark on light or the other way round.

    Returns normalised pictures [B, 3, 64, 64].
    """
    batch = len(skeletons)
    angle = _uniform((batch,), -0.25, 0.25, generator)
    shear = _uniform((batch,), -0.3, 0.3, generator)
    across, down = (_uniform((batch,), 0.85, 1.45, generator) for _ in range(2))
    theta = torch.zeros(batch, 2, 3)
    theta[:, 0, 0], theta[:, 0, 1] = across * angle.cos(), across * (shear - angle.sin())
    theta[:, 1, 0], theta[:, 1, 1] = down * angle.sin(), down * angle.cos()
    theta[:, :, 2] = _uniform((batch, 2), -0.2, 0.2, generator)
    wobble = functional.interpolate(
        _uniform((batch, 2, 5, 5), -0.11, 0.11, generator), size=skeletons.shape[-2:], mode="bicubic", align_corners=True
    )
    ink = skeletons[:, None].float()
    wide = _coin(batch, 0.3, generator).view(-1, 1, 1, 1)
    ink = wide * functional.max_pool2d(ink, 3, 1, 1) + (1 - wide) * ink
    # Blur, then a soft threshold: thin lines survive the resampling and stay about one pixel wide or more.
    ink = functional.avg_pool2d(_warp(functional.max_pool2d(ink, (2, 2), 1, 1)[..., :-1, :-1], theta, wobble, "zeros"), 3, 1, 1)
    gain = _uniform((batch,), 1.6, 3.2, generator).view(-1, 1, 1, 1)
    ink = (ink * gain).clamp(0, 1)
    light, dark = _uniform((batch,), 0.9, 1.0, generator), _uniform((batch,), 0.0, 0.15, generator)
    inverted = _coin(batch, 0.15, generator)
    paper = (1 - inverted) * light + inverted * dark
    colour = inverted * light + (1 - inverted) * dark
    grey = paper.view(-1, 1, 1, 1) + ink * (colour - paper).view(-1, 1, 1, 1)
    return normalise(255 * grey).expand(-1, 3, -1, -1)


def _warp(pictures: Tensor, theta: Tensor, wobble: Tensor | None, outside: str) -> Tensor:
    grid = functional.affine_grid(theta, list(pictures.shape), align_corners=False)
    if wobble is not None:
        grid = grid + wobble.permute(0, 2, 3, 1)
    return functional.grid_sample(pictures, grid, padding_mode=outside, align_corners=False)


def _jitter_colours(pictures: Tensor, generator: torch.Generator) -> Tensor:
    shape = (len(pictures), 1, 1, 1)
    grey = pictures.mean(dim=1, keepdim=True)
    pictures = grey + (pictures - grey) * _uniform(shape, 0.5, 1.5, generator)
    level = pictures.mean(dim=(1, 2, 3), keepdim=True)
    pictures = level + (pictures - level) * _uniform(shape, 0.6, 1.4, generator)
    brightness = _uniform(shape, 0.7, 1.3, generator) * _uniform((len(pictures), 3, 1, 1), 0.93, 1.07, generator)
    return (pictures * brightness).clamp(0, 255)


def _uniform(shape: tuple[int, ...], low: float, high: float, generator: torch.Generator) -> Tensor:
    return torch.rand(shape, generator=generator) * (high - low) + low


def _coin(count: int, chance: float, generator: torch.Generator) -> Tensor:
    return (torch.rand(count, generator=generator) < chance).float()

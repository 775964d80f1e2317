"""A large picture as n x n tiles beside a small one of the whole, as SmolVLM's and Idefics3's own preprocessing makes them of a
square picture: the tiles row by row, then the whole, shrunk from the picture that the tiles were cut from.

The picture comes as one square, so that whatever lies between the shards and the model knows one tensor a picture. It is cut on
the device, where the small one is made too: by Pillow's filter, along the width and then along the height, from whole grey
levels to whole grey levels between 0 and 255, as Pillow computes with bytes. An integer shrink weighs its neighbours alike
everywhere, so that each of the two is a convolution; at the edges the weights of what lies outside are shared out among the
others.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn, unflatten
from torch.nn import functional

from atlas_dist.core.types import Resample
from atlas_dist.model.backbones.base import PictureForm

AROUND, WHOLE = "<fake_token_around_image>", "<global-img>"
"""What stands around pictures, and before the small one of the whole."""


def names_of_tiles(tiles: int) -> tuple[str, ...]:
    """The tokens that name n x n tiles, row by row.

    >>> names_of_tiles(2)
    ('<row_1_col_1>', '<row_1_col_2>', '<row_2_col_1>', '<row_2_col_2>')
    """
    return tuple(f"<row_{row}_col_{column}>" for row in range(1, tiles + 1) for column in range(1, tiles + 1))


def picture_prompt(tiles: int, picture: str) -> str:
    """What stands for a picture in a prompt, with `picture` where a tile's tokens belong.

    >>> picture_prompt(1, "*")
    '<fake_token_around_image><global-img>*<fake_token_around_image>'
    >>> picture_prompt(2, "*").count("*"), picture_prompt(2, "*").count(chr(10))
    (5, 3)
    """
    names, prompt = names_of_tiles(tiles) if tiles > 1 else (), ""
    for number, name in enumerate(names, start=1):
        prompt += f"{AROUND}{name}{picture}" + ("\n" if number % tiles == 0 else "")
    return prompt + ("\n" if names else "") + f"{AROUND}{WHOLE}{picture}{AROUND}"


class Cut(nn.Module):
    """Normalised pictures [B, 3, nS, nS] -> their tiles and the small ones of the whole [B·(n² + 1), 3, S, S], a picture's one
    after the other.

    Args:
        side: S.
        form: its `tiles` is n; mean, deviation and filter are those that the pictures were made with.
    """

    def __init__(self, side: int, form: PictureForm) -> None:
        super().__init__()
        self.tiles, self.side = form.tiles, side
        self.before, weights = _shrinking(form.tiles, form.resample)
        for name, value in (
            ("weights", weights),
            ("share", _shares(self._convolved(torch.ones(1, 1, 1, form.tiles * side), weights))),
            ("mean", 255 * torch.tensor(form.mean)[:, None, None]),
            ("std", 255 * torch.tensor(form.std)[:, None, None]),
        ):
            self.register_buffer(name, value, persistent=False)

    def forward(self, pixels: Tensor) -> Tensor:
        """See the class."""
        n, side = self.tiles, self.side
        tiles = unflatten(unflatten(pixels, 3, (n, side)), 2, (n, side)).permute(0, 2, 4, 1, 3, 5).flatten(1, 2)
        return torch.cat([tiles, self.whole(pixels)[:, None]], dim=1).flatten(0, 1)

    @torch.no_grad()
    def whole(self, pixels: Tensor) -> Tensor:
        """The small picture of the whole, [B, 3, S, S]."""
        mean, std = cast(Tensor, self.mean), cast(Tensor, self.std)
        with torch.autocast(pixels.device.type, enabled=False):
            greys = (pixels * std + mean).round().flatten(0, 1)[:, None]  # a channel at a time
            for _ in range(2):  # along the width, and then along the height
                greys = self._shrunk(greys).transpose(2, 3)
            whole: Tensor = (unflatten(greys[:, 0], 0, (-1, 3)) - mean) / std
        return whole

    def _shrunk(self, greys: Tensor) -> Tensor:
        """[N, 1, H, nS] -> [N, 1, H, S], in whole grey levels."""
        weights, share = (cast(Tensor, part).to(greys.dtype) for part in (self.weights, self.share))
        return (self._convolved(greys, weights) / share + 0.5).floor_().clamp_(0, 255)

    def _convolved(self, greys: Tensor, weights: Tensor) -> Tensor:
        """[N, 1, H, nS] -> [N, 1, H, S]; what lies outside counts as 0."""
        after = len(weights) - self.before - self.tiles
        return functional.conv2d(functional.pad(greys, (self.before, after)), weights[None, None, None], stride=(1, self.tiles))


def _shrinking(factor: int, resample: Resample) -> tuple[int, Tensor]:
    """Shrinking by a whole factor: how many pixels before its own a pixel of the result sees, and the weights [K] of all that it
    sees, which add up to 1."""
    kernel, reach = _KERNELS[resample]
    centre, support = factor / 2, reach * factor
    first, behind = math.floor(centre - support + 0.5), math.floor(centre + support + 0.5)
    weights = torch.tensor([kernel((place + 0.5 - centre) / factor) for place in range(first, behind)], dtype=torch.float64)
    return -first, ((weights / weights.sum() * _STEPS).round() / _STEPS).float()


def _shares(seen: Tensor) -> Tensor:
    """How much of the weights lies within the picture: exactly 1 where nothing lies outside."""
    return torch.where((seen - 1).abs() < 1e-4, torch.ones_like(seen), seen)


_STEPS = 2**22
"""Pillow's weights are whole multiples of 1/_STEPS."""


def _triangle(x: float) -> float:
    return max(0.0, 1.0 - abs(x))


def _cubic(x: float) -> float:
    """Keys' with a = -0.5 (1981, "Cubic convolution interpolation for digital image processing")."""
    x, a = abs(x), -0.5
    if x < 1:
        return ((a + 2) * x - (a + 3)) * x * x + 1
    return (((x - 5) * x + 8) * x - 4) * a if x < 2 else 0.0


def _lanczos(x: float) -> float:
    """Three lobes of a sinc, windowed by the middle lobe of a wider one (Duchon 1979, "Lanczos filtering in one and two
    dimensions")."""
    if x == 0:
        return 1.0
    return 3 * math.sin(math.pi * x) * math.sin(math.pi * x / 3) / (math.pi * x) ** 2 if abs(x) < 3 else 0.0


_KERNELS: dict[Resample, tuple[Callable[[float], float], int]] = {
    Resample.BILINEAR: (_triangle, 1),
    Resample.BICUBIC: (_cubic, 2),
    Resample.LANCZOS: (_lanczos, 3),
}
"""As Pillow has them, each with how far it reaches in pixels of the result."""

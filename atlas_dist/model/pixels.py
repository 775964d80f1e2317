"""Pixels as a backbone was pretrained on them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class Normalise:
    """uint8 [..., H, W, 3] to float32 [..., 3, H, W], on `device`.

    Args:
        mean, std: of the backbone's pixels, per channel, for values in [0, 1].
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float], device: torch.device) -> None:
        self._scale = (1.0 / (255.0 * torch.tensor(std))).view(3, 1, 1).to(device)
        self._shift = (torch.tensor(mean) / torch.tensor(std)).view(3, 1, 1).to(device)

    def __call__(self, pixels: Tensor) -> Tensor:
        """`pixels` are on the device already: bytes cross the bus, not floats."""
        return pixels.movedim(-1, -3).float().mul_(self._scale).sub_(self._shift)

"""From what the stream hands out to what the model eats: on the device, normalised, in micro batches."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from atlas_dist.data.batch import RankBatch


@dataclass(frozen=True)
class ModelBatch:
    """One forward pass: the model's inputs, the target, and which slots count."""

    inputs: dict[str, Tensor]
    target: Tensor
    mask: Tensor
    index: Tensor
    """Ordinals of the samples in the manifest, on the CPU; -1 where masked."""


class Feeder:
    """Moves batches to the device and normalises pixels there: bytes cross the bus, not floats.

    Args:
        mean, std: of the trunk's pixels, per channel, for values in [0, 1].
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float], device: torch.device) -> None:
        self.device = device
        shape = (1, 1, 3, 1, 1)
        self._scale = (1.0 / (255.0 * torch.tensor(std))).view(shape).to(device)
        self._shift = (torch.tensor(mean) / torch.tensor(std)).view(shape).to(device)

    def __call__(self, batch: RankBatch, micro_batch: int = 0) -> Iterator[ModelBatch]:
        """Yield `batch` in pieces of `micro_batch` slots (0 = whole)."""
        slots = len(batch.mask)
        size = micro_batch or slots
        target = batch.labels if batch.labels is not None else batch.targets
        assert target is not None, "a batch carries labels or targets"
        for start in range(0, slots, size):
            part = slice(start, start + size)
            inputs = {
                "input_ids": self._move(batch.input_ids[part]),
                "attention_mask": self._move(batch.attention_mask[part]),
                "token_type_ids": self._move(batch.token_type_ids[part]),
                "pixel_values": self._pixels(batch.pixels[part]),
            }
            yield ModelBatch(inputs, self._move(target[part]), self._move(batch.mask[part]), batch.index[part])

    def _move(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.device, non_blocking=True)

    def _pixels(self, pixels: Tensor) -> Tensor:
        """uint8 [b, I, H, W, 3] -> float32 [b, I, 3, H, W], normalised. One shared image stays shared."""
        shared = pixels.stride(0) == 0
        one = pixels[:1] if shared else pixels
        values = self._move(one).permute(0, 1, 4, 2, 3).float().mul_(self._scale).sub_(self._shift)
        return values.expand(len(pixels), -1, -1, -1, -1) if shared else values


def micro_batch_for(slots: int, wanted: int) -> int:
    """Slots of a forward pass: the largest divisor of a rank's share that is not above `wanted` (0 = the whole share). Where that
    is less than half of what was wanted, pieces of about equal size instead, the last one smaller.

    >>> micro_batch_for(64, 0), micro_batch_for(64, 24), micro_batch_for(7, 2), micro_batch_for(19, 8)
    (64, 16, 1, 7)
    """
    if wanted == 0 or wanted >= slots:
        return slots
    divisor = max(size for size in range(1, wanted + 1) if slots % size == 0)
    return divisor if 2 * divisor >= wanted else math.ceil(slots / math.ceil(slots / wanted))

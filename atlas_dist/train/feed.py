"""From what the stream hands out to what the model eats: on the device, normalised, in micro batches."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from atlas_dist.data.batch import RankBatch
from atlas_dist.model.pixels import Normalise


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

    On a GPU copies go through a queue of their own, beside the step before: the host may be far ahead of the device, and a copy
    that waited its turn there would find its buffer filled again (RankBatch says for how long it stays). For the same reason a
    batch is not begun before the last one's copies are done; by then they are, and nothing waits.

    Args:
        mean, std: of the backbone's pixels, per channel, for values in [0, 1].
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float], device: torch.device) -> None:
        self.device = device
        self._normalise = Normalise(mean, std, device)
        self._queue = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]
        self._copied = torch.cuda.Event() if device.type == "cuda" else None  # type: ignore[no-untyped-call]

    def __call__(self, batch: RankBatch, micro_batch: int = 0) -> Iterator[ModelBatch]:
        """Yield `batch` in pieces of `micro_batch` slots (0 = whole)."""
        if self._copied is not None:
            self._copied.synchronize()
        slots = len(batch.mask)
        size = micro_batch or slots
        target = next((part for part in (batch.labels, batch.targets, batch.answers) if part is not None), None)
        assert target is not None, "a batch carries labels, targets or answers"
        for start in range(0, slots, size):
            part = slice(start, start + size)
            pixels = batch.pixels[part]
            shared = pixels.stride(0) == 0  # one image for all samples stays one
            ids, attention, types, raw, wanted, mask = self._move(
                batch.input_ids[part],
                batch.attention_mask[part],
                batch.token_type_ids[part],
                pixels[:1] if shared else pixels,
                target[part],
                batch.mask[part],
            )
            values = self._normalise(raw)
            inputs = {
                "input_ids": ids,
                "attention_mask": attention,
                "token_type_ids": types,
                "pixel_values": values.expand(len(pixels), -1, -1, -1, -1) if shared else values,
            }
            if batch.answers is not None:
                inputs["answers"] = wanted  # each of its tokens is known when the next is asked for
            yield ModelBatch(inputs, wanted, mask, batch.index[part])

    def _move(self, *tensors: Tensor) -> list[Tensor]:
        """Copies on the device; the step that asks for them waits for them there, not the host."""
        if self._queue is None or self._copied is None:
            return [tensor.to(self.device) for tensor in tensors]
        step = torch.cuda.current_stream(self.device)
        with torch.cuda.stream(self._queue):
            moved = [tensor.to(self.device, non_blocking=True) for tensor in tensors]
            self._copied.record(self._queue)
        step.wait_event(self._copied)
        for tensor in moved:
            tensor.record_stream(step)
        return moved


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

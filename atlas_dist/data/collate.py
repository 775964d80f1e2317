"""The last stage of a stream: the stored members of a step's samples to one RankBatch, decoded and tokenised."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch

from atlas_dist.core.sampling import Ordinals
from atlas_dist.core.types import Resample, TaskKind, TaskSpec
from atlas_dist.data.batch import BadSample, RankBatch, StreamLimits
from atlas_dist.data.decode import MEAN_COLOUR, AnswerEncoder, ConversationPrompt, TextEncoder, decode_into
from atlas_dist.data.images import Pixels
from atlas_dist.data.leftout import shown
from atlas_dist.data.sample import Sample, Texts, parse_sample
from atlas_dist.device import device
from atlas_dist.errors import DataError

_EMPTY = Sample((("",),), (), 0, {})
"""What a masked slot holds: an empty text and black pixels."""


@dataclass(frozen=True)
class StepPlan:
    """What one rank reads for one step: ordinals int64 [b], masked slots -1."""

    step: int
    epoch: int
    block: int
    valid: int
    ordinals: Ordinals


@dataclass(frozen=True)
class Located:
    """The members of a step's samples by extension, as stored, by slot; None where masked."""

    plan: StepPlan
    files: list[dict[str, memoryview] | None]
    names: list[tuple[str, str]]
    """(shard, key) by slot, for reports."""


@dataclass(frozen=True)
class _Begun:
    """A step whose pictures are being decoded into `pixels`."""

    located: Located
    samples: list[Sample | None]
    pixels: torch.Tensor
    decoding: list[Future[list[tuple[int, str]]]]
    ids: torch.Tensor
    attention: torch.Tensor
    types: torch.Tensor


class Collator:
    """The last stage: decodes and tokenises. Keeps the reused pixel buffers, the decode threads and the list of bad samples."""

    def __init__(
        self,
        task: TaskSpec,
        encode: TextEncoder,
        *,
        slots: int,
        images: int,
        size: int,
        limits: StreamLimits,
        resample: Resample = Resample.BICUBIC,
        encode_answers: AnswerEncoder | None = None,
        asked: ConversationPrompt | None = None,
    ) -> None:
        self._task = task
        self._encode = encode
        self._encode_answers = encode_answers
        self._asked = asked
        self._images = images
        self._choices = task.classes if task.kind is TaskKind.CHOICE else 1
        self._limits = limits
        self._resample = resample
        self._threads = ThreadPoolExecutor(limits.decode_threads, thread_name_prefix="atlas-decode")
        self._lanes = limits.decode_threads
        self.bad: dict[tuple[str, str], BadSample] = {}
        self.delivered = 0
        mean = torch.tensor(MEAN_COLOUR, dtype=torch.uint8).expand(1, 1, size, size, 3).contiguous()
        self._mean = mean.expand(slots, task.images, size, size, 3)
        self._shape = (slots, images, size, size, 3)
        # One being filled, one to be handed out, those ahead, and the two that the consumer may look at (see RankBatch). They
        # are made when first needed: fresh pages are dear, and a stream opened to look at its order decodes nothing.
        self._most_buffers = limits.batches_ahead + 4
        self._buffers: list[torch.Tensor] = []
        self._turn = 0

    def __call__(self, located: Iterable[Located]) -> Iterator[RankBatch]:
        """A batch a step. The next step's pictures are already being decoded when a batch is handed out, so that the threads
        never wait for what is done in one (parsing, tokenising)."""
        pending: _Begun | None = None
        try:
            for step in located:
                begun = self._begin(step)
                ready, pending = pending, begun
                if ready is not None:
                    yield self._finish(ready)
        except Exception:
            # What came before the step that failed is good.
            if pending is not None:
                yield self._finish(pending)
            raise
        if pending is not None:
            yield self._finish(pending)

    def report(self, bad: BadSample) -> None:
        """Remember a bad sample; one that comes again in a later epoch counts once. Raises DataError past the limit."""
        self.bad[bad.shard, bad.key] = bad
        if len(self.bad) > self._limits.bad_samples:
            shown = "; ".join(f"{b.shard} {b.key}: {b.reason}" for b in list(self.bad.values())[-3:])
            raise DataError(
                f"More than {self._limits.bad_samples} samples are bad; the last: {shown}.",
                fix="Run `atlas-dist shards verify`, or raise shards.max_bad_samples.",
            )

    def close(self) -> None:
        """End the decode threads."""
        self._threads.shutdown(cancel_futures=True)

    def _begin(self, located: Located) -> _Begun:
        """Parse a step, set the threads to its pictures, tokenise its texts."""
        samples = [self._parsed(files, name) for files, name in zip(located.files, located.names, strict=True)]
        pixels, decoding = self._mean, []
        if self._images:
            pixels = self._next_buffer()
            lanes = [range(lane, len(samples), self._lanes) for lane in range(self._lanes)]
            decoding = [self._threads.submit(_decode_slots, lane, samples, pixels.numpy(), self._resample) for lane in lanes]
        texts = [text for sample in samples for text in self._texts(sample or _EMPTY) * (1 if sample else self._choices)]
        ids, attention, types = (torch.from_numpy(a).view(len(samples), self._choices, -1) for a in self._encode(texts))
        return _Begun(located, samples, pixels, decoding, ids, attention, types)

    def _finish(self, begun: _Begun) -> RankBatch:
        """Wait for the pictures; those that are damaged mask their slots."""
        plan, samples = begun.located.plan, list(begun.samples)
        for slot, reason in [failed for lane in begun.decoding for failed in lane.result()]:
            samples[slot] = None
            shard, key = begun.located.names[slot]
            self.report(BadSample(shard, shown(key), reason))
        good = np.array([sample is not None for sample in samples])
        self.delivered += int(good.sum())
        kind = self._task.kind
        answers = [sample.answer if sample is not None else None for sample in samples]
        return RankBatch(
            input_ids=begun.ids,
            attention_mask=begun.attention,
            token_type_ids=begun.types,
            pixels=begun.pixels,
            labels=torch.tensor([(sample or _EMPTY).label for sample in samples], dtype=torch.int64) if kind.labelled else None,
            targets=self._targets(samples) if kind is TaskKind.ANSWERS else None,
            mask=torch.from_numpy(good),
            index=torch.from_numpy(np.where(good, plan.ordinals, -1)),
            valid=plan.valid,
            step=plan.step,
            epoch=plan.epoch,
            answers=torch.from_numpy(self._encode_answers(answers)) if self._encode_answers is not None else None,
        )

    def _parsed(self, files: dict[str, memoryview] | None, name: tuple[str, str]) -> Sample | None:
        """The sample when it can be read and has what the task needs; otherwise None, and a report."""
        if files is None:
            return None
        try:
            sample = parse_sample(files)
            self._check_fit(sample)
        except DataError as error:
            shard, key = name
            self.report(BadSample(shard, shown(key), shown(str(error))))
            return None
        return sample

    def _check_fit(self, sample: Sample) -> None:
        classes = self._task.classes
        reason = ""
        if len(sample.texts) != self._choices:
            reason = f"it has {len(sample.texts)} texts, the task needs {self._choices}"
        elif self._images and len(sample.images) != self._images:
            reason = f"it has {len(sample.images)} images, the task needs {self._images}"
        elif self._task.kind is TaskKind.ANSWERS:
            if any(not 0 <= answer < classes for answer in sample.targets):
                reason = f"it names an answer outside 0 … {classes - 1}"
        elif self._task.kind.generates:
            if not sample.answer.strip():
                reason = "it has no answer; a text is wanted"
        elif not 0 <= sample.label < classes:
            reason = f"its label {sample.label} is outside 0 … {classes - 1}"
        if reason:
            raise DataError(reason)

    def _texts(self, sample: Sample) -> Texts:
        """The texts of a sample; of a conversation, behind what was said before."""
        return self._asked(sample.texts, sample.earlier) if self._asked is not None and sample.earlier else sample.texts

    def _targets(self, samples: list[Sample | None]) -> torch.Tensor:
        targets = np.zeros((len(samples), self._task.classes), np.float32)
        for slot, sample in enumerate(samples):
            for answer, score in (sample or _EMPTY).targets.items():
                targets[slot, answer] = score
        return torch.from_numpy(targets)

    def _next_buffer(self) -> torch.Tensor:
        """The pixel buffer whose turn it is, with whatever it held last."""
        if len(self._buffers) < self._most_buffers:
            self._buffers.append(torch.empty(self._shape, dtype=torch.uint8, pin_memory=device().type == "cuda"))
            return self._buffers[-1]
        self._turn = (self._turn + 1) % self._most_buffers
        return self._buffers[self._turn - 1]


def _decode_slots(
    slots_of_thread: Iterable[int], samples: list[Sample | None], out: Pixels, resample: Resample
) -> list[tuple[int, str]]:
    """Decode some slots; return those that failed, with the reason. Slots without a sample become black: buffers are used
    again."""
    failed = []
    for slot in slots_of_thread:
        sample = samples[slot]
        try:
            if sample is None:
                out[slot] = 0
                continue
            for image, data in enumerate(sample.images):
                decode_into(data, out[slot, image], resample)
        except DataError as error:
            out[slot] = 0
            failed.append((slot, str(error)))
    return failed

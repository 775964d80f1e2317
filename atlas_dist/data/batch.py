"""What the data plane hands to a rank, and the limits it keeps."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class RankBatch:
    """One rank's slice of one global batch. b slots, K texts and I images a sample, L text tokens, H x W pixels, C answers;
    M tokens of an answer that is written.

    `pixels` is a view of a reused buffer: it stays intact while the *next* batch is drawn, and may be overwritten once the one
    after that is. Everything else belongs to the batch.
    """

    input_ids: torch.Tensor
    """int64 [b, K, L]"""
    attention_mask: torch.Tensor
    """int64 [b, K, L]; 1 on tokens, 0 on padding."""
    token_type_ids: torch.Tensor
    """int64 [b, K, L]; 1 on the second segment of a text pair."""
    pixels: torch.Tensor
    """uint8 [b, I, H, W, 3], RGB. Text-only data: one constant mean image, expanded (stride 0), not per-sample memory."""
    labels: torch.Tensor | None
    """int64 [b] for `single`, `pair` and `choice` (0 where masked)."""
    targets: torch.Tensor | None
    """float32 [b, C] for `answers` (zeros where masked)."""
    mask: torch.Tensor
    """bool [b]; False on the tail and on bad samples."""
    index: torch.Tensor
    """int64 [b]; ordinal of the sample in the manifest, -1 where masked."""
    valid: int
    """Valid slots of the whole *global* batch by plan, so that the loss normalises without communication."""
    step: int
    """Absolute optimizer step; in a validation, the number of the batch."""
    epoch: int
    answers: torch.Tensor | None = None
    """int64 [b, M] for `generate`: tokens of the right answers, -100 behind their ends (everywhere where masked)."""


@dataclass(frozen=True)
class StreamLimits:
    """How much a stream may use and how long it may try. None of it changes which samples come, except `lanes` (see
    sampling.py)."""

    memory_bytes: int = 1 << 30
    """Shard bytes held at a time, prefetch included. A split that fits stays in memory over the epochs."""
    fetch_threads: int = 8
    decode_threads: int = 2
    batches_ahead: int = 2
    """Decoded batches waiting for the trainer."""
    bad_samples: int = 100
    """Damaged samples tolerated (masked and reported) before the stream stops with a DataError."""
    tries: int = 8
    """Attempts a part of a shard before giving up; the waits between them double from 0.05 s to 5 s."""
    lanes: int = 0
    """Lanes of the elastic order; 0 = chosen from the manifest and the global batch (never from the world size)."""
    cache_dir: str = ""
    """Folder of the node cache ("" = none), shared by the node's ranks."""
    cache_bytes: int = 0
    """Most bytes of the node cache."""


@dataclass(frozen=True)
class BadSample:
    """A sample that could not be read: its slot was masked."""

    shard: str
    key: str
    reason: str
    split: str = ""
    """`dataset/split`, where it is known."""


@dataclass
class StreamStats:
    """What a stream did so far."""

    bytes: int = 0
    """Fetched from the store (what the node cache had is not counted)."""
    samples: int = 0
    """Delivered in unmasked slots."""
    retries: int = 0
    """Ranged reads that had to be resumed or repeated."""
    waited: float = 0.0
    """Seconds the consumer waited for a batch."""
    bad: tuple[BadSample, ...] = ()

"""What a pass over a split answered, to the last bit of every logit, and whether it is what an earlier pass answered."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from hashlib import blake2b, sha256

import torch
from torch import Tensor

from atlas_dist.core.attempts import CommittedRef
from atlas_dist.core.result_files import predictions_file
from atlas_dist.core.types import View
from atlas_dist.store.objects import ObjectStore
from atlas_dist.train.inputs import read_if_there

_BITS = 16
"""Bytes of a fingerprint."""


class Predictions:
    """What a view answered: the arg-max class and a fingerprint of the logits' exact bits, sample by sample.

    Two passes agree bit for bit exactly when their digests are equal; keeping fingerprints instead of logits keeps a VQA
    validation split (214,354 questions x 3,129 answers) at a few megabytes.
    """

    def __init__(self) -> None:
        self.rows: dict[int, tuple[int, bytes]] = {}

    def observe(self, index: Tensor, logits: Tensor) -> None:
        """See one batch: ordinals [b] (-1 where masked) and logits [b, C]."""
        classes = logits.argmax(dim=1).tolist()
        raw = logits.contiguous().float().numpy()
        for row, ordinal in enumerate(index.tolist()):
            if ordinal >= 0:
                self.rows[ordinal] = (classes[row], blake2b(raw[row].tobytes(), digest_size=_BITS).digest())

    def merged(self, parts: list[dict[int, tuple[int, bytes]]]) -> tuple[dict[str, Tensor], str]:
        """All ranks' answers in sample order, as tensors, and their digest."""
        rows = {k: v for part in parts for k, v in part.items()}
        order = sorted(rows)
        digest = sha256(b"".join(k.to_bytes(8, "little") + rows[k][1] for k in order)).hexdigest()
        bits = b"".join(rows[k][1] for k in order)
        tensors = {
            "sample": torch.tensor(order, dtype=torch.int64),
            "answer": torch.tensor([rows[k][0] for k in order], dtype=torch.int32),
            "bits": torch.frombuffer(bytearray(bits), dtype=torch.uint8).view(-1, _BITS)
            if bits
            else torch.empty(0, _BITS).byte(),
        }
        return tensors, digest


class FirstPass:
    """What a task answered in its first full pass, to the last bit: what every later pass in its own view must answer.

    Args:
        store: where results lie.
        ref: of the evaluation right after the task was learnt.

    Raises:
        DataError: its file is damaged.
    """

    def __init__(self, store: ObjectStore, ref: CommittedRef) -> None:
        found = read_if_there(store, ref, predictions_file(View.TASK))
        self.noted = "bits" in found
        """Whether the bits of each sample are known: 0.1 kept only the digest over all of them."""
        self._bits = _by_sample(found) if self.noted else {}

    def differing(self, tensors: Mapping[str, Tensor], asked: Sequence[int]) -> int:
        """How many of the samples `asked` for were answered otherwise, or in only one of the two passes.

        Args:
            tensors: of the later pass, as `Predictions.merged` gives them.
        """
        now = _by_sample(tensors)
        return sum(now.get(ordinal) != self._bits.get(ordinal) for ordinal in asked)


def _by_sample(tensors: Mapping[str, Tensor]) -> dict[int, bytes]:
    bits = tensors["bits"].contiguous().numpy().tobytes()
    return {ordinal: bits[row * _BITS : (row + 1) * _BITS] for row, ordinal in enumerate(tensors["sample"].tolist())}

"""How a model does on each validation sample: what paired comparisons of forms and methods start from."""

from __future__ import annotations

import torch
from torch import Tensor


class SampleScores:
    """Collects loss and score sample by sample: `record` sees each batch of a pass, `merged` joins all ranks' after it."""

    def __init__(self) -> None:
        self.rows: dict[int, tuple[float, float]] = {}

    def record(self, index: Tensor, losses: Tensor, scores: Tensor) -> None:
        """See one batch: ordinals [b] (-1 where masked), loss [b] and score [b] (0 to 1)."""
        for ordinal, loss, score in zip(index.tolist(), losses.tolist(), scores.tolist(), strict=True):
            if ordinal >= 0:
                self.rows[ordinal] = (loss, score)

    @staticmethod
    def merged(parts: list[dict[int, tuple[float, float]]]) -> dict[str, Tensor]:
        """`sample` int64 [n] ascending, `loss` and `score` float32 [n]; of ranks' `rows`."""
        rows = sorted({ordinal: row for part in parts for ordinal, row in part.items()}.items())
        return {
            "sample": torch.tensor([ordinal for ordinal, _ in rows], dtype=torch.int64),
            "loss": torch.tensor([row[0] for _, row in rows], dtype=torch.float32),
            "score": torch.tensor([row[1] for _, row in rows], dtype=torch.float32),
        }

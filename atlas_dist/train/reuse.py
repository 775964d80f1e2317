"""How much a task draws on each adapter: statistics of α over a validation split (METHOD.md, One site)."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from atlas_dist.model.atlas import AtlasModel


class ReuseMeter:
    """Collects α batch by batch. Attach before a pass over the split, `summary()` after it on every rank."""

    def __init__(self, model: AtlasModel, device: torch.device) -> None:
        self.model = model
        self.device = device
        self.sums: dict[str, Tensor] = {}
        self.count = torch.zeros((), dtype=torch.float64)

    def look(self, index: Tensor, _logits: Tensor) -> None:
        """See the batch that was just computed; masked slots (index -1) do not count."""
        kept = index >= 0
        self.count += kept.sum()
        for site, alpha in self.model.alpha_report().items():
            values = alpha.detach().cpu().double()
            values = values.flatten(2).mean(2) if values.dim() > 2 else values
            values = values[kept]
            sums = torch.stack((values.sum(0), values.square().sum(0)))
            self.sums[site] = self.sums.get(site, torch.zeros_like(sums)) + sums

    def summary(self) -> dict[str, Any]:
        """{site: {"mean": [T], "std": [T]}} over all ranks and samples; α in [0, 1]."""
        if not self.sums:
            return {}
        sites = sorted(self.sums)
        table = torch.stack([self.sums[s] for s in sites]).to(self.device)
        count = self.count.to(self.device)
        dist.all_reduce(table)
        dist.all_reduce(count)
        table = (table / count.clamp(min=1)).cpu()
        mean = table[:, 0]
        std = (table[:, 1] - mean.square()).clamp(min=0).sqrt()
        return {s: {"mean": mean[i].tolist(), "std": std[i].tolist()} for i, s in enumerate(sites)}

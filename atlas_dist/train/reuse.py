"""How much a task draws on each adapter: statistics of α over a validation split (docs/method.md, One site)."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from atlas_dist.model.atlas import AdaptedModel

BINS = 20
"""Bins of [0, 1] that the entropy of α is taken over."""


class ReuseMeter:
    """Collects α batch by batch: `observe` sees each batch of a pass over the split, `summary()` after it on every rank."""

    def __init__(self, model: AdaptedModel, device: torch.device) -> None:
        self.model = model
        self.device = device
        self.sums: dict[str, Tensor] = {}
        self.count = torch.zeros((), dtype=torch.float64)

    def observe(self, index: Tensor, _logits: Tensor) -> None:
        """See the batch that was just computed; masked slots (index -1) do not count."""
        kept = index >= 0
        self.count += kept.sum()
        for site, alpha in self.model.alpha_report().items():
            values = alpha.detach().cpu().double()
            values = values.flatten(2).mean(2) if values.dim() > 2 else values
            values = values[kept]
            # The last bin holds 1 itself, which a cosine can round up to and beyond.
            bins = (values * BINS).long().clamp(0, BINS - 1)
            counts = torch.nn.functional.one_hot(bins, BINS).sum(0).double().t()
            sums = torch.cat((values.sum(0)[None], values.square().sum(0)[None], counts))
            self.sums[site] = self.sums.get(site, torch.zeros_like(sums)) + sums

    def summary(self) -> dict[str, Any]:
        """{site: {"mean": [T], "std": [T], "entropy": [T]}} over all ranks and samples; α in [0, 1].

        `entropy`: of how an adapter's α is spread over BINS equal bins of [0, 1], in nats: 0 = the same for every sample.
        """
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
        entropy = torch.special.entr(table[:, 2:]).sum(1)
        found = {"mean": mean, "std": std, "entropy": entropy}
        return {site: {name: values[i].tolist() for name, values in found.items()} for i, site in enumerate(sites)}

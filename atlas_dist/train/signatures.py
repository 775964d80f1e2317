"""Describing a task's samples with the frozen backbone, and reading such descriptions (core/signature.py)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn, unflatten

from atlas_dist.config import Precision
from atlas_dist.core.results import SIGNATURE_FILE, DescribeResult, ScoringSeconds
from atlas_dist.core.signature import FLOOR, SAMPLES, Signature
from atlas_dist.core.types import Assignment, StageJob
from atlas_dist.model.atlas import AdaptedModel
from atlas_dist.model.heads import HeadSpec
from atlas_dist.model.mixing import MixingSpec, Weighting
from atlas_dist.train.context import RankContext, Stopwatch
from atlas_dist.train.engine import device
from atlas_dist.train.inputs import pack_tensors
from atlas_dist.train.module import StageModule

POOLED = "pooled"
"""Name of the pooled features beside those of the sites, `site/<site>`."""

Rows = dict[str, Tensor]
"""`pooled` [n, P] and `site/<site>` [n, D] of n samples, float32, on the CPU."""


def describe(context: RankContext, assignment: Assignment) -> tuple[dict[str, bytes], DescribeResult]:
    """Describe the job's task: `signature.safetensors` on rank 0. Raises DataError as the stream does."""
    stopwatch = Stopwatch()
    job = assignment.job
    parts = context.gather(_observed(context, job))
    seconds = ScoringSeconds(round(stopwatch.lap(), 3))
    if not context.is_rank_zero:
        return {}, DescribeResult()
    by_sample = sorted((int(o), part, row) for part, (ordinals, _) in enumerate(parts) for row, o in enumerate(ordinals))
    rows = {name: torch.stack([parts[part][1][name][row] for _, part, row in by_sample]).double() for name in parts[0][1]}
    tensors = {f"{name}/mean": values.mean(0).float() for name, values in rows.items()}
    tensors |= {f"{name}/spread": values.std(0, correction=0).clamp(min=FLOOR).float() for name, values in rows.items()}
    result = DescribeResult(world=context.world, described=len(by_sample), seconds=seconds)
    return {SIGNATURE_FILE: pack_tensors(tensors)}, result


def _observed(context: RankContext, job: StageJob) -> tuple[list[int], Rows]:
    """Ordinals and features of this rank's share of the first training samples."""
    head = HeadSpec(job.task.kind, job.task.classes)
    model = AdaptedModel(
        context.backbone().model, head, MixingSpec(weighting=Weighting.EXPERIENCE), visible=0, grows=False, seed=0
    )
    ordinals: list[int] = []
    collected: dict[str, list[Tensor]] = {}
    with model, torch.no_grad(), context.training_stream(job, 0) as stream, _watched(model) as seen:
        module = StageModule(model, head, bf16=context.config.train.precision is Precision.BF16).to(device()).eval()
        steps = min(stream.steps_per_epoch, math.ceil(SAMPLES / job.budget.global_batch))
        for batch in stream.epochs_from(0, steps):
            for part in context.feeder()(batch):
                seen.clear()
                module(part.inputs, part.target)
                kept = part.index >= 0
                ordinals += part.index[kept].tolist()
                for name, passes in seen.items():
                    # Passes of a sample (pictures of a pair, choices) count as one: their mean.
                    values = torch.stack([p.view(len(kept), -1, p.shape[-1]).mean(1) for p in passes]).mean(0)
                    collected.setdefault(name, []).append(values[kept])
    return ordinals, {name: torch.cat(values) for name, values in collected.items()}


@contextmanager
def _watched(model: AdaptedModel) -> Iterator[dict[str, list[Tensor]]]:
    """While it lasts: every pass leaves the mean over tokens of each site's input, and what the head reads."""
    seen: dict[str, list[Tensor]] = {}

    def at(name: str, pooled: bool) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def note(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            values = inputs[0].mean(dim=1, dtype=torch.float32)
            if pooled:  # what the head reads: the pooled outputs of a pair's pictures side by side, which count as one
                values = unflatten(inputs[0].float(), -1, (model.head_spec.images, -1)).mean(dim=1)
            seen.setdefault(name, []).append(values.cpu())

        return note

    handles = [model.head.register_forward_pre_hook(at(POOLED, True))]
    handles += [site.register_forward_pre_hook(at(f"site/{name}", False)) for name, site in model.named_sites()]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def signature_of(tensors: Mapping[str, Tensor], prefix: str = POOLED) -> Signature:
    """The signature in a file's tensors: of `<prefix>/mean` and `<prefix>/spread`."""
    mean, spread = (tensors[f"{prefix}/{part}"].double().numpy() for part in ("mean", "spread"))
    return Signature(np.asarray(mean), np.asarray(spread))


def signatures_in(tensors: Mapping[str, Tensor], order: tuple[str, ...]) -> dict[str, Signature]:
    """Signatures by job key out of a `signatures.safetensors`, of those of `order` that have one, in its order."""
    there = {name.rpartition("/")[0] for name in tensors}
    return {key: signature_of(tensors, key) for key in order if key in there}


def site_keys(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`key/<site>` [2, D], mean and spread, as an adapter's file has them, out of a `signature.safetensors`."""
    sites = sorted({name.split("/")[1] for name in tensors if name.startswith("site/")})
    return {f"key/{site}": torch.stack([tensors[f"site/{site}/mean"], tensors[f"site/{site}/spread"]]) for site in sites}

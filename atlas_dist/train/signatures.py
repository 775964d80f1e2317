"""Describing a task's samples with the frozen backbone, and reading such descriptions (core/signature.py)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn, unflatten

from atlas_dist.clock import Stopwatch
from atlas_dist.config import Precision
from atlas_dist.core.attempts import Assignment
from atlas_dist.core.result_files import SIGNATURE_FILE
from atlas_dist.core.results import DescribeResult, ScoringSeconds
from atlas_dist.core.signature import FLOOR, SAMPLES, Density, Form, Signature, TaskProfile, fit
from atlas_dist.core.types import StageJob, TaskKind, TaskSpec
from atlas_dist.data.batch import RankBatch
from atlas_dist.data.decode import MEAN_COLOUR, TextEncoder
from atlas_dist.data.sample import IMAGE_PROMPT
from atlas_dist.device import device
from atlas_dist.model.atlas import AdaptedModel
from atlas_dist.model.heads import HeadSpec
from atlas_dist.model.mixing_spec import MixingSpec, Weighting
from atlas_dist.train.context import RankContext
from atlas_dist.train.inputs import pack_tensors
from atlas_dist.train.module import StageModule

POOLED = "pooled"
"""Name of the pooled features beside those of the sites, `site/<site>`."""

FORM = "form"
"""Name of what a sample is made of (core/signature.py: `Form`), 0 or 1 each."""

DENSITY = "density"
"""Beginning of the names of the density of the pooled features (core/signature.py: `Density`)."""

Rows = dict[str, Tensor]
"""`pooled` [n, P], `site/<site>` [n, D] and `form` [n, 3] of n samples, float32, on the CPU."""


def describe(context: RankContext, assignment: Assignment) -> tuple[dict[str, bytes], DescribeResult]:
    """Describe the job's task: `signature.safetensors` on rank 0. Raises DataError as the stream does."""
    stopwatch = Stopwatch()
    parts = context.gather(observe_training(context, assignment.job))
    seconds = ScoringSeconds(round(stopwatch.lap(), 3))
    if not context.is_rank_zero:
        return {}, DescribeResult()
    by_sample = sorted((int(o), part, row) for part, (ordinals, _) in enumerate(parts) for row, o in enumerate(ordinals))
    rows = {name: torch.stack([parts[part][1][name][row] for _, part, row in by_sample]) for name in parts[0][1]}
    result = DescribeResult(world=context.world, described=len(by_sample), seconds=seconds)
    return {SIGNATURE_FILE: pack_tensors(signature_tensors(rows))}, result


def signature_tensors(rows: Rows) -> dict[str, Tensor]:
    """What `signature.safetensors` holds of a task with these samples, in the order of their ordinals.

    `<pooled or site>/{mean,spread}`; `form` [3], the share of samples with each part; `density/…`, what one sample of the task
    looks like (`profile_of`).
    """
    values = {name: value.double() for name, value in rows.items() if name != FORM}
    tensors = {f"{name}/mean": value.mean(0).float() for name, value in values.items()}
    tensors |= {f"{name}/spread": value.std(0, correction=0).clamp(min=FLOOR).float() for name, value in values.items()}
    density = fit(np.asarray(values[POOLED].numpy()))
    parts = {name: torch.from_numpy(np.asarray(value, np.float64)).float() for name, value in vars(density).items()}
    return tensors | {f"{DENSITY}/{name}": value for name, value in parts.items()} | {FORM: rows[FORM].mean(0)}


def observe_training(context: RankContext, job: StageJob) -> tuple[list[int], Rows]:
    """Ordinals and features of this rank's share of the job's first training samples, `SAMPLES` over all ranks at most."""
    with context.training_stream(job, 0) as stream:
        steps = min(stream.steps_per_epoch, math.ceil(SAMPLES / job.budget.global_batch))
        return observe(context, job.task, stream.epochs_from(0, steps))


def observe(context: RankContext, task: TaskSpec, batches: Iterable[RankBatch]) -> tuple[list[int], Rows]:
    """Ordinals and features of a task's samples, as the frozen backbone sees them. Raises DataError as the stream does."""
    head, backbone = HeadSpec(task.kind, task.classes), context.whole_backbone()
    model = AdaptedModel(backbone.model, head, MixingSpec(weighting=Weighting.EXPERIENCE), visible=0, grows=False, seed=0)
    encode = TextEncoder(backbone.tokenizer, task.max_text, backbone.text_length(task.max_text))
    prompt = torch.from_numpy(encode([(IMAGE_PROMPT,)])[0])
    mean_colour = torch.tensor(MEAN_COLOUR, dtype=torch.uint8)
    ordinals: list[int] = []
    collected: dict[str, list[Tensor]] = {}
    with model, torch.no_grad(), _watched(model) as seen:
        module = StageModule(model, head, bf16=context.config.train.precision is Precision.BF16).to(device()).eval()
        for batch in batches:
            form = torch.stack(
                [
                    (batch.pixels != mean_colour).flatten(1).any(1),
                    (batch.input_ids != prompt).flatten(1).any(1),
                    (batch.token_type_ids > 0).flatten(1).any(1),
                ],
                dim=1,
            )
            collected.setdefault(FORM, []).append(form[batch.index >= 0].float())
            for part in context.feeder()(batch):
                seen.clear()
                module.look(part.inputs)
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


def profile_of(tensors: Mapping[str, Tensor], task: TaskSpec) -> TaskProfile | None:
    """What a task's samples look like, out of a `signature.safetensors`; None where that was written before there were any."""
    if FORM not in tensors:
        return None
    mean, noise, loadings = (np.asarray(tensors[f"{DENSITY}/{f}"].double().numpy()) for f in ("mean", "noise", "loadings"))
    density = Density(mean, noise, loadings, *(float(tensors[f"{DENSITY}/{f}"]) for f in ("freedom", "limit")))
    choices = task.classes if task.kind is TaskKind.CHOICE else 0
    shares = Form(*(float(share) for share in tensors[FORM]))
    return TaskProfile(density, shares, task.images, choices)


def always_has_text(tensors: Mapping[str, Tensor]) -> bool:
    """Whether every sample that a `signature.safetensors` was made from had a text of its own; False where it does not say."""
    return FORM in tensors and Form(*(float(share) for share in tensors[FORM])).texted == 1

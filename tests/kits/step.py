"""Training steps with nothing but torch and transformers: no Ray, no DeepSpeed, no shards, no store. GPU tests and benchmarks
stand on this."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from transformers import ViltConfig, ViltModel

from atlas_dist.core.types import Budget, Role, TaskKind
from atlas_dist.data.batch import RankBatch
from atlas_dist.model.atlas import AdaptedModel
from atlas_dist.model.backbone import store_products_in_bf16
from atlas_dist.model.experience import ResidualGroup
from atlas_dist.model.heads import HeadSpec
from atlas_dist.model.layers import AS_THEY_ARE, LayerRuns
from atlas_dist.model.mixing import AdapterGroup
from atlas_dist.model.mixing_spec import MixingSpec, Weighting
from atlas_dist.model.trained import freeze_to, optimizer_groups
from atlas_dist.model.vilt import accelerate_vilt
from atlas_dist.train.engine import build_optimizer, join_alone, learning_rate_factor
from atlas_dist.train.feed import Feeder
from atlas_dist.train.mixture import OWN, Mixture
from atlas_dist.train.module import StageModule

ONE, TWO = (Role.QUERIES, Role.HEAD), (Role.ADAPTER, Role.HEAD)
FORMS: Mapping[str, tuple[Weighting, Mapping[str, Sequence[Role]]]] = {
    "released": (Weighting.WHOLE, {"one": ONE, "two": TWO}),
    "default": (
        Weighting.EXPERIENCE,
        {"one": (Role.COEFFICIENTS, Role.HEAD), "two": (Role.ADAPTER, Role.HEAD)},
    ),
}
"""Form of ATLAS -> how it weighs adapters, and what each of its stages trains."""


@dataclass(frozen=True)
class Size:
    """A backbone's geometry and what its samples look like."""

    width: int
    layers: int
    heads: int
    image: int
    patch: int
    text: int
    rank: int
    classes: int
    vocabulary: int

    @property
    def tokens(self) -> int:
        """L of one pass."""
        return self.text + 1 + (self.image // self.patch) ** 2


SIZES = {
    "vilt-b32": Size(width=768, layers=12, heads=12, image=384, patch=32, text=40, rank=48, classes=3, vocabulary=30522),
    "tiny-vilt": Size(width=128, layers=5, heads=4, image=64, patch=8, text=48, rank=48, classes=10, vocabulary=4096),
    "narrow-12": Size(width=48, layers=12, heads=12, image=384, patch=32, text=40, rank=4, classes=3, vocabulary=100),
    "tiny": Size(width=32, layers=2, heads=4, image=32, patch=8, text=8, rank=4, classes=3, vocabulary=100),
}


def random_backbone(size: Size, device: torch.device, *, bf16: bool = False, fast: bool = True) -> ViltModel:
    """A frozen ViLT with random weights; `fast`: as we run it, else as transformers has it."""
    config = ViltConfig(
        hidden_size=size.width,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        intermediate_size=4 * size.width,
        image_size=size.image,
        patch_size=size.patch,
        vocab_size=size.vocabulary,
        max_position_embeddings=size.text,
        modality_type_vocab_size=3,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        backbone = ViltModel(config)
    backbone.eval().requires_grad_(False)
    if fast:
        accelerate_vilt(backbone)
    if bf16:
        store_products_in_bf16(backbone)
    return cast(ViltModel, backbone.to(device))


def open_model(
    backbone: ViltModel,
    size: Size,
    visible: int,
    roles: Sequence[Role],
    *,
    runs: LayerRuns = AS_THEY_ARE,
    seed: int = 0,
    spec: MixingSpec | None = None,
) -> AdaptedModel:
    """A model that trains `roles` on `visible` adapters drawn from `seed`; as ATLAS was released unless `spec` says otherwise."""
    head, grows = HeadSpec(TaskKind.SINGLE, size.classes), Role.ADAPTER in roles
    model = AdaptedModel(backbone, head, spec or MixingSpec(rank=size.rank), visible=visible, grows=grows, seed=seed, runs=runs)
    generator = torch.Generator().manual_seed(seed + 1)
    for site in model.sites.values():
        group = cast(AdapterGroup | ResidualGroup | None, site.frozen)
        if group is not None and group.key is not None:
            group.key.data.fill_(1.0)
            for parameter, std in ((group.down, 0.02), (group.up, 0.02), (group.key, 1.0)):
                parameter.data.copy_(torch.empty(parameter.shape).normal_(0.0, std, generator=generator))
    freeze_to(model, model.trainable_names(roles))
    return model


def random_batches(size: Size, samples: int, count: int, *, pinned: bool = False, seed: int = 0) -> list[RankBatch]:
    """Batches as a stream hands them out: bytes for pixels, texts of different lengths, padded; the last sample is masked."""
    generator = torch.Generator().manual_seed(seed)
    out = []
    for step in range(count):
        ids = torch.randint(1, size.vocabulary, (samples, 1, size.text), generator=generator)
        pixels = torch.randint(0, 256, (samples, 1, size.image, size.image, 3), generator=generator, dtype=torch.uint8)
        mask = torch.arange(samples) < max(1, samples - 1)
        labels = torch.randint(0, size.classes, (samples,), generator=generator)
        index = torch.where(mask, torch.arange(samples), -1)
        lengths = torch.randint(2, size.text + 1, (samples, 1, 1), generator=generator)
        real = (torch.arange(size.text) < lengths).long()
        tensors = (ids * real, real, torch.zeros_like(ids), pixels.pin_memory() if pinned else pixels, labels)
        out.append(RankBatch(*tensors, None, mask, index, int(mask.sum()), step, 0))
    return out


def new_feeder(device: torch.device) -> Feeder:
    """As the backbones here want their pixels."""
    return Feeder((0.5, 0.5, 0.5), (0.5, 0.5, 0.5), device)


class PlainEngine:
    """What `train.loop` asks of DeepSpeed's engine, on one device with torch alone."""

    def __init__(self, module: StageModule, budget: Budget, steps: int, accumulation: int = 1) -> None:
        join_alone()
        self.module, self.accumulation, self.passes = module, accumulation, 0
        model = module.model
        groups = optimizer_groups(
            model, lr=budget.lr, query_lr_scale=budget.query_lr_scale, weight_decay=budget.weight_decay, backbone_lr_scale=1.0
        )
        self.optimizer = build_optimizer(groups, budget)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer, lambda step: learning_rate_factor(step, steps, budget.warmup)
        )

    def __call__(self, *args: Any) -> Any:
        return self.module(*args)

    def backward(self, loss: Tensor) -> None:
        (loss / self.accumulation).backward()  # type: ignore[no-untyped-call]

    def step(self) -> None:
        self.passes += 1
        if self.passes % self.accumulation == 0:
            self.optimizer.step()
            self.schedule.step()
            self.optimizer.zero_grad(set_to_none=True)

    def get_lr(self) -> list[float]:
        return [float(rate) for rate in self.schedule.get_last_lr()]


class FixedMixture(Mixture):
    """The same few batches again and again."""

    def __init__(self, batches: Sequence[RankBatch], steps: int) -> None:
        self.batches, self.count = batches, steps

    def __len__(self) -> int:
        return self.count

    def steps(self, start: int) -> Iterator[tuple[int, RankBatch]]:
        for step in range(start, self.count):
            yield OWN, self.batches[step % len(self.batches)]

"""How much arithmetic a training step needs, counted on paper, and how much a device could do at best: their ratio is the MFU.

*Model* FLOPs (a multiply and an add are two): what forward and backward need if nothing is computed twice. Recomputation, of
the mixing sites or of checkpointed layers, is work but not progress and is left out, as is usual for MFU (Chowdhery et al. 2022,
PaLM, arXiv 2204.02311, appendix B). Only matrix products count. Notation (docs/method.md, One site): L tokens, D hidden width, r
adapter width, T adapters. `tests/unit/model/test_flops.py` holds these sums against what torch counts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from atlas_dist.model.atlas import AdaptedModel
from atlas_dist.model.backbones import Tower, architecture_of, stack
from atlas_dist.model.experience import ResidualGroup
from atlas_dist.model.lora import LoraGroup
from atlas_dist.model.mixing import AdapterGroup

PEAKS: dict[str, tuple[float, float]] = {
    "NVIDIA B200": (2250.0, 75.0),
    "NVIDIA GH200": (989.0, 67.0),
    "NVIDIA H200": (989.0, 67.0),
    "NVIDIA H100 PCIe": (756.0, 51.0),
    "NVIDIA H100 NVL": (835.0, 60.0),
    "NVIDIA H100": (989.0, 67.0),
    "NVIDIA A100": (312.0, 19.5),
    "NVIDIA A30": (165.0, 10.3),
    "NVIDIA A10G": (0.0, 0.0),
    "NVIDIA A10": (125.0, 31.2),
    "NVIDIA L40S": (362.0, 91.6),
    "NVIDIA L40": (181.0, 90.5),
    "NVIDIA L4": (121.0, 30.3),
}
"""Beginning of a CUDA device's name -> dense (bfloat16, float32 without TF32) TFLOP/s of its data sheet; the first that fits
counts. 0: no figure is known."""


def peak_flops(device: torch.device, *, bf16: bool) -> float | None:
    """Most FLOP/s of one device in the precision of the products; None where nobody knows (CPUs, GPUs that are not listed)."""
    return _peak(torch.cuda.get_device_name(device), bf16=bf16) if device.type == "cuda" else None


def _peak(name: str, *, bf16: bool) -> float | None:
    """
    >>> _peak("NVIDIA H100 80GB HBM3", bf16=True), _peak("NVIDIA H100 PCIe", bf16=True), _peak("Tesla T4", bf16=True)
    (989000000000000.0, 756000000000000.0, None)
    """
    figures = next((both for start, both in PEAKS.items() if name.startswith(start)), (0.0, 0.0))
    return figures[0 if bf16 else 1] * 1e12 or None


@dataclass(frozen=True)
class StepFlops:
    """Of one sample. `total` is what a training step needs."""

    forward: float
    backward: float

    @property
    def total(self) -> float:
        """Forward and backward."""
        return self.forward + self.backward


def sample_flops(model: AdaptedModel, text: int, answer: int = 0) -> StepFlops:
    """What one sample of the model's task costs, with whatever requires gradients now.

    Args:
        text: tokens of one text, padding included.
        answer: M, tokens of an answer that is written; 0 = the task has classes.

    Passes that a sample takes (texts, images) are counted; under ZeRO-3, call it before the parameters are taken apart.
    """
    spec, backbone = model.head_spec, model.backbone
    passes = spec.texts * spec.images
    architecture = architecture_of(backbone)
    limits = architecture.limits(backbone)
    towers = [
        _tower_flops(model, tower, text + max(0, answer - 1), architecture.rows_at(backbone, tower.layers))
        for tower in architecture.towers(backbone)
    ]
    head = 2.0 * sum(p.numel() for p in model.head.parameters() if p.dim() == 2)
    written = 2.0 * answer * limits.pooled * limits.vocabulary  # frozen: its input alone gets a gradient
    deep = any(p.requires_grad for part in (backbone, model.sites) for p in part.parameters())
    forward, backward = (sum(getattr(t, way) for t in towers) for way in ("forward", "backward"))
    # The head reads all images of a text at once. Its weights get gradients, and its input where anything below it does.
    heads = spec.texts * head
    return StepFlops(passes * forward + heads + written, passes * backward + heads * (2 if deep else 1) + written)


def _tower_flops(model: AdaptedModel, tower: Tower, text: int, rows: int) -> StepFlops:
    """One pass of one sample, which is so many rows there, through one stack of layers with its sites."""
    layers = stack(model.backbone, tower)
    tokens = tower.own_tokens + text * tower.reads_text
    patches = model.backbone.get_submodule(tower.patches) if tower.patches else None
    of_patches = tower.own_tokens - tower.class_tokens
    embedding = 2.0 * of_patches * cast(Tensor, patches.weight).numel() if patches is not None else 0.0
    shared = (tower.key_value_heads or tower.heads) / tower.heads
    pooler = 2.0 * tower.width * tower.pooled
    frozen = _Backbone(tokens, tower.width, tower.inner, len(layers), embedding, pooler, shared, 3 if tower.gated else 2)
    pooling = _pooling_flops(model, tower, tokens)
    parts = [part for name, part in model.named_sites() if name.startswith((tower.letter, f"{tower.layers}."))]
    groups = [g for site in parts for g in site.modules() if isinstance(g, AdapterGroup | ResidualGroup | LoraGroup)]
    fusions = [m for site in parts for name, m in site.named_modules() if name == "fusion"]
    sites = [_group_flops(g, rows * tokens, tower.heads) for g in groups]
    trained = sum(p.numel() for p in layers.parameters() if p.requires_grad and p.dim() == 2)
    deep = trained > 0 or any(p.requires_grad for site in parts for p in site.parameters())
    fused = 2.0 * rows * tokens * sum(p.numel() for m in fusions for p in m.parameters() if p.dim() == 2)
    forward = rows * (frozen.forward() + pooling.forward) + sum(s.forward for s in sites) + fused
    backward = rows * (frozen.backward(whole=trained > 0 or tower.fed) + pooling.backward) if deep else 0.0
    backward += sum(s.backward for s in sites) + 2 * fused if deep else 0.0
    backward += 2.0 * rows * tokens * trained
    if patches is not None and cast(Tensor, patches.weight).requires_grad:
        backward += rows * embedding
    return StepFlops(forward, backward)


def _pooling_flops(model: AdaptedModel, tower: Tower, tokens: int) -> StepFlops:
    """One learnt query that attends over all tokens, and the MLP behind it; nothing where a tower has none."""
    if not tower.attention_pooling:
        return StepFlops(0.0, 0.0)
    width = tower.width
    asks, keys_and_values = 2.0 * width**2, 4.0 * tokens * width**2
    scores = sums = 2.0 * tokens * width
    behind = 2.0 * width**2 + 4.0 * width * tower.inner
    # To the tokens: scores to the keys only, sums to both of their factors. What comes before the query is learnt and no input.
    to_tokens = keys_and_values + scores + 2 * sums + behind
    pooling = model.backbone.get_submodule(tower.attention_pooling)
    trains = any(p.requires_grad for p in pooling.parameters())
    to_weights = 2 * asks + scores + keys_and_values + behind if trains else 0.0
    return StepFlops(asks + keys_and_values + scores + sums + behind, to_tokens + to_weights)


@dataclass(frozen=True)
class _Backbone:
    """One pass of one sample through frozen layers. FLOPs of the patches' projection (`embedding`) and of the pooled token's.
    `shared`: heads of keys and values, as a share of the heads of queries; `mlp_layers`: linear layers of an MLP."""

    tokens: int
    width: int
    inner: int
    layers: int
    embedding: float
    pooler: float
    shared: float = 1.0
    mlp_layers: int = 2

    @property
    def _attention(self) -> float:
        """Scores and weighted sum, all heads of one layer."""
        return 4.0 * self.tokens**2 * self.width

    @property
    def _projections(self) -> float:
        """Query, key, value and output of one layer."""
        return 4.0 * (1.0 + self.shared) * self.tokens * self.width**2

    @property
    def _mlp(self) -> float:
        return 2.0 * self.mlp_layers * self.tokens * self.width * self.inner

    def forward(self) -> float:
        return self.embedding + self.layers * (self._projections + self._attention + self._mlp) + self.pooler

    def backward(self, *, whole: bool) -> float:
        """To the inputs of each product, weights left out. A frozen backbone's gradient ends at its lowest site, above the first
        layer's attention; with `whole`, it goes through that as well."""
        layers = self.layers * (self._projections + 2 * self._attention + self._mlp)
        return layers + self.pooler - (0.0 if whole else self._projections + 2 * self._attention)


def _group_flops(group: AdapterGroup | ResidualGroup | LoraGroup, tokens: int, heads: int) -> StepFlops:
    """One group of adapters at one site: down, up, and each query row's attention over tokens and bottleneck."""
    if not isinstance(group, AdapterGroup):
        products = 2.0 * tokens * (group.down.numel() + group.up.numel())
        return StepFlops(products, products + 2.0 * tokens * sum(p.numel() for p in (group.down, group.up) if p.requires_grad))
    count, rank, width = group.down.shape
    product = 2.0 * tokens * width * rank * count
    rows = 0 if group.query is None else group.query[0].numel() // width
    attention = 4.0 * tokens * (width + (heads * rank if group.rule.over_output else 0)) * rows * count
    weights = sum(product for p in (group.down, group.up) if p.requires_grad)
    # Scores and sums, each with a gradient to both of their factors; the queries' own is as large as one more score.
    asks = group.query is not None and group.query.requires_grad
    return StepFlops(2 * product + attention, 2 * product + weights + attention * (2.0 if asks else 1.5))

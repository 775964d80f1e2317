"""LoRA as the adapters' form (Hu et al. 2021, arXiv 2106.09685): at a linear layer W, on the layer's own input.

    out = W x + Σ_i α_i s_i B_i A_i x + s_own B_own A_own x          s = lora_alpha / r, or lora_alpha / sqrt(r)  (rsLoRA)

α_i is one learnt number for each layer and adapter, as in the default form of a bottleneck's site (model/experience.py), or 1
where nothing is weighed. Adapters may differ in rank and in the layers they act on, so that those of other people fit: one that
has nothing at a layer has rank 0 there. The arithmetic is `lora_op.add_lora`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from atlas_dist.errors import DataError
from atlas_dist.model import tensors as named
from atlas_dist.model.lora_op import add_lora
from atlas_dist.model.mixing import SiteOutput
from atlas_dist.model.mixing_spec import INIT_STD, MixingSpec
from atlas_dist.model.targets import linear_paths

Ranks = Mapping[str, int]
"""Path of a linear layer -> an adapter's rank there; not named = 0."""


class LoraGroup(nn.Module):
    """n >= 1 adapters at one linear layer, stacked: `down` [R, D_in], all A; `up` [D_out, R], all B; `scale` [n], their s.

    Args:
        width_in, width_out: D_in and D_out.
        ranks: of each adapter, 0 for one that has nothing here; R is their sum.
        generator: source of the initial values (A as PEFT's: uniform up to 1/sqrt(D_in)); None leaves everything NaN.
        scale: s of every adapter, until others are loaded.
        zero_up: B starts at zero, so that a new adapter changes nothing at first; otherwise N(0, 0.02).
    """

    scale: Tensor
    owner: Tensor
    """[R]: which adapter each row belongs to."""

    def __init__(
        self,
        width_in: int,
        width_out: int,
        ranks: Sequence[int],
        generator: torch.Generator | None,
        *,
        scale: float = math.nan,
        zero_up: bool = True,
    ) -> None:
        super().__init__()
        self.ranks = tuple(ranks)
        total = sum(self.ranks)
        down, up = torch.full((total, width_in), torch.nan), torch.full((width_out, total), torch.nan)
        if generator is not None:
            down.uniform_(-1 / math.sqrt(width_in), 1 / math.sqrt(width_in), generator=generator)
            up = torch.zeros_like(up) if zero_up else up.normal_(0.0, INIT_STD, generator=generator)
        self.down, self.up = nn.Parameter(down), nn.Parameter(up)
        # Of an adapter that has nothing here no s is ever loaded; NaN would reach the gradient of its coefficient.
        self.register_buffer("scale", torch.tensor([scale if rank else 0.0 for rank in self.ranks]))
        owner = torch.repeat_interleave(torch.arange(len(self.ranks)), torch.tensor(self.ranks))
        self.register_buffer("owner", owner, persistent=False)

    def forward(self, x: Tensor, onto: Tensor, alpha: Tensor | None = None) -> Tensor:
        """What these adapters add to `onto` [..., D_out] from the layer's input x [..., D_in]; α [n], or None for 1 each."""
        if not len(self.owner):
            return onto
        weight = self.scale if alpha is None else alpha * self.scale
        return add_lora(onto, x, self.down, self.up, weight[self.owner])

    def slots(self, site: str, index: int) -> named.Slots:
        """One adapter by the names that it has in files; {} where it has nothing here."""
        rank, start = self.ranks[index], sum(self.ranks[:index])
        if not rank:
            return {}
        return {
            f"adapter/{site}/lora_A.weight": [self.down.data[start : start + rank]],
            f"adapter/{site}/lora_B.weight": [self.up.data[:, start : start + rank]],
            f"adapter/{site}/scale": [self.scale[index]],
        }


class LoraCoefficients(nn.Module):
    """α of T adapters at one layer: `start` [T], equal shares of 1 at first."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.start = nn.Parameter(torch.full((count,), 1.0 / count))


class LoraSite(nn.Module):
    """One linear layer with its frozen adapters and, where a stage grows one, the task's own. Identity without any.

    Its parts are named as those of the other sites (`frozen`, `coefficients`, `grown`), so that methods name them alike.

    Args:
        layer: the linear layer; only its shape is looked at.
        spec: its `lora` is not None.
        ranks: of each visible adapter here.
        own: rank here of the task's own adapter; 0 = it has nothing here; None = the task grows none.
        generator: initial values of the new adapter; the frozen ones stay NaN until loaded.
    """

    def __init__(
        self, layer: nn.Linear, spec: MixingSpec, *, ranks: Sequence[int], own: int | None, generator: torch.Generator
    ) -> None:
        super().__init__()
        assert spec.lora is not None, "a LoRA site has LoRA adapters"
        shape, scale = (layer.in_features, layer.out_features), spec.lora.scale(spec.rank)
        self.frozen = LoraGroup(*shape, ranks, None) if ranks else None
        self.coefficients = LoraCoefficients(len(ranks)) if ranks and spec.weighs else None
        self.grown = LoraGroup(*shape, (own,), generator, scale=scale, zero_up=spec.zero_up) if own else None
        self.grows = own is not None

    def forward(self, x: Tensor, output: Tensor) -> SiteOutput:
        """The layer's input x [B, ..., D_in] and output [B, ..., D_out] -> SiteOutput; α [B, T], the own adapter's 1."""
        alphas: list[Tensor] = []
        mixed = output
        if self.frozen is not None:
            weighed = self.coefficients.start if self.coefficients is not None else None
            mixed = self.frozen(x, mixed, weighed)
            alphas.append(self.frozen.scale.new_ones(len(self.frozen.ranks)) if weighed is None else weighed)
        if self.grown is not None:
            mixed = self.grown(x, mixed)
        wide = torch.promote_types(output.dtype, torch.float32)
        alphas.append(output.new_ones(int(self.grows), dtype=wide))
        alpha = torch.cat(alphas)
        return SiteOutput(mixed, alpha.expand(len(x), -1), None)


def ranks_in(adapter: Mapping[str, Tensor]) -> dict[str, int]:
    """An adapter's rank at each linear layer that it acts on.

    Raises:
        DataError: it is no LoRA adapter.
    """
    ranks = {}
    for name, value in adapter.items():
        site = name.removeprefix("adapter/").removesuffix("/lora_A.weight")
        if name == f"adapter/{site}/lora_A.weight" and value.dim() == 2 and len(value):
            ranks[site] = len(value)
    if not ranks:
        raise DataError("An adapter that this task sees is no LoRA adapter.", fix="Tasks of one bank share a form of adapters.")
    return ranks


def weighed_layers(coefficients: Iterable[str]) -> dict[str, int]:
    """The linear layers that a task has coefficients for, each with rank 0.

    Where the only adapter of a layer is left out, nothing acts there any more, and the layer keeps its place among the task's
    tensors.
    """
    return {name.removeprefix("coefficients/").removesuffix("/start"): 0 for name in coefficients}


def lora_paths(backbone: nn.Module, ranks: Iterable[Ranks]) -> tuple[str, ...]:
    """Every linear layer that one of several LoRA adapters acts on, in the backbone's order.

    Raises:
        DataError: a layer that the backbone does not have.
    """
    wanted = {path for one in ranks for path in one}
    there = linear_paths(backbone)
    foreign = sorted(wanted - set(there))
    if foreign:
        raise DataError(
            f"A LoRA adapter acts on {foreign[0]}, which is no linear layer of this backbone.",
            fix="It belongs to another backbone.",
        )
    return tuple(path for path in there if path in wanted)

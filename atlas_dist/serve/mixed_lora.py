"""Rows of several tasks at a linear layer that carries LoRA adapters: each task's slice of the batch through its own adapters.

LoRA looks at one token at a time, so padding needs no care here: what is added to a padded token, no other token sees.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn

from atlas_dist.bank.weights import BankWeights
from atlas_dist.model import tensors as named
from atlas_dist.model.backbones import architecture_of
from atlas_dist.model.lora import LoraSite, lora_paths, ranks_in, weighed_layers
from atlas_dist.model.mixing_spec import MixingSpec
from atlas_dist.model.site_files import coefficient_slots
from atlas_dist.model.site_hook import rows_apart, rows_joined
from atlas_dist.model.targets import target_paths


class Rows(Protocol):
    """What a place has to know of a batch (serve/mixed.py: `TaskBatch`)."""

    @property
    def key(self) -> str:
        """Of the task."""
        ...

    @property
    def rows(self) -> int:
        """How many rows of the backbone's batch are its."""
        ...


def lora_places(backbone: nn.Module, weights: BankWeights, mixing: MixingSpec, device: torch.device) -> dict[str, LoraPlace]:
    """Every linear layer that an adapter of the bank acts on, by its path.

    Raises:
        DataError: a tensor is missing, misshapen or not finite, or of a layer that the backbone does not have.
    """
    assert mixing.lora is not None, "only LoRA adapters act on linear layers"
    ranks = {key: ranks_in(adapter) for key, adapter in weights.adapters.items()}
    grown = dict.fromkeys(target_paths(backbone, mixing.lora.targets), mixing.rank)
    own = {key: grown | weighed_layers(n for n in t.own if n.startswith("coefficients/")) for key, t in weights.tasks.items()}
    paths = lora_paths(backbone, (*own.values(), *ranks.values()))
    return {path: LoraPlace(path, backbone, weights, mixing, ranks, own, device) for path in paths}


class LoraPlace:
    """One linear layer, and each task's view of the bank's adapters there. `alphas`: α of the last pass, one tensor a batch."""

    def __init__(
        self,
        path: str,
        backbone: nn.Module,
        weights: BankWeights,
        mixing: MixingSpec,
        ranks: Mapping[str, Mapping[str, int]],
        layers: Mapping[str, Mapping[str, int]],
        device: torch.device,
    ) -> None:
        """`ranks` of each adapter. `layers`: those that each task has a place at besides the layers of what it reads."""
        self.path = path
        self.query_names: tuple[str, ...] = ()
        self.own_names: dict[str, tuple[str, ...]] = {}
        """Task -> what it keeps of its own for this place."""
        self.alphas: list[Tensor] = []
        self._batches: list[tuple[str, int]] = []
        self._views: dict[str, LoraSite | None] = {}
        self._names: dict[str, tuple[str, ...]] = {}
        layer = cast(nn.Linear, backbone.get_submodule(path))
        self._rows = architecture_of(backbone).rows_at(backbone, path)
        for key, task in weights.tasks.items():
            reads = weights.view(key)
            if path not in layers[key] and not any(path in ranks[seen] for seen in reads):
                # Adapters of other tasks act here, of other people perhaps; this one's never did.
                self._views[key], self.own_names[key] = None, ()
                continue
            own = mixing.weighs and key in reads
            earlier = [seen for seen in reads if not own or seen != key]
            site = LoraSite(
                layer,
                mixing,
                ranks=[ranks[seen].get(path, 0) for seen in earlier],
                own=ranks[key].get(path, 0) if own else None,
                generator=torch.Generator(),
            )
            kept = coefficient_slots(path, site)
            named.load(kept, {n: task.own[n] for n in kept if n in task.own}, f"{task.learnt.name}: its coefficients")
            self.own_names[key] = tuple(kept)
            for index, seen in enumerate(earlier):
                load_part(site.frozen.slots(path, index) if site.frozen else {}, weights, seen)
            if site.grown is not None:
                load_part(site.grown.slots(path, 0), weights, key)
            self._views[key] = site.to(device).eval() if reads else None
        for key, one in ranks.items():
            parts = ("lora_A.weight", "lora_B.weight", "scale") if one.get(path) else ()
            self._names[key] = tuple(f"adapter/{path}/{part}" for part in parts)

    def names_of(self, key: str) -> tuple[str, ...]:
        """What a task's adapter has here, by the names of its tensors."""
        return self._names.get(key, ())

    def plan(self, batches: Sequence[Rows], _longest: int) -> None:
        """What the rows of the next pass are, in their order."""
        self.alphas = []
        self._batches = [(batch.key, batch.rows) for batch in batches]

    def __call__(self, _: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
        """Forward hook: the layer's output [rows, ..., D_out], every task's slice through its own view; the tiles of one picture
        are one row there."""
        counts = [rows for _, rows in self._batches]
        read, written = (torch.split(rows_joined(tokens, self._rows), counts) for tokens in (inputs[0], output))
        parts = zip(self._batches, read, written, strict=True)
        return rows_apart(torch.cat([self._mixed(key, x, part) for (key, _), x, part in parts]), self._rows)

    def _mixed(self, key: str, x: Tensor, output: Tensor) -> Tensor:
        view = self._views[key]
        if view is None:
            self.alphas.append(output.new_zeros(len(output), 0))
            return output
        result = view(x, output)
        self.alphas.append(result.alpha)
        mixed: Tensor = result.mixed
        return mixed


def load_part(slots: named.Slots, weights: BankWeights, key: str) -> None:
    """The part of an adapter of the bank that one place takes."""
    adapter = weights.imported[key].adapter if key in weights.imported else weights.tasks[key].adapter
    named.load(slots, {name: adapter[name] for name in slots if name in adapter}, f"{weights.name_of(key)}: its adapter")

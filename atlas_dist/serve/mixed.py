"""Samples of several tasks in one forward pass: the backbone sees one batch, at each site a row goes through its own task's view.

The backbone is nearly all of the work and the same for every task, so rows of all tasks go through it together; a site takes a
slice of the batch for each task that is in it (docs/method.md, One site). Rows are sorted by task, so a slice is a view. Texts
are padded to the longest task of the batch; the padding is masked in the backbone and *left out* at the sites, whose attention
has none. A row's numbers are those of a batch of its own, up to the rounding of larger matrix products.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from atlas_dist.bank.weights import BankWeights
from atlas_dist.errors import DataError
from atlas_dist.model import tensors as named
from atlas_dist.model.backbones import AdapterSite, BackboneInput, Written, architecture_of, rows_go_on
from atlas_dist.model.experience import ExperienceSite
from atlas_dist.model.heads import Head, HeadSpec
from atlas_dist.model.mixing_call import Stack
from atlas_dist.model.mixing_op import mix
from atlas_dist.model.mixing_spec import MixingSpec, MixRule, Weighting
from atlas_dist.model.site_files import adapter_slots, coefficient_slots
from atlas_dist.model.site_hook import rows_apart, rows_joined
from atlas_dist.serve.mixed_lora import LoraPlace, load_part, lora_places


@dataclass(frozen=True)
class TaskBatch:
    """B samples of one task: `input_ids`, `attention_mask`, `token_type_ids` int64 [B, K, L_t], `pixels` [B, I, 3, H, W]."""

    key: str
    input_ids: Tensor
    attention_mask: Tensor
    token_type_ids: Tensor
    pixels: Tensor

    @property
    def shape(self) -> tuple[int, int, int]:
        """B samples, I images, K texts: B·I·K rows, in this order."""
        return len(self.input_ids), self.pixels.shape[1], self.input_ids.shape[1]

    @property
    def length(self) -> int:
        """L_t, text tokens a row."""
        return self.input_ids.shape[2]

    @property
    def rows(self) -> int:
        """Rows of the backbone's batch."""
        samples, images, texts = self.shape
        return samples * images * texts


@dataclass(frozen=True)
class TaskOutput:
    """`logits` [B, C], float32 at least; `alpha`: {site: [B, T]} ([B, T, D] for `dimension`), a sample's passes averaged.
    `written`: answers that are texts; then there are no logits, [B, 0]."""

    logits: Tensor
    alpha: Mapping[str, Tensor]
    written: Written | None = None


class MixedModel:
    """A backbone with the views of all tasks of a bank. Not a module: it holds weights and computes, and trains nothing.

    Args:
        backbone: on its device, frozen; of one of `backbones.ARCHITECTURES`.
        weights: the tasks; adapters that several tasks see are held once.
        second_image_type: modality type of a pair's second image.

    Raises:
        DataError: a tensor is missing, superfluous, misshapen or not finite.
    """

    def __init__(self, backbone: nn.Module, weights: BankWeights, mixing: MixingSpec, second_image_type: int = 1) -> None:
        self.backbone = backbone
        device = next(backbone.parameters()).device
        self.architecture = architecture_of(backbone)
        width = self.architecture.limits(backbone).pooled
        self.specs = {key: HeadSpec(t.learnt.task.kind, t.learnt.task.classes) for key, t in weights.tasks.items()}
        self.most = {key: t.learnt.task.max_new_tokens for key, t in weights.tasks.items()}
        self.heads = {key: _load_head(spec, width, weights.tasks[key].own, device) for key, spec in self.specs.items()}
        self.sites = self._make_sites(weights, mixing, device)
        self._check_names(weights)
        self.image_types = (1, second_image_type)

    def _make_sites(self, weights: BankWeights, mixing: MixingSpec, device: torch.device) -> Mapping[str, _Site | LoraPlace]:
        if mixing.lora is not None:
            return lora_places(self.backbone, weights, mixing, device)
        places = self.architecture.sites(self.backbone)
        return {place.name: _Site(place, weights, mixing, mixing.rule(place.heads), device) for place in places}

    @torch.inference_mode()
    def __call__(self, batches: Sequence[TaskBatch]) -> list[TaskOutput]:
        """One forward pass over all rows of all tasks, and one after the other for those that write their answers; outputs in the
        order of `batches`."""
        writes = [self.specs[batch.key].kind.generates for batch in batches]
        read = [batch for batch, generates in zip(batches, writes, strict=True) if not generates]
        outputs = iter(self._read(read) if read else ())
        return [self._write(batch) if generates else next(outputs) for batch, generates in zip(batches, writes, strict=True)]

    def _write(self, batch: TaskBatch) -> TaskOutput:
        """Answers by greedy decoding, of samples of one task."""
        assert self.architecture.decoder is not None, "a task is learnt by a backbone that writes"
        rows = _rows(batch, batch.length)
        text = {name: rows[name] for name in ("input_ids", "attention_mask", "token_type_ids")}
        for site in self.sites.values():
            site.plan([batch], batch.length)
        with self._hooked():
            given = BackboneInput(**text, pixel_values=rows["pixels"])
            written = self.architecture.decoder.greedy(self.backbone, given, self.most[batch.key], rows_go_on)
        alpha = {name: site.alphas[0].detach() for name, site in self.sites.items() if site.alphas}
        return TaskOutput(written.log_probs[:, :0], alpha, written)

    def _read(self, batches: Sequence[TaskBatch]) -> list[TaskOutput]:
        longest = max(batch.length for batch in batches)
        for site in self.sites.values():
            site.plan(batches, longest)
        with self._hooked():
            parts = self._pooled(batches, longest, self.image_types)
        return [self._answer(number, batch, part) for number, (batch, part) in enumerate(zip(batches, parts, strict=True))]

    @torch.inference_mode()
    def frozen(self, batches: Sequence[TaskBatch]) -> list[Tensor]:
        """Pooled features [B, D] of the backbone alone, a sample's passes averaged: as a task's signature has them."""
        parts = self._pooled(batches, max(batch.length for batch in batches), (1, 1))
        return [
            part.float().view(len(batch.input_ids), -1, part.shape[-1]).mean(1)
            for batch, part in zip(batches, parts, strict=True)
        ]

    def _pooled(self, batches: Sequence[TaskBatch], longest: int, image_types: tuple[int, int]) -> Sequence[Tensor]:
        """Pooled rows [B·I·K, D] of each batch, all through the backbone at once, texts padded to the `longest`."""
        rows = [_rows(batch, longest) for batch in batches]
        text = {name: torch.cat([r[name] for r in rows]) for name in ("input_ids", "attention_mask", "token_type_ids")}
        pixels = torch.cat([r["pixels"] for r in rows])
        types = torch.cat([torch.tensor(image_types, device=pixels.device)[r["image"]] for r in rows])
        pooled = self.architecture.encode(self.backbone, BackboneInput(**text, pixel_values=pixels, image_type=types)).pooled
        return torch.split(pooled, [batch.rows for batch in batches])

    def _answer(self, number: int, batch: TaskBatch, pooled: Tensor) -> TaskOutput:
        """Pooled rows [B·I·K, D] to logits [B, C], as `model.atlas.AdaptedModel.forward` arranges them."""
        samples, images, texts = batch.shape
        joined = pooled.view(samples, images, texts, -1).transpose(1, 2).flatten(2)
        logits = self.heads[batch.key](joined).view(samples, -1)
        alpha = {
            name: torch.unflatten(site.alphas[number], 0, (samples, images * texts)).mean(dim=1)
            for name, site in self.sites.items()
            if site.alphas
        }
        return TaskOutput(logits if logits.dtype is torch.float64 else logits.float(), alpha)

    @contextmanager
    def _hooked(self) -> Iterator[None]:
        """The backbone with our sites; as before afterwards."""
        handles: list[RemovableHandle] = []
        try:
            handles += [self.backbone.get_submodule(s.path).register_forward_hook(s) for s in self.sites.values()]
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _check_names(self, weights: BankWeights) -> None:
        """Exactly what sites and head take, and nothing besides."""
        for key, task in weights.tasks.items():
            heads = {f"head/{name}" for name, _ in self.heads[key].named_parameters()}
            grown = {name for site in self.sites.values() for name in site.names_of(key)}
            queries = {name for site in self.sites.values() for name in site.query_names}
            own = {name for site in self.sites.values() for name in site.own_names.get(key, ())}
            has_adapter = key not in weights.dropped and task.learnt.has_adapter
            wanted = (grown if has_adapter else set(), heads | own | (queries if weights.view(key) else set()))
            for have, want in zip((set(task.adapter), set(task.own)), wanted, strict=True):
                if have != want:
                    odd = ", ".join(sorted(have ^ want)[:5])
                    raise DataError(f"{task.learnt.name} has tensors missing or too many: {odd}.", fix="Export the bank again.")


View = Callable[[Tensor], tuple[Tensor, Tensor]]
"""x [rows, L, D] -> what a task's adapters make of it [rows, L, D], and α [rows, T]."""


class _Site:
    """One place in the backbone, and each task's view of the bank's adapters there.

    A task of a pruned bank may read no adapter at all: then it has no view, and the site is the identity. `alphas` holds α of the
    last pass, one tensor a batch.
    """

    def __init__(self, place: AdapterSite, weights: BankWeights, mixing: MixingSpec, rule: MixRule, device: torch.device) -> None:
        self.place, self.path = place, place.path
        self.views: dict[str, View | None] = {}
        self.own_names: dict[str, tuple[str, ...]] = {}
        """Task -> what it keeps of its own for this place, besides queries."""
        self.alphas: list[Tensor] = []
        self.batches: list[tuple[str, int, int]] = []
        self.longest = 0
        shapes = _shapes(place, mixing)
        self.adapter_names = tuple(shapes)
        self.query_names = (f"queries/{place.name}",) if mixing.has_queries else ()
        if mixing.weighting is Weighting.EXPERIENCE:
            self._see_experience(weights, mixing, device)
        else:
            self._see_mixtures(weights, mixing, rule, shapes, device)

    def names_of(self, _key: str) -> tuple[str, ...]:
        """What every adapter has here, by the names of its tensors."""
        return self.adapter_names

    def _see_experience(self, weights: BankWeights, mixing: MixingSpec, device: torch.device) -> None:
        """Each task's site as it trained it: earlier adapters weighed, its own on top."""
        for key, task in weights.tasks.items():
            reads = weights.view(key)
            earlier = [seen for seen in reads if seen != key]
            site = ExperienceSite(
                self.place.width,
                self.place.heads,
                mixing,
                visible=len(earlier),
                grows=key in reads,
                generator=torch.Generator(),
            )
            own = coefficient_slots(self.place.name, site)
            named.load(own, {n: task.own[n] for n in own if n in task.own}, f"{task.learnt.name}: its coefficients")
            self.own_names[key] = tuple(own)
            for index, seen in enumerate(earlier):
                load_part(adapter_slots(self.place.name, site.frozen, index) if site.frozen else {}, weights, seen)
            if site.grown is not None:
                load_part(adapter_slots(self.place.name, site.grown, 0), weights, key)
            self.views[key] = ExperienceView(site.to(device).eval()) if reads else None

    def _see_mixtures(
        self,
        weights: BankWeights,
        mixing: MixingSpec,
        rule: MixRule,
        shapes: Mapping[str, tuple[int, ...]],
        device: torch.device,
    ) -> None:
        """The adapters of the whole bank, stacked once, and the rows of them that each task reads."""
        grown = {key: task for key, task in weights.tasks.items() if key not in weights.dropped}
        order = {key: number for number, key in enumerate(grown)}
        bank = {
            name: torch.stack([_checked(t.adapter, name, shape, t.learnt.name) for t in grown.values()]).to(device)
            for name, shape in (shapes.items() if grown else ())
        }
        for key, task in weights.tasks.items():
            rows = [order[seen] for seen in weights.view(key)]
            if not rows:
                self.views[key] = None
                continue
            down, down_bias, up, up_bias, *key_rows = (_select(stacked, rows) for stacked in bank.values())
            query = None
            if self.query_names:
                shape = (len(rows), *mixing.query_shape(self.place.width))
                query = _checked(task.own, self.query_names[0], shape, task.learnt.name).to(device)
            stack = Stack(down, down_bias, up, up_bias, query, key_rows[0] if key_rows else None)
            self.views[key] = MixtureView(stack, rule, mixing.outer_residual)

    def plan(self, batches: Sequence[TaskBatch], longest: int) -> None:
        """What the rows of the next pass are: (task, rows, text tokens), in their order."""
        self.alphas, self.longest = [], longest
        self.batches = [(batch.key, batch.rows, batch.length) for batch in batches]

    def __call__(self, _: nn.Module, __: tuple[Any, ...], output: Tensor) -> Tensor:
        """Forward hook: the dense layer's output [rows, L, D], every task's slice through its own view. Of its L tokens `longest`
        are the text's where the place has `text_first`, behind the `before_text` first ones, and none is otherwise. Where tiles
        are rows, a view sees those of one picture as one."""
        parts = torch.split(rows_joined(output, self.place.rows), [rows for _, rows, _ in self.batches])
        mixed = [self._mixed(key, part, length) for (key, _, length), part in zip(self.batches, parts, strict=True)]
        return rows_apart(torch.cat(mixed), self.place.rows)

    def _mixed(self, key: str, rows: Tensor, length: int) -> Tensor:
        view = self.views[key]
        if view is None:
            self.alphas.append(rows.new_zeros(len(rows), 0))
            return rows
        padded = self.place.text_first and length < self.longest
        end, padding_end = self.place.before_text + length, self.place.before_text + self.longest
        x = torch.cat([rows[:, :end], rows[:, padding_end:]], dim=1) if padded else rows
        mixed, alpha = view(x)
        self.alphas.append(alpha)
        return torch.cat([mixed[:, :end], rows[:, end:padding_end], mixed[:, end:]], dim=1) if padded else mixed


@dataclass(frozen=True)
class MixtureView:
    """Of the released form: adapters mixed by queries and keys."""

    stack: Stack
    rule: MixRule
    outer_residual: bool

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """See `View`."""
        mixed, alpha = mix(x, self.stack, self.rule)
        return mixed + x if self.outer_residual else mixed, alpha


@dataclass(frozen=True)
class ExperienceView:
    """Of the default form: the site that the task trained."""

    site: ExperienceSite

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """See `View`."""
        output = self.site(x)
        return output.mixed, output.alpha


def _rows(batch: TaskBatch, longest: int) -> dict[str, Tensor]:
    """One row a pass, [B·I·K, ...]: every picture of a sample with every text of it."""
    samples, images, texts = batch.shape

    def text(values: Tensor) -> Tensor:
        padded = nn.functional.pad(values, (0, longest - batch.length))
        return padded[:, None].expand(-1, images, -1, -1).reshape(batch.rows, longest)

    pixels = batch.pixels[:, :, None].expand(-1, -1, texts, -1, -1, -1).flatten(0, 2)
    image = torch.arange(images, device=pixels.device)[None, :, None].expand(samples, -1, texts).flatten()
    return {
        "input_ids": text(batch.input_ids),
        "attention_mask": text(batch.attention_mask),
        "token_type_ids": text(batch.token_type_ids),
        "pixels": pixels,
        "image": image,
    }


def _shapes(place: AdapterSite, mixing: MixingSpec) -> dict[str, tuple[int, ...]]:
    """Tensors of one adapter at a site, in the order of `Stack`."""
    name, width, rank = place.name, place.width, mixing.rank
    shapes: dict[str, tuple[int, ...]] = {
        f"adapter/{name}/down.weight": (rank, width),
        f"adapter/{name}/down.bias": (rank,),
        f"adapter/{name}/up.weight": (width, rank),
        f"adapter/{name}/up.bias": (width,),
    }
    key = (2, width) if mixing.weighting is Weighting.EXPERIENCE else mixing.query_shape(width)
    return shapes | ({f"key/{name}": key} if key else {})


def _checked(tensors: Mapping[str, Tensor], name: str, shape: tuple[int, ...], task: str) -> Tensor:
    """The tensor, if it is there and what it should be."""
    slot = torch.empty(shape)
    named.load({name: [slot]}, {name: tensors[name]} if name in tensors else {}, f"{task}: {name}")
    return slot


def _select(stacked: Tensor, rows: list[int]) -> Tensor:
    """Some adapters of the stack: a view where they are its beginning, as in one sequence of tasks they always are."""
    return stacked[: len(rows)] if rows == list(range(len(rows))) else stacked[rows]


def _load_head(spec: HeadSpec, width: int, own: Mapping[str, Tensor], device: torch.device) -> Head:
    head = Head(spec.images * width, spec.outputs, torch.Generator())
    slots: named.Slots = {f"head/{name}": [parameter.data] for name, parameter in head.named_parameters()}
    named.load(slots, {name: tensor for name, tensor in own.items() if name.startswith("head/")}, "the head")
    return head.to(device).eval()

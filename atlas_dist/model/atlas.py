"""The model that a stage trains: a frozen backbone, mixing sites hooked into it, and one task's head.

    spec   = MixingSpec(rank=48, weighting=Weighting.WHOLE)                     # model/mixing.py
    model  = AdaptedModel(backbone, HeadSpec(TaskKind.SINGLE, 10), spec, visible=3, grows=False, seed=7)
    model.load_adapters([adapter_of_job_1, adapter_of_job_2, adapter_of_job_3])  # each: `adapter/<site>/…`, `key/<site>`
    model.load_queries(queries_of_the_previous_task)                            # `queries/<site>` [3, D]
    model.load_head(head_tensors)                                               # `head/<name>`
    names  = model.trainable_names({Role.QUERIES, Role.HEAD})                   # explicit, sorted parameter names
    freeze_to(model, names)                                                     # exactly these require gradients
    groups = optimizer_groups(model, lr=5e-4, query_lr_scale=100.0, weight_decay=0.01)      # model/trained.py
    logits, penalty = model(batch)                                              # [B, C], scalar (0 in eval mode)
    model.export_adapter(); model.export_queries(); model.export_head()         # flat dict[str, Tensor] on the CPU
    model.close()                                                               # unhook: the backbone is as before

The backbone is an unmodified model of transformers, of an architecture that `backbones/` knows: a forward hook on each dense
layer of docs/method.md, Where adapters sit, passes the layer's output through its site, and `close` takes the hooks away again,
so that one cached backbone serves job after job.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from types import TracebackType
from typing import NamedTuple, Self, cast

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from atlas_dist.core.types import Role
from atlas_dist.errors import DataError, TrainingError
from atlas_dist.model import tensors as named
from atlas_dist.model.backbones import BackboneInput, Decoder, GoesOn, Written, architecture_of, rows_go_on
from atlas_dist.model.experience import ExperienceSite
from atlas_dist.model.fusion import FusionSite
from atlas_dist.model.heads import Head, HeadSpec
from atlas_dist.model.layers import AS_THEY_ARE, LayerRuns, run_layers
from atlas_dist.model.lora import LoraGroup, LoraSite, Ranks, lora_paths
from atlas_dist.model.mixing import MixingSite
from atlas_dist.model.mixing_spec import MixingSpec, Weighting
from atlas_dist.model.site_files import Group, adapter_slots, coefficient_slots
from atlas_dist.model.site_hook import Site, SiteHook, attribute_of
from atlas_dist.model.targets import target_paths


class AtlasOutput(NamedTuple):
    """What a forward pass gives.

    `logits` [B, C] (C = K for `choice`); [B, M, V] of the tokens of answers that are written.
    `penalty`: the unweighted orthogonality penalty of this step, a scalar, summed over
    sites (queries, and keys while an adapter grows), once however many passes a sample takes; 0 when evaluating or with fewer
    than two adapters. Loss = task loss + 0.1 x penalty.
    """

    logits: Tensor
    penalty: Tensor


class AdaptedModel(nn.Module):
    """Backbone, sites and head of one job. See the module's docstring.

    Args:
        backbone: `Backbone.model`, a model of one of `backbones.ARCHITECTURES`; shared between models, at most one open
            AdaptedModel at a time. Fine-tuning (`Role.BACKBONE`) changes it: give that job a copy of its own.
        head: the task's kind and number of classes.
        mixing: adapter rank, weighting and options.
        visible: how many earlier adapters of the bank this model sees (T >= 0).
        grows: add a new adapter (stage two, individual adapters).
        seed: of the new tensors (head, new adapter, fresh queries).
        second_image_type: modality type of a pair's second image (1: as ATLAS; 2: as CLiMB), where the backbone has such types.
        normalize_ortho: unit rows in the penalty (default: as the released code, no).
        fuses: the visible adapters are read through AdapterFusion (model/fusion.py) instead of being mixed.
        runs: how the backbone's layers run (model/layers.py).
        ranks: of LoRA adapters, each visible one's rank at each layer (`lora.ranks_in`); None = as a new one would have.

    Raises:
        TrainingError: the backbone still carries the hooks of another model.
        ConfigError: it is of no known architecture, or has no layer that LoRA adapters are meant for.
        DataError: a visible LoRA adapter acts on a layer that the backbone does not have.
    """

    def __init__(
        self,
        backbone: nn.Module,
        head: HeadSpec,
        mixing: MixingSpec,
        *,
        visible: int,
        grows: bool,
        seed: int,
        second_image_type: int = 1,
        normalize_ortho: bool = False,
        fuses: bool = False,
        runs: LayerRuns = AS_THEY_ARE,
        ranks: Sequence[Ranks] | None = None,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.head_spec = head
        self.mixing = mixing
        self.visible = visible
        self.grows = grows
        self.image_types = (1, second_image_type)
        generator = torch.Generator().manual_seed(seed)
        self._architecture = architecture_of(backbone)
        self.head = Head(head.images * self._architecture.limits(backbone).pooled, head.outputs, generator)
        self.sites = nn.ModuleDict()
        self._hooks: dict[str, SiteHook] = {}
        self._handles: list[RemovableHandle] = []
        self._undo_runs: Callable[[], None] = lambda: None
        if mixing.lora is not None:
            new = dict.fromkeys(target_paths(backbone, mixing.lora.targets), mixing.rank)
            seen = [new] * visible if ranks is None else ranks
            for path in lora_paths(backbone, (new, *seen)):
                layer = cast(nn.Linear, backbone.get_submodule(path))
                here = [one.get(path, 0) for one in seen]
                own = new.get(path, 0) if grows else None
                self._add(path, path, LoraSite(layer, mixing, ranks=here, own=own, generator=generator))
        else:
            make: Callable[..., Site] = partial(MixingSite, normalize_ortho=normalize_ortho)
            if fuses:
                make = FusionSite
            elif mixing.weighting is Weighting.EXPERIENCE:
                make = ExperienceSite
            for place in self._architecture.sites(backbone):
                site = make(place.width, place.heads, mixing, visible=visible, grows=grows, generator=generator)
                self._add(place.name, place.path, site)
        self._undo_runs = run_layers(self._architecture.layers(backbone), runs, self._unheard)
        like = next(backbone.parameters())
        for module in (self.head, self.sites):
            module.to(device=like.device, dtype=like.dtype)

    # ---------------------------------------------------------------------------------------------------------- forward

    def forward(self, batch: Mapping[str, Tensor]) -> AtlasOutput:
        """Run the passes that the task's kind needs, and the head.

        Args:
            batch: `input_ids`, `attention_mask`, `token_type_ids` [B, K, L] int64 (K texts a sample); `pixel_values`
                [B, I, 3, H, W] normalised (I images a sample); optional `pixel_mask` [B, I, H, W]; of a task whose answers are
                written, `answers` [B, M], the tokens of the right ones. Other entries are ignored.

        Raises:
            DataError: K or I are not what the task's kind asks for.
            TrainingError: the model was closed.
        """
        if self.head_spec.kind.generates:
            self._begin(batch, self.head_spec)
            logits, pooled = self._decoder.teacher_forced(self.backbone, self._given(batch, 0), batch["answers"])
            self.head(pooled)  # which has no layers; whoever listens to what heads read hears it
        else:
            logits = self.head(self.features(batch, self.head_spec)).view(len(batch["input_ids"]), -1)
        return AtlasOutput(logits, self.penalty(like=logits))

    def write(self, batch: Mapping[str, Tensor], most: int, goes_on: GoesOn = rows_go_on) -> Written:
        """Answers of at most `most` tokens, by greedy decoding; the samples' `answers` are not looked at. Errors as `forward`.

        `goes_on`: decides after each token whether there is another one.
        """
        self._begin(batch, self.head_spec)
        return self._decoder.greedy(self.backbone, self._given(batch, 0), most, goes_on)

    @property
    def _decoder(self) -> Decoder:
        if self._architecture.decoder is None:
            raise TrainingError(f"{self._architecture.name} backbones do not write.", fix="Use a decoder (docs/method.md).")
        return self._architecture.decoder

    def features(self, batch: Mapping[str, Tensor], spec: HeadSpec) -> Tensor:
        """What a head of kind `spec` reads, [B·K, I·P]: the pooled output of each text; of a sample's images, side by side.
        Errors as `forward`."""
        self._begin(batch, spec)
        passes = (self._given(batch, image) for image in range(spec.images))
        return torch.cat([self._architecture.encode(self.backbone, given).pooled for given in passes], dim=-1)

    def _begin(self, batch: Mapping[str, Tensor], spec: HeadSpec) -> None:
        """Check a batch, and forget what the sites said of the last one."""
        if not self._handles and len(self.sites):
            raise TrainingError("This model was closed: its adapters are no longer part of the backbone.")
        texts, images = batch["input_ids"].shape[1], batch["pixel_values"].shape[1]
        if (texts, images) != (spec.texts, spec.images):
            raise DataError(
                f"A batch has {texts} texts and {images} images a sample; a {spec.kind.value} task with"
                f" {spec.classes} classes needs {spec.texts} and {spec.images}."
            )
        for hook in self._hooks.values():
            hook.outputs.clear()

    def _given(self, batch: Mapping[str, Tensor], image: int) -> BackboneInput:
        """One pass over every text of every sample with its `image`, B·K rows. Choices are folded into the batch."""
        texts = batch["input_ids"].shape[1]
        pixels = batch["pixel_values"][:, image]
        return BackboneInput(
            input_ids=batch["input_ids"].flatten(0, 1),
            attention_mask=batch["attention_mask"].flatten(0, 1),
            token_type_ids=batch["token_type_ids"].flatten(0, 1),
            pixel_values=_repeat(pixels, texts),
            pixel_mask=_repeat(batch["pixel_mask"][:, image], texts) if "pixel_mask" in batch else None,
            image_type=self.image_types[image],
        )

    def penalty(self, like: Tensor) -> Tensor:
        """Of one pass: a second pass has the same queries, and the released code's counting per pass is a known fault."""
        said = (hook.outputs[-1].penalty for hook in self._hooks.values() if hook.outputs)
        penalties = [penalty for penalty in said if penalty is not None]
        return torch.stack(penalties).sum() if penalties else like.new_zeros(())

    def train(self, mode: bool = True) -> Self:
        """As `nn.Module.train`, but a frozen backbone stays in eval mode: its dropout is 0 (docs/method.md, What trains)."""
        super().train(mode)
        if not any(p.requires_grad for p in self.backbone.parameters()):
            self.backbone.eval()
        return self

    # ------------------------------------------------------------------------------------------------------ what trains

    def trainable_names(self, roles: Iterable[Role], *, frozen_layers: int = 0) -> tuple[str, ...]:
        """Names (as in `named_parameters`) of the parameters that these roles train, sorted.

        `frozen_layers`: of a backbone that trains, this many layers at the bottom (of each tower) stay, with the embeddings below
        them. Raises ConfigError when it has no more than that.
        """
        kept = self._architecture.kept(self.backbone, frozen_layers)
        sites = [f"sites.{attribute_of(name)}" for name in self._hooks]
        names = {
            Role.QUERIES: [f"{site}.frozen.query" for site in sites if self._has_queries and self.visible],
            Role.COEFFICIENTS: [name for name, _ in self.named_parameters() if ".coefficients." in name],
            Role.ADAPTER: [name for name, _ in self.named_parameters() if name.startswith("sites.") and ".grown." in name],
            Role.HEAD: [f"head.{name}" for name, _ in self.head.named_parameters()],
            Role.BACKBONE: [f"backbone.{name}" for name, _ in self.backbone.named_parameters() if name not in kept],
            Role.FUSION: [name for name, _ in self.named_parameters() if ".fusion." in name],
        }
        return tuple(sorted(name for role in set(roles) for name in names[role]))

    # -------------------------------------------------------------------------------------------------- load and export

    def load_adapters(self, adapters: Sequence[Mapping[str, Tensor]]) -> None:
        """Load the visible adapters, one flat dict each (`export_adapter`), in bank order.

        Raises:
            DataError: their number, or any name, shape, dtype or value, is not what this model expects.
        """
        if len(adapters) != self.visible:
            raise DataError(f"This model sees {self.visible} adapters; {len(adapters)} were given.")
        for index, adapter in enumerate(adapters):
            named.load(self._adapter_slots("frozen", index), adapter, f"adapter {index + 1} of {self.visible}")

    def load_grown(self, adapter: Mapping[str, Tensor]) -> None:
        """Load the grown adapter (names and errors as one element of `load_adapters`)."""
        if not self.grows:
            raise DataError("This model grows no adapter; load it as one of the visible ones.")
        named.load(self._adapter_slots("grown", 0), adapter, "the grown adapter")

    def load_queries(self, queries: Mapping[str, Tensor]) -> None:
        """Load `queries/<site>` [T, D] or [T, N, D] of the T visible adapters; [T + 1, ...] loads the grown one's as well.

        Raises:
            DataError: as `load_adapters`.
        """
        with_grown = self.grows and any(len(rows) == self.visible + 1 for rows in queries.values())
        kinds = ("frozen", "grown") if with_grown else ("frozen",)
        named.load(self._query_slots(kinds), queries, "the queries")

    def load_head(self, head: Mapping[str, Tensor]) -> None:
        """Load `head/<name>`; DataError as `load_adapters`."""
        named.load(self._head_slots(), head, "the head")

    def export_adapter(self) -> dict[str, Tensor]:
        """The grown adapter: `adapter/<site>/{down,up}.{weight,bias}` ([r, D], [r], [D, r], [D]) and, unless plain,
        `key/<site>` ([D] or [N, D]); float32 at least."""
        if not self.grows:
            raise DataError("This model grows no adapter: there is none to export.")
        return named.export(self._adapter_slots("grown", 0))

    def export_queries(self) -> dict[str, Tensor]:
        """`queries/<site>` [T, D] or [T, N, D] of all visible adapters and the grown one; empty when there are none."""
        return named.export(self._query_slots(("frozen", "grown")))

    def load_fusion(self, fusion: Mapping[str, Tensor]) -> None:
        """Load `fusion/<site>/<name>`; DataError as `load_adapters`."""
        named.load(self._fusion_slots(), fusion, "the fusion")

    def export_fusion(self) -> dict[str, Tensor]:
        """`fusion/<site>/{query,query_bias,key,key_bias,value}`; empty when the model does not fuse."""
        return named.export(self._fusion_slots())

    def export_backbone(self) -> dict[str, Tensor]:
        """Every parameter of the backbone that trains, by its name in the backbone; empty when it is frozen."""
        return named.export({name: [p.data] for name, p in self.backbone.named_parameters() if p.requires_grad})

    def export_head(self) -> dict[str, Tensor]:
        """`head/<name>`, names as in `Head`."""
        return named.export(self._head_slots())

    def load_coefficients(self, coefficients: Mapping[str, Tensor]) -> None:
        """Load `coefficients/<site>/{start,slope}` of the visible adapters; DataError as `load_adapters`."""
        named.load(self._coefficient_slots(), coefficients, "the coefficients")

    def export_coefficients(self) -> dict[str, Tensor]:
        """`coefficients/<site>/start` [T] and, where α depends on the sample, `…/slope` [T, D]; empty without such ones."""
        return named.export(self._coefficient_slots())

    def _coefficient_slots(self) -> named.Slots:
        slots: named.Slots = {}
        for name, hook in self._hooks.items():
            slots |= coefficient_slots(name, hook.site) if isinstance(hook.site, ExperienceSite | LoraSite) else {}
        return slots

    def _fusion_slots(self) -> named.Slots:
        parts = {name: hook.site.fusion for name, hook in self._hooks.items() if isinstance(hook.site, FusionSite)}
        return {f"fusion/{site}/{n}": [p.data] for site, fusion in parts.items() for n, p in fusion.named_parameters()}

    @property
    def _has_queries(self) -> bool:
        return self.mixing.query_shape(1) != ()

    def _groups(self, kind: str) -> dict[str, Group]:
        """The `frozen` or `grown` group of every site that has one, in site order."""
        return {name: group for name, hook in self._hooks.items() if (group := getattr(hook.site, kind)) is not None}

    def _adapter_slots(self, kind: str, index: int) -> named.Slots:
        slots: named.Slots = {}
        for site, group in self._groups(kind).items():
            slots |= adapter_slots(site, group, index)
        return slots

    def _query_slots(self, kinds: Iterable[str]) -> named.Slots:
        """Rows of both groups under one name: a slot may be made of several tensors along the first dimension."""
        slots: named.Slots = {}
        for kind in kinds:
            for site, group in self._groups(kind).items():
                if not isinstance(group, LoraGroup) and group.query is not None:
                    slots.setdefault(f"queries/{site}", []).append(group.query.data)
        return slots

    def _head_slots(self) -> named.Slots:
        return {f"head/{name}": [parameter.data] for name, parameter in self.head.named_parameters()}

    # -------------------------------------------------------------------------------------------------- look and unhook

    def named_sites(self) -> Iterator[tuple[str, nn.Module]]:
        """Name of each site, `L0.aftattn` …, and the module that its dense layer's output goes through."""
        return ((name, hook.site) for name, hook in self._hooks.items())

    def alpha_report(self) -> dict[str, Tensor]:
        """Coefficients of the last forward, {site: [B, T]} ([B, T, D] for `dimension`), float32 at least, without gradient;
        averaged over a sample's passes (images of a pair, choices). Empty before the first forward."""
        report = {}
        for site, hook in self._hooks.items():
            if hook.outputs:
                alpha = torch.stack([output.alpha.detach() for output in hook.outputs])
                report[site] = torch.unflatten(alpha, 1, (-1, self.head_spec.texts)).mean(dim=(0, 2))
        return report

    def close(self) -> None:
        """Remove every hook; the backbone computes as before. Safe to call twice; also the exit of a `with` block."""
        while self._handles:
            self._handles.pop().remove()
        self._undo_runs()
        for hook in self._hooks.values():
            hook.outputs.clear()

    @contextmanager
    def _unheard(self) -> Iterator[None]:
        """While it lasts the sites compute and note nothing: what they say was noted when it was said first."""
        for hook in self._hooks.values():
            hook.listens = False
        try:
            yield
        finally:
            for hook in self._hooks.values():
                hook.listens = True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _add(self, name: str, path: str, site: Site) -> None:
        """Hang a site on the linear layer at `path`."""
        dense = self.backbone.get_submodule(path)
        if any(isinstance(hook, SiteHook) for hook in dense._forward_hooks.values()):
            self.close()
            raise TrainingError(
                f"The backbone is in use: {name} carries another model's adapters.", fix="Close that model first."
            )
        self.sites[attribute_of(name)] = site
        self._hooks[name] = SiteHook(site, self._architecture.rows_at(self.backbone, path))
        self._handles.append(dense.register_forward_hook(self._hooks[name]))


def _repeat(images: Tensor, texts: int) -> Tensor:
    """Each sample's image once for every text: [B, ...] -> [B·K, ...], no copy for K = 1."""
    return images if texts == 1 else images.repeat_interleave(texts, dim=0)

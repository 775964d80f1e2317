"""The model that a stage trains: a frozen trunk, mixing sites hooked into it, and one task's head.

INTERFACE SKELETON (signatures are final, bodies follow).

    spec   = MixingSpec(width=48, weighting=Weighting.WHOLE)                   # model/mixing.py
    model  = AtlasModel(backbone, HeadSpec(TaskKind.SINGLE, 10), spec, visible=3, grows=False, seed=7)
    model.load_adapters([adapter_of_job_1, adapter_of_job_2, adapter_of_job_3])  # each: `adapter/<site>/…`, `key/<site>`
    model.load_queries(queries_of_the_previous_task)                            # `queries/<site>` [3, D]
    model.load_head(head_tensors)                                               # `head/<name>`
    names  = model.trainable_names({Role.QUERIES, Role.HEAD})                    # explicit, sorted parameter names
    model.freeze_to(names)                                                      # exactly these require gradients, or TrainingError
    groups = model.optimizer_groups(lr=5e-4, query_lr_scale=100.0, weight_decay=0.01)   # for AdamW / DeepSpeed
    logits, penalty = model(batch)                                              # [B, C], scalar (0 in eval mode)
    model.export_adapter(); model.export_queries(); model.export_head()         # flat dict[str, Tensor], CPU, contiguous
    model.close()                                                               # unhook: the trunk is as before
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor, nn

from atlas_dist.core.types import Role
from atlas_dist.model.heads import HeadSpec


class AtlasOutput(NamedTuple):
    """`logits` [B, C] (C = K for `choice`); `penalty`: the unweighted orthogonality penalty of this step, a scalar, summed over
    sites (queries, and keys while an adapter grows); 0 when evaluating or with fewer than two adapters. Loss = task loss + 0.1 x it."""

    logits: Tensor
    penalty: Tensor


class AtlasModel(nn.Module):
    """See the module's docstring.

    Args:
        backbone: the trunk (`model.backbone.Backbone`); shared between models, one open AtlasModel at a time.
        head: the task's kind and number of classes.
        mixing: adapter width, weighting and options (`model.mixing.MixingSpec`).
        visible: how many earlier adapters of the bank this model sees (T; may be 0).
        grows: whether a new adapter is added (stage two, individual adapters).
        seed: of the new tensors (head, new adapter, fresh queries).
        second_image_type: modality type of a pair's second image (1: as ATLAS; 2: as CLiMB).
        normalize_ortho: unit rows in the penalty (default false: faithful).
    """

    def forward(self, batch: Mapping[str, Tensor]) -> AtlasOutput:  # type: ignore[empty-body]
        """Batch: `input_ids`, `attention_mask`, `token_type_ids` [B, K, L] int64; `pixel_values` [B, I, 3, H, W] normalised;
        optional `pixel_mask` [B, I, H, W]."""

    def trainable_names(self, roles: Iterable[Role]) -> tuple[str, ...]:  # type: ignore[empty-body]
        """Names (as in `named_parameters`) of the parameters that these roles train, sorted."""

    def freeze_to(self, names: Sequence[str]) -> None:
        """Make exactly `names` require gradients; TrainingError with the difference when that is not possible."""

    def optimizer_groups(  # type: ignore[empty-body]
        self, *, lr: float, query_lr_scale: float, weight_decay: float
    ) -> list[dict[str, Any]]:
        """Parameter groups of the trainable parameters: dicts with `name`, `params`, `lr`, `weight_decay`."""

    def load_adapters(self, adapters: Sequence[Mapping[str, Tensor]]) -> None:
        """Load the visible adapters, one dict each, in bank order; DataError on any missing, extra, misshapen or non-finite tensor."""

    def load_queries(self, queries: Mapping[str, Tensor]) -> None:
        """Load `queries/<site>` [T, D] or [T, 24, D] of the visible adapters (and, after stage two, of the grown one: T + 1)."""

    def load_grown(self, adapter: Mapping[str, Tensor]) -> None:
        """Load the grown adapter (same names as one element of `load_adapters`)."""

    def load_head(self, head: Mapping[str, Tensor]) -> None:
        """Load `head/<name>`."""

    def export_adapter(self) -> dict[str, Tensor]:  # type: ignore[empty-body]
        """The grown adapter: `adapter/<site>/{down,up}.{weight,bias}` and, unless plain, `key/<site>`."""

    def export_queries(self) -> dict[str, Tensor]:  # type: ignore[empty-body]
        """`queries/<site>` of all T (+ 1 grown) adapters."""

    def export_head(self) -> dict[str, Tensor]:  # type: ignore[empty-body]
        """`head/<name>`."""

    def record_alpha(self, on: bool = True) -> None:
        """Start or stop keeping the coefficients of each forward pass."""

    def alpha_report(self) -> dict[str, Tensor]:  # type: ignore[empty-body]
        """Coefficients of the last forward: {site: [B, T]} ([B, T, D] for `dimension`), detached."""

    def close(self) -> None:
        """Remove every hook; the trunk computes as before. Also a context manager."""

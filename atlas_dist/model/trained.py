"""Which parameters of a model train, and how: the choice by name, and AdamW's groups."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from atlas_dist.errors import TrainingError


def freeze_to(model: nn.Module, names: Sequence[str]) -> None:
    """Make exactly `names` require gradients.

    Raises:
        TrainingError: a name is no parameter of this model, or nothing would train; the message lists what is wrong.
    """
    parameters = dict(model.named_parameters())
    unknown = sorted(set(names) - set(parameters))
    if unknown or not names:
        raise TrainingError(
            f"Cannot train {unknown or 'nothing'}: the model has {len(parameters)} parameters and"
            f" {'these are not among them' if unknown else 'the stage names none'}."
        )
    wanted = set(names)
    for name, parameter in parameters.items():
        parameter.requires_grad_(name in wanted)
        parameter.grad = None
    trains = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    if trains != wanted:
        raise TrainingError(f"Parameters that train and should not, or the reverse: {sorted(trains ^ wanted)}.")
    model.train(model.training)


def optimizer_groups(
    model: nn.Module,
    *,
    lr: float,
    query_lr_scale: float,
    weight_decay: float,
    backbone_lr_scale: float = 1.0,
    coefficient_lr: float = 0.0,
    head_lr: float = 0.0,
) -> list[dict[str, Any]]:
    """Groups of the parameters that require gradients: dicts with `name`, `params`, `lr`, `weight_decay`; no empty ones.

    `queries` (of the frozen adapters) learn at `lr` x `query_lr_scale`; `weights` and `biases` at `lr`; where the backbone
    has a rate of its own (`backbone_lr_scale` is not 1), its `backbone weights` and `backbone biases` at `lr` x that. Biases
    do not decay, nor does the text embedding's LayerNorm; the head's LayerNorm and the backbone's others do. That is what the
    released optimizer really did (the `optimizer` entries of meta.json beside the released code's results), since it spelled
    its exceptions by name. `coefficients` learn at `coefficient_lr`, without decay: nothing pulls them but the task. Where
    `head_lr` is given, `head weights` and `head biases` learn at that.
    """
    rates = {"queries": lr * query_lr_scale, "coefficients": coefficient_lr}
    apart = {"backbone": lr * backbone_lr_scale} if backbone_lr_scale != 1.0 else {}
    apart |= {"head": head_lr} if head_lr else {}
    rates |= {f"{part} {name}": rate for part, rate in apart.items() for name in ("weights", "biases")}
    members: dict[str, list[nn.Parameter]] = {"queries": [], "weights": [], "biases": []}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            part = name.partition(".")[0]
            own = f"{part} " if part in apart else ""
            members.setdefault(f"{own}{_optimizer_group(name)}", []).append(parameter)
    return [
        {
            "name": name,
            "params": params,
            "lr": rates.get(name, lr),
            "weight_decay": 0.0 if name.endswith(("biases", "coefficients")) else weight_decay,
        }
        for name, params in members.items()
        if params
    ]


def _optimizer_group(name: str) -> str:
    """Which group of `optimizer_groups` a parameter belongs to."""
    if name.endswith(".frozen.query"):
        return "queries"
    if ".coefficients." in name:
        return "coefficients"
    leaf = name.rsplit(".", 1)[-1]
    if leaf.endswith("bias") or name.endswith(".text_embeddings.LayerNorm.weight"):
        return "biases"
    return "weights"

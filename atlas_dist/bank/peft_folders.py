"""LoRA adapters of a bank as folders that PEFT loads: `PeftModel.from_pretrained(backbone, "FOLDER/TASK")`.

    TASK/adapter_config.json          PEFT's LoraConfig
    TASK/adapter_model.safetensors    lora_A and lora_B of each linear layer
    TASK/head.safetensors             the task's head, which PEFT has no place for: `head/<name>` as in a bank
    TASK/ README.md                   what it is
    TASK/imported/NAME/…              licence, model card and provenance of imported adapters that are in it, or beneath it

An imported adapter has a folder of its own, with the licence files that came with it.

Either each task's own adapter (`ADAPTER`), or what a task makes of all the adapters that it reads (`TASK`). The latter is exact:
Σ α_i s_i B_i A_i x is one LoRA adapter whose rank is the sum of theirs.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from atlas_dist.bank.package import require_new
from atlas_dist.bank.weights import BankWeights, LearntWeights
from atlas_dist.core.imported import CARD, Provenance
from atlas_dist.core.keys import check_name
from atlas_dist.core.result_files import PROVENANCE_FILE
from atlas_dist.errors import ConfigError, StoreError
from atlas_dist.model.backbone_refs import BACKBONES
from atlas_dist.model.lora import ranks_in
from atlas_dist.train.inputs import pack_tensors


class PeftContent(StrEnum):
    """What a folder holds."""

    ADAPTER = "adapter"
    """The task's own adapter."""
    TASK = "task"
    """All adapters that the task reads, with its coefficients, as one."""


@dataclass(frozen=True)
class _Layer:
    """A [r, D_in], B [D_out, r] and s at one linear layer."""

    down: Tensor
    up: Tensor
    scale: float


def export_peft(weights: BankWeights, folder: Path, content: PeftContent) -> dict[str, Path]:
    """Write one folder a task; returns them by the tasks' names. Tasks without an adapter of their own have none in `ADAPTER`.

    Raises:
        ConfigError: the bank's adapters are bottlenecks, or there is nothing to write.
        DataError: `folder` holds something already. StoreError: it cannot be written.
    """
    if weights.method().mixing.lora is None:
        raise ConfigError(
            "The adapters of this bank are bottlenecks, which PEFT's LoRA cannot be.",
            fix="Learn with method.settings.adapter=lora, or export without --format peft.",
        )
    require_new(folder)
    written: dict[str, Path] = {}
    for key, one in weights.imported.items() if content is PeftContent.ADAPTER else ():
        name = check_name(one.entry.name, "imported adapter")
        layers = _layers_of(one.adapter)
        files = {
            "adapter_config.json": json.dumps(_config(weights, layers), indent=2).encode(),
            "adapter_model.safetensors": pack_tensors(_tensors(layers)),
            PROVENANCE_FILE: one.entry.provenance.to_json(),
            "README.md": _imported_card(weights, key, layers).encode(),
            **_texts(one.entry.provenance, f"imported/{name}", {CARD}),
            **_texts(one.entry.provenance, ".", set(one.entry.provenance.licence_files)),
        }
        _write(folder / name, files)
        written[one.entry.name] = folder / name
    for key, task in weights.tasks.items():
        layers = _own(task) if content is PeftContent.ADAPTER else _whole(weights, key)
        if not layers:
            continue
        name = check_name(task.learnt.name, "task")
        files = {
            "adapter_config.json": json.dumps(_config(weights, layers), indent=2).encode(),
            "adapter_model.safetensors": pack_tensors(_tensors(layers)),
            "README.md": _card(weights, key, layers, content).encode(),
        }
        if head := {n: t for n, t in task.own.items() if n.startswith("head/")}:
            files["head.safetensors"] = pack_tensors(head)
        for seen in weights.view(key):
            if seen in weights.imported:
                provenance = weights.imported[seen].entry.provenance
                at = f"imported/{check_name(provenance.name, 'imported adapter')}"
                files |= {f"{at}/{PROVENANCE_FILE}": provenance.to_json(), **_texts(provenance, at, set(provenance.texts))}
        _write(folder / name, files)
        written[task.learnt.name] = folder / name
    if not written:
        raise ConfigError(
            "None of these tasks has an adapter of its own.", fix="Use --format peft-task: what they make of others' adapters."
        )
    return written


def _write(folder: Path, files: Mapping[str, bytes]) -> None:
    try:
        for file, data in files.items():
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            (folder / file).write_bytes(data)
    except OSError as error:
        raise StoreError(f"Cannot write {folder}: {error}.", fix="Is the disk full, or the folder not yours?") from error


def _texts(provenance: Provenance, folder: str, names: set[str]) -> dict[str, bytes]:
    """Texts that came with an imported adapter, as files. Names of files come from outside."""
    return {
        f"{folder}/{check_name(name, 'file name')}".removeprefix("./"): text.encode()
        for name, text in provenance.texts.items()
        if name in names
    }


def _own(task: LearntWeights) -> dict[str, _Layer]:
    """A task's own adapter, by the path of the linear layer; {} where it has none."""
    return _layers_of(task.adapter)


def _layers_of(adapter: Mapping[str, Tensor]) -> dict[str, _Layer]:
    return {
        path: _Layer(
            adapter[f"adapter/{path}/lora_A.weight"],
            adapter[f"adapter/{path}/lora_B.weight"],
            float(adapter[f"adapter/{path}/scale"]),
        )
        for path in (ranks_in(adapter) if adapter else ())
    }


def _whole(weights: BankWeights, key: str) -> dict[str, _Layer]:
    """What a task makes of the adapters that it reads: its coefficients and their s are folded into B, so s is 1."""
    task, view = weights.tasks[key], weights.view(key)
    weighed = [seen for seen in view if seen != key] if weights.method().mixing.weighs else []
    parts: dict[str, list[tuple[Tensor, Tensor]]] = {}
    for seen in view:
        for path, layer in _layers_of(weights.adapters[seen]).items():
            start = task.own.get(f"coefficients/{path}/start")
            alpha = float(start[weighed.index(seen)]) if seen in weighed and start is not None else 1.0
            parts.setdefault(path, []).append((layer.down, alpha * layer.scale * layer.up))
    return {
        path: _Layer(torch.cat([a for a, _ in each]), torch.cat([b for _, b in each], dim=1), 1.0) for path, each in parts.items()
    }


def _tensors(layers: Mapping[str, _Layer]) -> dict[str, Tensor]:
    """As PEFT names them."""
    return {
        f"base_model.model.{path}.{name}.weight": value
        for path, layer in layers.items()
        for name, value in (("lora_A", layer.down), ("lora_B", layer.up))
    }


def _config(weights: BankWeights, layers: Mapping[str, _Layer]) -> dict[str, Any]:
    """PEFT's LoraConfig: the commonest rank and alpha, and where layers have others."""
    ranks = {path: len(layer.down) for path, layer in layers.items()}
    alphas = {path: _tidy(layer.scale * ranks[path]) for path, layer in layers.items()}
    rank, alpha = (Counter(values.values()).most_common(1)[0][0] for values in (ranks, alphas))
    base, known = weights.base, BACKBONES.get(weights.base.name)
    hub = known is not None and known.revision is not None and not base.source
    return {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": known.source if hub and known else base.source or base.name,
        "revision": (known.revision if hub and known else base.revision) or None,
        "r": rank,
        "lora_alpha": alpha,
        "rank_pattern": {path: r for path, r in ranks.items() if r != rank},
        "alpha_pattern": {path: a for path, a in alphas.items() if a != alpha},
        "target_modules": list(layers),
        "lora_dropout": 0.0,
        "bias": "none",
        "use_rslora": False,
        "use_dora": False,
        "fan_in_fan_out": False,
        "modules_to_save": None,
        "inference_mode": True,
    }


def _tidy(alpha: float) -> int | float:
    """A whole number where rounding is all that keeps it from one."""
    return round(alpha) if abs(alpha - round(alpha)) < 1e-5 * max(1.0, abs(alpha)) else alpha


def _card(weights: BankWeights, key: str, layers: Mapping[str, _Layer], content: PeftContent) -> str:
    task, base = weights.tasks[key].learnt, weights.base
    others = [weights.name_of(seen) for seen in weights.view(key) if seen != key]
    told = [weights.imported[seen].entry.provenance for seen in weights.view(key) if seen in weights.imported]
    if content is PeftContent.TASK:
        reads = ", ".join([*others, task.name] if task.has_adapter else others)
        what = f"what the task `{task.name}` makes of the adapters of {reads}"
    else:
        what = f"the adapter of the task `{task.name}`"
        what += (
            f", which was learnt on top of those of {', '.join(others)}: alone it is not all that the task uses" if others else ""
        )
    return f"""---
library_name: peft
base_model: {json.dumps(base.source or base.name)}
tags: [atlas-dist, lora]
---

# {task.name}

LoRA at {len(layers)} linear layers of `{base.name}` (digest `{base.digest}`{base.sees}): {what}. Written by atlas-dist from run
`{weights.run}`, job `{key}`; validation score there {task.score:.2f} %. {_ABOUT_HEAD[task.task.kind.generates]}
The licences of the backbone and of the data sets apply{_licences(told)}.
"""


_ABOUT_HEAD = {
    False: "The task's head is in `head.safetensors`; PEFT does not\nread it.",
    True: "Its answers are written by the backbone: there is no head.",
}


def _licences(told: list[Provenance]) -> str:
    if not told:
        return ""
    named = ", ".join(f"`{one.name}` ({one.licence or 'its model card names none'})" for one in told)
    return f", and those of the imported adapters that it was learnt with: {named}; their texts are in `imported/`"


def _imported_card(weights: BankWeights, key: str, layers: Mapping[str, _Layer]) -> str:
    told, base = weights.imported[key].entry.provenance, weights.base
    # The hub knows licences by their identifiers alone; a name or a link may stand behind.
    licence = f"license: {json.dumps(told.licence.partition(' (')[0].split(', '))}\n" if told.licence else ""
    return f"""---
library_name: peft
base_model: {json.dumps(told.base_model or base.source or base.name)}
{licence}tags: [atlas-dist, lora]
---

# {told.name}

LoRA at {len(layers)} linear layers of `{base.name}` (digest `{base.digest}`). Nobody trained it here: it was imported from
`{told.source}`, and its weights are what they were, in float32. Licence: {told.licence or "its model card names none"}; the texts
that came with it lie beside this file and in `imported/`, where it came from is in `{PROVENANCE_FILE}`.
"""

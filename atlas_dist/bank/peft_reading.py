"""Reading a LoRA adapter as PEFT saves it, believing nothing that was not checked, and refusing what LoRA alone is not.

    adapter_config.json           PEFT's LoraConfig
    adapter_model.safetensors     base_model.model.<path>.lora_A.weight [r, D_in] and lora_B.weight [D_out, r]
    README.md, LICENSE*, …        texts that travel along

What is made of it are the tensors of an adapter of this package (model/lora.py): `adapter/<path>/lora_A.weight`, `lora_B.weight`
and `scale`, which is lora_alpha / r, with rsLoRA lora_alpha / sqrt(r), each as the patterns say for the layer.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors.torch import load as parse_tensors
from torch import Tensor, nn

from atlas_dist.core.imported import CARD
from atlas_dist.core.keys import canonical_json, sha256_hex
from atlas_dist.errors import DataError, StoreError
from atlas_dist.model.lora import ranks_in
from atlas_dist.model.targets import linear_paths
from atlas_dist.store.safetensors_check import check_safetensors
from atlas_dist.validation import faults

CONFIG, WEIGHTS, PICKLED = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"
LICENCES = re.compile(r"(?i)(licen[cs]e|notice|copying|use_policy|usage_policy)[\w.-]{0,40}")
"""Names of files whose text has to travel along."""
_CONFIG_LIMIT, _TEXT_LIMIT, _WEIGHTS_LIMIT = 4 << 20, 1 << 20, 4 << 30
_LFS = b"version https://git-lfs.github.com/spec/"
_PREFIX = "base_model.model."
_DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
_CONVERT = (
    'python -c "import torch; from safetensors.torch import save_file; '
    f"t = torch.load('{PICKLED}', map_location='cpu', weights_only=True); "
    f"save_file({{n: v.contiguous() for n, v in t.items()}}, '{WEIGHTS}')\""
)

_ELSE = {
    "use_dora": "DoRA scales each row of the layer's own weight, which a sum of adapters cannot do",
    "modules_to_save": "whole layers were trained beside the adapter, and a bank shares one frozen backbone",
    "trainable_token_indices": "tokens of the embedding were trained beside the adapter",
    "layer_replication": "layers of the backbone were repeated, and here the backbone stays as it is",
    "lora_bias": "B has a bias, and adapters here have none",
    "target_parameters": "it acts on parameters that are no linear layer's weight",
    "fan_in_fan_out": "its layers keep their weights transposed, and those of our backbones do not",
    "alora_invocation_tokens": "activated LoRA is on for some tokens only",
    "use_qalora": "QA-LoRA pools the layer's input",
    "velora_config": "VeLoRA is another computation",
    "monteclora_config": "MonteCLoRA draws its weights anew in every pass",
    "use_bdlora": "BD-LoRA's factors are block-diagonal",
    "arrow_config": "Arrow routes between several adapters",
    "kasa_config": "KaSA changes the layer's own weight",
}
"""Fields of PEFT's LoraConfig that make it another computation than W x + s B A x -> why it cannot be one of our adapters."""
_STARTS = (True, False, "gaussian", "eva", "orthogonal")
"""`init_lora_weights` that leave the backbone as it is. Others (PiSSA, OLoRA, LoftQ, CorDA, LoRA-GA) change its weights too."""
_IGNORED = """
    task_type peft_type auto_mapping peft_version base_model_name_or_path revision inference_mode r target_modules
    exclude_modules lora_alpha lora_dropout bias use_rslora init_lora_weights layers_to_transform layers_pattern rank_pattern
    alpha_pattern megatron_config megatron_core loftq_config eva_config corda_config lora_ga_config qalora_group_size
    runtime_config ensure_weight_tying
"""
"""Fields that change nothing once an adapter is trained, or are looked at here."""
_KNOWN = frozenset(_IGNORED.split()) | set(_ELSE)


class _Config(BaseModel):
    """What of an `adapter_config.json` says how the tensors are used."""

    model_config = ConfigDict(frozen=True, extra="allow")

    peft_type: str = ""
    base_model_name_or_path: str | None = None
    revision: str | None = None
    r: int = Field(default=8, ge=1)
    lora_alpha: float = Field(default=8.0, allow_inf_nan=False)
    target_modules: list[str] | str | None = None
    exclude_modules: list[str] | str | None = None
    layers_to_transform: list[int] | int | None = None
    bias: str = "none"
    use_rslora: bool = False
    init_lora_weights: bool | str = True
    rank_pattern: dict[str, Annotated[int, Field(ge=1)]] | None = None
    alpha_pattern: dict[str, float] | None = None


@dataclass(frozen=True)
class PeftFolder:
    """A LoRA adapter as it was read; it has not met a backbone yet."""

    config: Mapping[str, Any]
    parsed: _Config
    layers: Mapping[str, tuple[Tensor, Tensor]]
    """Path as PEFT names it -> A [r, D_in] and B [D_out, r], float32."""
    files: Mapping[str, str]
    """Name of each file that was read -> its sha256."""
    texts: Mapping[str, str]

    @property
    def base_model(self) -> str:
        """`base_model_name_or_path`; "" = it names none."""
        return self.parsed.base_model_name_or_path or ""

    @property
    def revision(self) -> str:
        """Of the base model; "" = it names none."""
        return self.parsed.revision or ""

    @property
    def licence(self) -> str:
        """As the model card's front matter names it; "" = it does not."""
        front = re.match(r"---\s*\n(.*?)\n---", self.texts.get(CARD, ""), re.DOTALL)
        try:
            said = yaml.safe_load(front[1]) if front else None
        except yaml.YAMLError:
            said = None
        if not isinstance(said, dict):
            return ""
        named = said.get("license")
        name = ", ".join(map(str, named)) if isinstance(named, list) else str(named or "")
        further = ", ".join(str(said[each]) for each in ("license_name", "license_link") if said.get(each))
        return f"{name} ({further})" if further else name


def is_peft(folder: Path) -> bool:
    """Whether a folder is of PEFT rather than an exported bank."""
    try:
        raw = json.loads((folder / CONFIG).read_bytes()[:_CONFIG_LIMIT])
    except (OSError, ValueError, RecursionError):
        return (folder / PICKLED).is_file()
    return isinstance(raw, dict) and "peft_type" in raw


def read_peft(folder: Path) -> PeftFolder:
    """Read a LoRA adapter.

    Raises:
        DataError: it is something else than LoRA, or a file is missing, cut, damaged or no more than a pointer.
        StoreError: a file cannot be read.
    """
    data = {CONFIG: _bytes(folder, CONFIG, _CONFIG_LIMIT)}
    config = _json(data[CONFIG], folder / CONFIG)
    parsed = _checked(config, folder / CONFIG)
    if not (folder / WEIGHTS).exists() and (folder / PICKLED).exists():
        raise DataError(
            f"{folder} has its weights in {PICKLED}, a pickle, which may run code when it is read.",
            fix=f"If you trust whoever made it, convert it there: {_CONVERT}",
        )
    data[WEIGHTS] = _bytes(folder, WEIGHTS, _WEIGHTS_LIMIT)
    layers = _layers(data[WEIGHTS], folder / WEIGHTS)
    for name in sorted(entry.name for entry in folder.iterdir() if entry.is_file()):
        if name == CARD or LICENCES.fullmatch(name):
            data[name] = _bytes(folder, name, _TEXT_LIMIT)
    texts = {name: raw.decode("utf-8", errors="replace") for name, raw in data.items() if name not in (CONFIG, WEIGHTS)}
    return PeftFolder(config, parsed, layers, {name: sha256_hex(raw) for name, raw in data.items()}, texts)


def fitted(peft: PeftFolder, backbone: nn.Module) -> dict[str, Tensor]:
    """The adapter's tensors as a bank has them, at the linear layers of a backbone.

    Raises:
        DataError: a layer that the backbone does not have, or a matrix of another shape than that layer's.
    """
    linear = {path: backbone.get_submodule(path) for path in linear_paths(backbone)}
    wrapper = _wrapper(peft.layers, linear, str(getattr(backbone, "base_model_prefix", "")))
    _check_targets(peft.parsed, peft.layers, [wrapper + path for path in linear])
    tensors: dict[str, Tensor] = {}
    for name, (down, up) in peft.layers.items():
        layer, path = linear[name.removeprefix(wrapper)], name.removeprefix(wrapper)
        rank = _of_pattern(peft.parsed.rank_pattern, name, peft.parsed.r)
        shapes = {"lora_A": (rank, layer.in_features), "lora_B": (layer.out_features, rank)}
        for part, value in (("lora_A", down), ("lora_B", up)):
            if tuple(value.shape) != shapes[part]:
                raise DataError(
                    f"{part} of {name} is {list(value.shape)}; with rank {rank} at a layer from {layer.in_features} to "
                    f"{layer.out_features} it should be {list(shapes[part])}.",
                    fix="The adapter belongs to a backbone of another size, or its adapter_config.json to another adapter.",
                )
        alpha = _of_pattern(peft.parsed.alpha_pattern, name, peft.parsed.lora_alpha)
        scale = alpha / (math.sqrt(rank) if peft.parsed.use_rslora else rank)
        tensors |= {f"adapter/{path}/lora_A.weight": down, f"adapter/{path}/lora_B.weight": up}
        tensors[f"adapter/{path}/scale"] = torch.tensor(scale, dtype=torch.float32)
        if not math.isfinite(float(tensors[f"adapter/{path}/scale"])):
            raise DataError(f"lora_alpha of {name} is {alpha:g}, beyond float32.", fix="Look at adapter_config.json.")
    ranks_in(tensors)
    return tensors


def _checked(config: Mapping[str, Any], path: Path) -> _Config:
    """The configuration, if it is of LoRA and nothing besides."""
    kind = config.get("peft_type")
    if kind != "LORA":
        raise DataError(
            f"{path}: peft_type is {kind!r:.60}; only LORA can be imported.", fix="Train a LoRA adapter, or merge this one."
        )
    for name, why in _ELSE.items():
        if config.get(name):
            raise DataError(
                f"{path}: {name} is {_short(config[name])}: {why}.", fix="Train the adapter again as plain LoRA, without it."
            )
    if config.get("bias", "none") != "none":
        raise DataError(
            f"{path}: bias is {_short(config['bias'])}: biases of the backbone were trained beside the adapter.",
            fix="Train the adapter again with bias='none'.",
        )
    start = config.get("init_lora_weights", True)
    if start not in _STARTS:
        raise DataError(
            f"{path}: init_lora_weights is {_short(start)}, which changes the weights of the backbone as well.",
            fix="Convert it to plain LoRA when it is saved (save_pretrained with path_initial_model_for_weight_conversion).",
        )
    unknown = sorted(name for name, value in config.items() if name not in _KNOWN and value)
    if unknown:
        raise DataError(
            f"{path}: {unknown[0]} is {_short(config[unknown[0]])}, which this version does not know: the adapter may compute "
            "something else than LoRA.",
            fix="Remove the field if you know that it changes nothing, or use a newer atlas-dist.",
        )
    try:
        return _Config.model_validate(config)
    except ValidationError as error:
        raise DataError(f"{path}: {faults(error)[0]}", fix="Save the adapter again with PEFT.") from None


def _layers(data: bytes, path: Path) -> dict[str, tuple[Tensor, Tensor]]:
    check_safetensors(data, str(path))
    found: dict[str, dict[str, Tensor]] = {}
    tensors: dict[str, Tensor] = parse_tensors(data)
    for name, value in tensors.items():
        parts = re.fullmatch(rf"{re.escape(_PREFIX)}(.+)\.(lora_[AB])(?:\.default)?\.weight", name)
        if parts is None:
            raise DataError(
                f"{path} has the tensor {name}, which is no lora_A or lora_B of a linear layer.",
                fix="Train the adapter again as plain LoRA, at linear layers only.",
            )
        if value.dtype not in _DTYPES or value.dim() != 2:
            raise DataError(
                f"{path}: {name} is {list(value.shape)} of {value.dtype}; a matrix of floating point numbers is needed."
            )
        narrow = value.to(torch.float32)
        if not bool(torch.isfinite(narrow).all()):
            raise DataError(f"{path}: {name} has values beyond float32.")
        found.setdefault(parts[1], {})[parts[2]] = narrow
    half = sorted(name for name, pair in found.items() if len(pair) != 2)
    if half or not found:
        what = f"only one of lora_A and lora_B of {half[0]}" if half else "no tensor at all"
        raise DataError(f"{path} has {what}.", fix="Save the adapter again with PEFT.")
    return {name: (pair["lora_A"], pair["lora_B"]) for name, pair in found.items()}


def _wrapper(names: Iterable[str], linear: Mapping[str, nn.Module], prefix: str) -> str:
    """What stands before the backbone's own paths: adapters are often trained on a model with a head, which holds the backbone
    under its architecture's name (`vilt.encoder…`)."""
    names = list(names)
    for wrapper in ("", f"{prefix}." if prefix else ""):
        if all(name.startswith(wrapper) and name.removeprefix(wrapper) in linear for name in names):
            return wrapper
    foreign = next(name for name in names if name not in linear and name.removeprefix(f"{prefix}.") not in linear)
    raise DataError(
        f"The adapter acts on {foreign}, which is no linear layer of this backbone.",
        fix=f"Set backbone.* to the one that it was trained on. This one's linear layers end in: {_ends(linear)}.",
    )


def _check_targets(config: _Config, names: Iterable[str], linear: Iterable[str]) -> None:
    """Whether `target_modules` and the tensors say the same."""
    names, linear, targets = set(names), list(linear), config.target_modules
    if targets is None or targets == "all-linear" or config.exclude_modules or config.layers_to_transform is not None:
        return
    for target in [targets] if isinstance(targets, str) else targets:
        try:
            meant = [path for path in linear if _named(target, path, whole=isinstance(targets, str))]
        except re.error as error:
            raise DataError(f"target_modules is {target!r:.80}, which is no regular expression: {error}.") from None
        if not meant:
            raise DataError(
                f"target_modules names {target!r:.80}, which fits no linear layer of this backbone.",
                fix=f"Its linear layers end in: {_ends(linear)}.",
            )
        missing = [path for path in meant if path not in names]
        if missing:
            raise DataError(
                f"target_modules names {target!r:.80}, but {WEIGHTS} has nothing for {missing[0]}"
                + (f" and {len(missing) - 1} layers more." if len(missing) > 1 else "."),
                fix="Save the adapter again with PEFT: a part of it is missing.",
            )


def _named(target: str, path: str, *, whole: bool) -> bool:
    if whole:
        return re.fullmatch(target, path) is not None
    return path == target or path.endswith(f".{target}")


def _of_pattern(pattern: Mapping[str, Any] | None, name: str, default: Any) -> Any:
    """As PEFT looks up a layer: the first key that matches the end of its path."""
    for key, value in (pattern or {}).items():
        try:
            if re.match(rf"(.*\.)?({key})$", name):
                return value
        except re.error as error:
            raise DataError(f"rank_pattern or alpha_pattern has {key!r:.80}, which is no regular expression: {error}.") from None
    return default


def _ends(paths: Iterable[str]) -> str:
    return ", ".join(sorted({path.rpartition(".")[2] for path in paths}))


def _short(value: Any) -> str:
    return f"{value!r:.60}"


def _json(data: bytes, path: Path) -> dict[str, Any]:
    try:
        raw = json.loads(data)
        canonical_json(raw)  # NaN, infinity and half of a character are no JSON, and could not be written down again
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is not JSON: {error}.", fix="Copy or download it again.") from error
    if not isinstance(raw, dict):
        raise DataError(f"{path} is not a JSON object.", fix="Name the folder of a LoRA adapter that PEFT saved.")
    return raw


def _require_inside(path: Path, folder: Path) -> None:
    """A link may lead to the blobs of the hub's cache that the folder is a snapshot of, and nowhere else: what is read here is
    passed on. Raises DataError."""
    target, here = path.resolve(), folder.resolve()
    if target.is_relative_to(here) or (target.parent.name == "blobs" and here.is_relative_to(target.parent.parent)):
        return
    raise DataError(f"{path} is a link to {target}, outside the folder.", fix="Copy the file itself there.")


def _bytes(folder: Path, name: str, limit: int) -> bytes:
    path = folder / name
    try:
        _require_inside(path, folder)
        if path.stat().st_size > limit:
            raise DataError(f"{path} has {path.stat().st_size} bytes, more than the {limit} allowed here.")
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise DataError(f"There is no {path}.", fix="Name the folder of a LoRA adapter that PEFT saved.") from error
    except OSError as error:
        raise StoreError(f"Cannot read {path}: {error}.") from error
    if data.startswith(_LFS):
        raise DataError(
            f"{path} is a Git LFS pointer of {len(data)} bytes, not the file itself.",
            fix="Fetch it: git lfs pull, in that folder.",
        )
    return data

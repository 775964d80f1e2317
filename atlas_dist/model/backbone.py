"""The frozen vision-language transformer everything else is hung on: names, strict loading, identity, adapter sites.

A backbone is chosen by name:

    tiny            our own small ViLT, weights committed in ``assets/tiny_vilt``: the demo and the tests learn with it
    random-tiny     a few thousand random weights from a seed: tests of plumbing, never of learning
    vilt-b32-mlm    dandelin/vilt-b32-mlm from the Hugging Face hub, at a pinned revision: the paper's

Any other folder or hub checkpoint of the ViLT architecture is reached with a ``BackboneRef`` of one's own.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoTokenizer, PreTrainedTokenizerFast, ViltConfig, ViltModel
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.utils import logging as transformers_logging

from atlas_dist.errors import ConfigError, DataError
from atlas_dist.model.vilt import accelerate_vilt, uniform_pixel_mask

TINY_FOLDER = Path(__file__).parent / "assets" / "tiny_vilt"

# What ViltForMaskedLM adds on top of ViltModel. A checkpoint may bring exactly these and nothing else that we do not load.
_MLM_HEAD = (
    "mlm_score.bias",
    "mlm_score.decoder.bias",
    "mlm_score.decoder.weight",
    "mlm_score.transform.LayerNorm.bias",
    "mlm_score.transform.LayerNorm.weight",
    "mlm_score.transform.dense.bias",
    "mlm_score.transform.dense.weight",
    # A constant buffer that old versions of transformers saved with the weights.
    "vilt.embeddings.text_embeddings.position_ids",
)

# The output of the attention projection and of the MLP's second linear layer, both before the residual is added (METHOD.md).
_SITES_OF_LAYER = {"aftattn": "attention.output.dense", "aftmlp": "output.dense"}

# Text is type 0, a picture type 1, the second picture of a pair type 2. Checkpoints made for one picture lack the last row.
_IMAGE_TYPES = 3


@dataclass(frozen=True)
class BackboneRef:
    """Where weights come from.

    Attributes:
        name: what reports and errors call it.
        source: a folder, or a repository id on the hub; "" for random weights.
        revision: the hub commit (full hash); None for folders.
        leftovers: checkpoint keys that we knowingly do not load. Any other surplus or missing key is an error.
    """

    name: str
    source: str
    revision: str | None = None
    leftovers: tuple[str, ...] = ()


BACKBONES: dict[str, BackboneRef] = {
    ref.name: ref
    for ref in (
        BackboneRef("tiny", str(TINY_FOLDER)),
        BackboneRef("random-tiny", ""),
        # The first commit with weights, config and fixed tokenizer; later ones change the README and a length we set ourselves.
        BackboneRef("vilt-b32-mlm", "dandelin/vilt-b32-mlm", "6acc83f152113edb2d3b503e2ea4b107ed592a49", _MLM_HEAD),
    )
}


@dataclass(frozen=True)
class AdapterSite:
    """A place for adapters: ``name`` such as "L0.aftattn", the module ``path`` of its linear layer, its output ``width`` D."""

    name: str
    path: str
    width: int


@dataclass(frozen=True, eq=False)
class Backbone:
    """A frozen trunk with its tokenizer.

    Attributes:
        name: the name it was loaded by.
        model: in evaluation mode, float32, no dropout, nothing requires a gradient; accelerated (see ``vilt.py``).
        tokenizer: fast tokenizer with [PAD], [CLS], [SEP].
        digest: sha256 (hex) of weights, tokenizer and configuration: equal digests compute equal results.
        pixel_mean, pixel_std: per channel, for pixels in [0, 1].
    """

    name: str
    model: ViltModel
    tokenizer: PreTrainedTokenizerFast
    digest: str
    pixel_mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    pixel_std: tuple[float, float, float] = (0.5, 0.5, 0.5)

    @property
    def image_size(self) -> int:
        """Side in pixels of the square pictures it was trained on."""
        return int(cast(int, self.model.config.image_size))

    @property
    def width(self) -> int:
        """Hidden width D, which is also the width of the pooled output."""
        return int(self.model.config.hidden_size)

    @property
    def max_text_tokens(self) -> int:
        """Most text tokens a sample may have, [CLS] and [SEP] included."""
        return int(self.model.config.max_position_embeddings)

    def encode(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        token_type_ids: Tensor | None,
        pixel_values: Tensor,
        pixel_mask: Tensor | None = None,
        image_type: int = 1,
    ) -> Tensor:
        """Pooled output [B, D] of texts [B, T] with pictures [B, 3, H, W]; arguments as in ``encode_all``."""
        _, pooled = self.encode_all(input_ids, attention_mask, token_type_ids, pixel_values, pixel_mask, image_type)
        return pooled

    def encode_all(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        token_type_ids: Tensor | None,
        pixel_values: Tensor,
        pixel_mask: Tensor | None = None,
        image_type: int = 1,
    ) -> tuple[Tensor, Tensor]:
        """Last hidden states [B, T + 1 + patches, D] and pooled output [B, D].

        Args:
            input_ids, attention_mask, token_type_ids: int64 [B, T]; types None = all 0.
            pixel_values: [B, 3, H, W], normalised with ``pixel_mean`` and ``pixel_std``.
            pixel_mask: [B, H, W], 1 where a pixel is real; None = all are, which is also the fast path.
            image_type: 1, or 2 for the second picture of a pair.
        """
        result = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            token_type_ids=token_type_ids,
            pixel_values=pixel_values,
            pixel_mask=uniform_pixel_mask(pixel_values) if pixel_mask is None else pixel_mask,
            image_token_type_idx=image_type,
            return_dict=True,
        )
        result = cast(BaseModelOutputWithPooling, result)
        return cast(Tensor, result.last_hidden_state), cast(Tensor, result.pooler_output)


def load_backbone(which: str | BackboneRef, *, seed: int = 0) -> Backbone:
    """Load a backbone by name (a key of ``BACKBONES``) or by reference.

    The global random state is left as it was. ``seed`` matters to "random-tiny" only.

    Raises:
        ConfigError: an unknown name.
        DataError: the checkpoint cannot be reached, or its keys or shapes are not exactly those of the model.
    """
    ref = which if isinstance(which, BackboneRef) else _look_up(which)
    with torch.random.fork_rng(devices=[]), _no_progress_bar():
        model = _load_weights(ref) if ref.source else _random_model(seed)
        _offer_image_types(model)
    tokenizer = _load_tokenizer(ref if ref.source else BACKBONES["tiny"])
    _freeze(model)
    digest = backbone_digest(model, tokenizer)
    return Backbone(ref.name, accelerate_vilt(model), tokenizer, digest)


def adapter_sites(model: ViltModel) -> tuple[AdapterSite, ...]:
    """All adapter sites in the order data flows: L0.aftattn, L0.aftmlp, L1.aftattn, …"""
    sites = []
    for layer in range(len(model.encoder.layer)):
        for name, module in _SITES_OF_LAYER.items():
            path = f"encoder.layer.{layer}.{module}"
            linear = cast(nn.Linear, model.get_submodule(path))
            sites.append(AdapterSite(f"L{layer}.{name}", path, linear.out_features))
    return tuple(sites)


def bottom_parameters(model: ViltModel, layers: int) -> frozenset[str]:
    """Names of the parameters of the lowest `layers` layers and of the embeddings below them; none for 0.

    Raises:
        ConfigError: the trunk would have no layer left.
    """
    if layers >= len(model.encoder.layer):
        raise ConfigError(
            f"The trunk has {len(model.encoder.layer)} layers; {layers} of them can't stay frozen below the others."
        )
    bottom = ("embeddings.", *(f"encoder.layer.{number}." for number in range(layers))) if layers else ()
    return frozenset(name for name, _ in model.named_parameters() if name.startswith(bottom))


def backbone_digest(model: ViltModel, tokenizer: PreTrainedTokenizerFast) -> str:
    """sha256 (hex) over every weight (name, dtype, shape, bytes), the tokenizer's rules and the configuration."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        raw = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        digest.update(raw.numpy().tobytes())
    rules = json.loads(tokenizer.backend_tokenizer.to_str())
    for remembered in ("truncation", "padding"):  # left over from the last call, not part of what the tokenizer is
        rules.pop(remembered, None)
    for part in (rules, _lasting_config(model.config)):
        digest.update(json.dumps(part, sort_keys=True).encode())
    return digest.hexdigest()


@contextmanager
def _no_progress_bar() -> Iterator[None]:
    """Every rank of a cluster would otherwise draw "Loading weights" into the log."""
    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()


def _look_up(name: str) -> BackboneRef:
    if name not in BACKBONES:
        raise ConfigError(f"Unknown backbone {name!r}.", fix=f"Use one of: {', '.join(sorted(BACKBONES))}.")
    return BACKBONES[name]


def _load_weights(ref: BackboneRef) -> ViltModel:
    try:
        model, report = ViltModel.from_pretrained(
            ref.source, revision=ref.revision or "main", dtype=torch.float32, output_loading_info=True
        )
    except OSError as error:
        raise _unreachable(ref, error) from error
    except (RuntimeError, SafetensorError) as error:
        raise DataError(
            f"The weights of backbone {ref.name!r} from {ref.source!r} do not fit a ViltModel: {error}",
            fix="Point the backbone at an intact checkpoint of the ViLT architecture.",
        ) from error
    _check_keys(ref, report)
    return cast(ViltModel, model)


def _check_keys(ref: BackboneRef, report: dict[str, Any]) -> None:
    missing = sorted(report["missing_keys"])
    unexpected = sorted(set(report["unexpected_keys"]) - set(ref.leftovers))
    misshapen = sorted(str(key) for key in report.get("mismatched_keys", ()))
    faults = {"missing": missing, "unexpected": unexpected, "wrong shape": misshapen}
    if any(faults.values()):
        listed = "; ".join(f"{fault}: {', '.join(keys)}" for fault, keys in faults.items() if keys)
        raise DataError(
            f"The checkpoint of backbone {ref.name!r} from {ref.source!r} does not match the model ({listed}).",
            fix="Use the checkpoint this backbone was defined for, or list keys that may be dropped in BackboneRef.leftovers.",
        )


def _load_tokenizer(ref: BackboneRef) -> PreTrainedTokenizerFast:
    try:
        tokenizer = AutoTokenizer.from_pretrained(ref.source, revision=ref.revision or "main", use_fast=True)
    except OSError as error:
        raise _unreachable(ref, error) from error
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise DataError(
            f"The tokenizer of backbone {ref.name!r} is a {type(tokenizer).__name__}, not a fast one.",
            fix="Add its tokenizer.json to the checkpoint folder.",
        )
    return tokenizer


def _unreachable(ref: BackboneRef, error: OSError) -> DataError:
    if ref.revision is None:
        return DataError(
            f"Backbone {ref.name!r} is not complete in {ref.source!r}: {error}",
            fix="The folder needs config.json, model.safetensors and tokenizer.json.",
        )
    return DataError(
        f"Backbone {ref.name!r} ({ref.source} at {ref.revision}) could not be read from the Hugging Face hub: {error}",
        fix=(
            f"Where there is a network, run `hf download {ref.source} --revision {ref.revision}` and copy that cache to every "
            "node ($HF_HOME), or use backbone=tiny."
        ),
    )


def _random_model(seed: int) -> ViltModel:
    torch.manual_seed(seed)
    vocabulary = len(_load_tokenizer(BACKBONES["tiny"]))
    config = ViltConfig(
        vocab_size=vocabulary,
        max_position_embeddings=48,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        image_size=32,
        patch_size=8,
        modality_type_vocab_size=_IMAGE_TYPES,
        pad_token_id=0,
    )
    model = ViltModel(config)
    with torch.no_grad():
        # The stock start leaves positions at zero; tests should notice when they are dropped or permuted.
        model.embeddings.position_embeddings.normal_(std=0.02)
    return model


def _offer_image_types(model: ViltModel) -> None:
    """Give a checkpoint made for single pictures the types it lacks, as copies of type 1: a second picture is a picture."""
    old = model.embeddings.token_type_embeddings
    if old.num_embeddings >= _IMAGE_TYPES:
        return
    wide = nn.Embedding(_IMAGE_TYPES, old.embedding_dim)
    with torch.no_grad():
        wide.weight.copy_(torch.cat([old.weight, old.weight[1:2].expand(_IMAGE_TYPES - old.num_embeddings, -1)]))
    model.embeddings.token_type_embeddings = wide
    model.config.modality_type_vocab_size = _IMAGE_TYPES


def _freeze(model: ViltModel) -> None:
    model.eval().requires_grad_(False)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0  # a caller's .train() must not bring it back


def _lasting_config(config: ViltConfig) -> dict[str, Any]:
    """The settings that change results: not the library's version, nor where the files were."""
    passing = {"_name_or_path", "transformers_version", "architectures", "dtype", "torch_dtype", "tie_word_embeddings"}
    return {key: value for key, value in config.to_diff_dict().items() if key not in passing}

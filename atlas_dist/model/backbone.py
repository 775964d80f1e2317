"""The frozen vision-language transformer everything else is hung on: strict loading, identity. Names: backbone_refs.py."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoTokenizer, PreTrainedConfig, PreTrainedTokenizerFast
from transformers.utils import logging as transformers_logging

from atlas_dist.errors import AtlasError, ConfigError, DataError
from atlas_dist.model.backbone_refs import BackboneRef, named_backbone
from atlas_dist.model.backbones import (
    ARCHITECTURES,
    AdapterSite,
    Architecture,
    BackboneInput,
    Chat,
    Encoded,
    PictureForm,
    architecture_named,
    relative_of,
)
from atlas_dist.model.load_errors import listed, shortened, unloadable
from atlas_dist.model.preprocessor import form_of, read_settings, usual_form
from atlas_dist.model.tiling import check_room, check_tiles, cut_pictures
from atlas_dist.model.weight_files import WRAPPERS, check_folder, unwrapped


@dataclass(frozen=True, eq=False)
class Backbone:
    """A frozen backbone with its tokenizer.

    Attributes:
        name: the name it was loaded by.
        model: in evaluation mode, float32, no dropout, nothing requires a gradient; accelerated (see ``backbones/``).
        tokenizer: fast tokenizer with a padding token, special tokens at one or both ends of a text.
        digest: sha256 (hex) of weights, tokenizer, configuration and the form of pictures: equal digests compute equal results,
            to the last bit where the weights also come from the same file (products depend on where it puts them in memory).
        architecture: what is known of its kind.
        own_pictures: how its checkpoint wants pictures, where that is not its architecture's usual form.
        chat: how it is asked, where it writes answers; None = it does not.
    """

    name: str
    model: nn.Module
    tokenizer: PreTrainedTokenizerFast
    digest: str
    architecture: Architecture
    own_pictures: PictureForm | None = None
    chat: Chat | None = None

    @property
    def pictures(self) -> PictureForm:
        """How pictures become its pixels."""
        return self.own_pictures or usual_form(self.architecture)

    @property
    def pixel_mean(self) -> tuple[float, float, float]:
        """Per channel, for pixels in [0, 1]."""
        return self.pictures.mean

    @property
    def pixel_std(self) -> tuple[float, float, float]:
        """Per channel, for pixels in [0, 1]."""
        return self.pictures.std

    @property
    def image_size(self) -> int:
        """Side in pixels of the square pictures it is given, all tiles of one together."""
        return self.architecture.limits(self.model).image_size

    @property
    def width(self) -> int:
        """P, the width of the pooled output. A site's own width is `AdapterSite.width`, which need not be this."""
        return self.architecture.limits(self.model).pooled

    @property
    def max_text_tokens(self) -> int:
        """Most text tokens a sample may have, those at its ends included."""
        return self.architecture.limits(self.model).text_tokens

    def text_length(self, most: int) -> int:
        """Tokens that a text is padded to before the model gets it, where a task's texts have `most` tokens at most."""
        return self.architecture.limits(self.model).padded_text or most

    @property
    def sites(self) -> tuple[AdapterSite, ...]:
        """All adapter sites in the order data flows."""
        return self.architecture.sites(self.model)

    def encode(self, **given: Any) -> Tensor:
        """Pooled output [B, P]; arguments as in ``encode_all``."""
        return self.encode_all(**given).pooled

    def encode_all(self, **given: Any) -> Encoded:
        """Hidden states of each tower and the pooled output; arguments are the attributes of `backbones.BackboneInput`."""
        return self.architecture.encode(self.model, BackboneInput(**given))


def load_backbone(which: str | BackboneRef, *, seed: int = 0) -> Backbone:
    """Load a backbone by name (a key of ``BACKBONES``) or by reference.

    The global random state is left as it was. ``seed`` matters to random weights only.

    Raises:
        ConfigError: an unknown name or architecture, a checkpoint of another architecture, or tiles that it cannot see.
        DataError: the checkpoint cannot be reached, a file of it is damaged or missing, its keys or shapes are not exactly those
            of the model, a value is not finite, its tokenizer is another model's, or it wants pictures in a form that we do not
            make.
    """
    ref = which if isinstance(which, BackboneRef) else named_backbone(which)
    architecture = architecture_named(ref.architecture)
    tiles = 1 if ref.tiles is None else ref.tiles
    check_tiles(ref.name, tiles, architecture)
    with torch.random.fork_rng(devices=[]), _no_progress_bar():
        model = _load_weights(ref, architecture) if ref.source else _random_model(architecture, seed, tiles)
        architecture.prepare(model)
    tokenizer = _load_tokenizer(ref, architecture) if ref.source else _tiny_tokenizer(architecture, tiles)
    architecture.prepare_tokenizer(tokenizer)
    _check_tokenizer(ref, tokenizer, architecture.limits(model).vocabulary)
    _check_special_tokens(ref, architecture, tokenizer)
    pictures = _own_pictures(ref, architecture, model)
    if pictures is not None:
        cut_pictures(ref.name, architecture, model, tokenizer, pictures)
    chat = architecture.chat(model, tokenizer) if architecture.chat is not None else None
    check_room(ref.name, architecture, model, pictures.tiles if pictures is not None else 1)
    _freeze(model)
    digest = backbone_digest(model, tokenizer, pictures, chat)
    architecture.accelerate(model)
    return Backbone(ref.name, model, tokenizer, digest, architecture, pictures, chat)


def backbone_digest(
    model: Any, tokenizer: PreTrainedTokenizerFast, pictures: PictureForm | None = None, chat: Chat | None = None
) -> str:
    """sha256 (hex) over every weight (name, dtype, shape, bytes), the tokenizer's rules, the configuration, the form of pictures,
    where that is not the architecture's, and how the model is asked, where it writes."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        raw = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        digest.update(raw.numpy().tobytes())
    rules = json.loads(tokenizer.backend_tokenizer.to_str())
    for remembered in ("truncation", "padding"):  # left over from the last call, not part of what the tokenizer is
        rules.pop(remembered, None)
    forms = [asdict(form) for form in (pictures, chat) if form]
    for form in forms:
        for newer in ("question_end", "answer_end"):  # of conversations, which there were not: other tasks keep their keys
            form.pop(newer, None)
        for later, nothing in (("tiles", 1), ("between", ())):  # named where pictures are cut: others keep their keys
            if form.get(later) == nothing:
                form.pop(later)
    for part in (rules, _lasting_config(model.config), *forms):
        digest.update(json.dumps(part, sort_keys=True).encode())
    return digest.hexdigest()


def store_products_in_bf16(model: nn.Module) -> None:
    """Keep the frozen matrices in the precision they are used in: autocast would convert them anew in every pass."""
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            module.to(torch.bfloat16)


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


def _load_weights(ref: BackboneRef, architecture: Architecture) -> nn.Module:
    try:
        if Path(ref.source).exists():
            check_folder(Path(ref.source))
        _check_model_type(ref, architecture)
        model, report = architecture.model_class.from_pretrained(
            ref.source, revision=ref.revision or "main", dtype=torch.float32, output_loading_info=True
        )
    except AtlasError:
        raise
    except OSError as error:
        raise _unreachable(ref, error) from error
    except Exception as error:  # whatever torch, safetensors and transformers make of a file that is none of theirs
        raise unloadable(ref.name, ref.source, architecture, error) from error
    _check_keys(ref, architecture, report)
    _check_finite(ref, model)
    loaded: nn.Module = model
    return loaded


def _check_model_type(ref: BackboneRef, architecture: Architecture) -> None:
    """transformers would warn, make a model of the other kind and fill it with chance."""
    config, _ = PreTrainedConfig.get_config_dict(ref.source, revision=ref.revision or "main")
    found = str(config.get("model_type") or "")
    if found in (architecture.name, ""):  # an empty folder has no type; its weights are missing next
        return
    known = ", ".join(sorted(ARCHITECTURES))
    fix = f"Set backbone.architecture={found}." if found in ARCHITECTURES else relative_of(found)
    raise ConfigError(
        f"Backbone {ref.name!r} from {ref.source!r} is a model of type {found!r}; {architecture.name!r} was asked for.",
        fix=fix or f"Use a checkpoint of one of: {known}.",
    )


def _check_keys(ref: BackboneRef, architecture: Architecture, report: Mapping[str, Any]) -> None:
    dropped = {*ref.leftovers, *architecture.leftovers}
    missing = sorted(report["missing_keys"])
    unexpected = sorted(k for k in report["unexpected_keys"] if k not in dropped and not k.startswith(architecture.heads))
    misshapen = sorted(str(key) for key in report.get("mismatched_keys", ()))
    faults = {"missing": missing, "unexpected": unexpected, "wrong shape": misshapen}
    if any(faults.values()):
        told = "; ".join(f"{fault}: {listed(keys)}" for fault, keys in faults.items() if keys)
        inner = next((key for key in WRAPPERS if key in unexpected), None)
        raise DataError(
            f"The checkpoint of backbone {ref.name!r} from {ref.source!r} does not match the model ({told}).",
            fix=f"Its tensors lie within {inner!r}: convert it in its folder, and remove the .bin: {unwrapped(inner)}"
            if inner
            else f"Use a whole checkpoint of a {architecture.model_class.__name__}, with or without the head of a task on top, "
            "as save_pretrained of transformers writes it.",
        )


def _check_finite(ref: BackboneRef, model: nn.Module) -> None:
    """A checkpoint that overflowed once computes nothing but NaN."""
    bad = [name for name, value in model.named_parameters() if not bool(torch.isfinite(value).all())]
    if bad:
        raise DataError(
            f"The checkpoint of backbone {ref.name!r} from {ref.source!r} has values that are not finite (NaN or infinite) in "
            f"{listed(bad)}.",
            fix="Use one from before its training went wrong, or one that was not cut down to float16.",
        )


def _own_pictures(ref: BackboneRef, architecture: Architecture, model: nn.Module) -> PictureForm | None:
    """How a checkpoint wants pictures; None = as usual."""
    said: Mapping[str, Any] = {}
    if ref.source and not ref.usual_pictures:
        try:
            said = read_settings(ref.source, ref.revision)
        except OSError as error:
            raise _unreachable(ref, error) from error
    form = form_of(said, architecture, architecture.limits(model).image_size, ref.name, ref.tiles)
    return None if form == usual_form(architecture) else form


def _tiny_tokenizer(architecture: Architecture, tiles: int = 1) -> PreTrainedTokenizerFast:
    tiny = named_backbone("tiny")
    tokenizer = _load_tokenizer(tiny, architecture_named(tiny.architecture))
    names = architecture.tiling.tokens(tiles) if architecture.tiling is not None and tiles > 1 else ()
    tokenizer.add_tokens([*names, *architecture.special_tokens], special_tokens=True)
    return tokenizer


def _load_tokenizer(ref: BackboneRef, architecture: Architecture) -> PreTrainedTokenizerFast:
    kind = PreTrainedTokenizerFast if architecture.plain_tokenizer else AutoTokenizer
    try:
        tokenizer = kind.from_pretrained(ref.source, revision=ref.revision or "main", use_fast=True)
    except OSError as error:
        raise _unreachable(ref, error) from error
    except Exception as error:  # the Rust library raises bare Exceptions for what it can't read
        raise DataError(
            f"The tokenizer of backbone {ref.name!r} from {ref.source!r} can't be read: {shortened(error)}",
            fix="Download tokenizer.json and tokenizer_config.json again.",
        ) from error
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise DataError(
            f"The tokenizer of backbone {ref.name!r} is a {type(tokenizer).__name__}, not a fast one.",
            fix="Add its tokenizer.json to the checkpoint folder.",
        )
    return tokenizer


def _check_tokenizer(ref: BackboneRef, tokenizer: PreTrainedTokenizerFast, vocabulary: int) -> None:
    """Whether it knows words, and none that the model has no embedding for."""
    known = set(tokenizer.get_vocab()) - set(tokenizer.all_special_tokens)
    if not known:
        raise DataError(
            f"The tokenizer of backbone {ref.name!r} from {ref.source!r} knows no words, only special tokens.",
            fix="Copy tokenizer.json and tokenizer_config.json of the same model into the checkpoint's folder.",
        )
    if tokenizer.vocab_size > vocabulary:
        raise DataError(
            f"The tokenizer of backbone {ref.name!r} from {ref.source!r} knows {tokenizer.vocab_size} tokens, its "
            f"model {vocabulary}.",
            fix="Use the tokenizer that the model was trained with: its tokenizer.json belongs into the checkpoint's folder.",
        )
    words = tokenizer.get_vocab()
    beyond = max(words, key=lambda word: words[word])
    if words[beyond] >= vocabulary:
        raise DataError(
            f"The tokenizer of backbone {ref.name!r} from {ref.source!r} has {beyond!r} as number {words[beyond]}; its model "
            f"knows the numbers below {vocabulary}.",
            fix="Take what was added to it out of its tokenizer.json, tokenizer_config.json and special_tokens_map.json, or use "
            "the tokenizer that the model was trained with.",
        )
    if tokenizer.pad_token_id is None:
        raise DataError(
            f"The tokenizer of backbone {ref.name!r} from {ref.source!r} has no padding token.",
            fix="Name one in its tokenizer_config.json (pad_token).",
        )


def _check_special_tokens(ref: BackboneRef, architecture: Architecture, tokenizer: PreTrainedTokenizerFast) -> None:
    known = tokenizer.get_vocab()
    missing = [token for token in architecture.special_tokens if token not in known]
    if missing:
        raise DataError(
            f"The tokenizer of backbone {ref.name!r} from {ref.source!r} does not know {', '.join(missing)}: it is of another "
            f"family than the {architecture.name} models that are read here.",
            fix="Use the tokenizer that the model was trained with, or another checkpoint (docs/method.md, Another backbone).",
        )


def _unreachable(ref: BackboneRef, error: OSError) -> DataError:
    if ref.revision is None and not Path(ref.source).exists():
        return DataError(
            f"There is no folder {ref.source!r} for backbone {ref.name!r}.",
            fix="Correct backbone.source; one of the hub needs backbone.revision too.",
        )
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


def _random_model(architecture: Architecture, seed: int, tiles: int) -> nn.Module:
    torch.manual_seed(seed)
    tokenizer = _tiny_tokenizer(architecture, tiles)
    special = {"pad": tokenizer.pad_token_id, "bos": tokenizer.cls_token_id, "eos": tokenizer.sep_token_id}
    return architecture.random(len(tokenizer), special)


def _freeze(model: nn.Module) -> None:
    model.eval().requires_grad_(False)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0  # a caller's .train() must not bring it back


def _lasting_config(config: Any) -> dict[str, Any]:
    """The settings that change results: not the library's version, nor where the files were."""
    return _without_passing(config.to_diff_dict())


def _without_passing(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Towers have configurations of their own inside the model's."""
    passing = {"_name_or_path", "transformers_version", "architectures", "dtype", "torch_dtype", "tie_word_embeddings"}
    kept = {key: value for key, value in settings.items() if key not in passing}
    return {key: _without_passing(value) if isinstance(value, dict) else value for key, value in kept.items()}

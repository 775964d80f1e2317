"""What the libraries make of a checkpoint that does not load, as a sentence with the file and what to do."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from atlas_dist.errors import DataError
from atlas_dist.model.backbones import Architecture
from atlas_dist.model.weight_files import TO_SAFETENSORS, shapes

_SHOWN = 6
"""Names of parameters in one message."""


def unloadable(name: str, source: str, architecture: Architecture, error: Exception) -> DataError:
    """What loading a checkpoint brought about, as an error of ours with what to do."""
    if type(error).__name__ == "UnpicklingError":
        return DataError(
            f"pytorch_model.bin of backbone {name!r} from {source!r} holds more than tensors: it is not run.",
            fix=f"Only if you trust its source, convert it in its folder: {TO_SAFETENSORS}",
        )
    if any(words in str(error) for words in ("unexpected EOF", "PytorchStreamReader")):
        return DataError(
            f"A .bin file of backbone {name!r} from {source!r} is cut off or damaged: {shortened(error)}.",
            fix="Download it again, and compare its size with the one at its source.",
        )
    wanted: str = architecture.model_class.__name__
    if "mismatched_sizes" in str(error) and (odd := _misshapen(source, architecture)):
        return DataError(
            f"The weights of backbone {name!r} from {source!r} do not fit its config.json (wrong shape: {odd}).",
            fix="Use config.json and weights of one and the same model.",
        )
    return DataError(
        f"The weights of backbone {name!r} from {source!r} do not fit a {wanted}: {shortened(error)}",
        fix=f"Point the backbone at an intact checkpoint of the architecture {architecture.name}.",
    )


def _misshapen(source: str, architecture: Architecture) -> str:
    """Which tensors have another shape than the configuration makes them; transformers says so in its log only."""
    if not Path(source).is_dir():
        return ""
    config = architecture.model_class.config_class.from_pretrained(source)
    with torch.device("meta"):
        model = architecture.model_class(config)
    wanted = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    own = {key.removeprefix(f"{model.base_model_prefix}."): shape for key, shape in shapes(Path(source)).items()}
    odd = [key for key in sorted(wanted) if own.get(key, wanted[key]) != wanted[key]]
    return listed([f"{key} is {list(own[key])}, by config.json {list(wanted[key])}" for key in odd])


def listed(names: Sequence[str]) -> str:
    """The first of them, and how many more there are."""
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def shortened(error: Exception) -> str:
    """What a library said, in one line."""
    return " ".join(str(error).split())[:600]

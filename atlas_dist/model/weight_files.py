"""The files of a checkpoint folder, looked at before transformers opens them: each fault a sentence with the file and what to do.

A pointer of Git LFS, a download that broke off, a tokenizer that was not copied: the library says of these "header too large",
or makes a tokenizer of five special tokens and goes on.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from atlas_dist.errors import DataError

WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
"""What transformers looks for, in its order."""
_TOKENIZERS = (("tokenizer.json",), ("vocab.txt",), ("vocab.json", "merges.txt"), ("spiece.model",), ("sentencepiece.bpe.model",))
_CONFIG = "config.json"
_LFS = b"version https://git-lfs"
_FOREIGN = (".ckpt", ".gguf", ".h5", ".msgpack", ".onnx", ".pt", ".pth", ".bin", ".safetensors")
_ANEW = "Download it again, and compare its size with the one at its source."

TO_SAFETENSORS = (
    'python -c "import torch; from safetensors.torch import save_file; '
    "w = torch.load('pytorch_model.bin', map_location='cpu', weights_only=False); "
    "save_file({k: v.clone().contiguous() for k, v in w.items()}, 'model.safetensors', metadata={'format': 'pt'})\""
)


def check_folder(folder: Path) -> None:
    """Whether `folder` holds a configuration, weights and a tokenizer whose files are whole. Others in it are nobody's business.

    Raises:
        DataError: naming the first file that is not, and what to do.
    """
    if not folder.is_dir():
        raise DataError(f"{folder} is a file.", fix="Set backbone.source to the folder that holds config.json and the weights.")
    _read_json(folder / _CONFIG, folder)
    for file in _weights(folder):
        _check_real(file)
        (_check_safetensors if file.suffix == ".safetensors" else _check_torch)(file)
    tokenizer = next((names for names in _TOKENIZERS if all((folder / name).is_file() for name in names)), None)
    if tokenizer is None:
        raise DataError(
            f"The folder {folder} has no tokenizer.",
            fix="Copy tokenizer.json and tokenizer_config.json of the same model into it (its save_pretrained writes them).",
        )
    for name in tokenizer:
        _check_real(folder / name)


def _check_real(file: Path) -> None:
    with file.open("rb") as opened:
        start = opened.read(200)
    if start.startswith(_LFS):
        raise DataError(
            f"{file} is a pointer of Git LFS, not the file itself.",
            fix=f"Run `git lfs install` and `git lfs pull` in {file.parent}, or download the file.",
        )
    if not start:
        raise DataError(f"{file} is empty.", fix=_ANEW)


def _read_json(file: Path, folder: Path) -> Mapping[str, Any]:
    if not file.is_file():
        raise DataError(f"There is no {file.name} in {folder}.", fix="The folder needs config.json, weights and a tokenizer.")
    _check_real(file)
    try:
        tree = json.loads(file.read_bytes())
    except ValueError as error:
        raise DataError(f"{file} is not JSON: {error}.", fix=_ANEW) from error
    if not isinstance(tree, dict):
        raise DataError(f"{file} is not a JSON object.", fix=_ANEW)
    return tree


def _weights(folder: Path) -> Iterator[Path]:
    """The files with weights: one, or those that an index lists."""
    found = next((folder / name for name in WEIGHTS if (folder / name).is_file()), None)
    if found is None:
        raise _no_weights(folder)
    if found.suffix != ".json":
        yield found
        return
    places = _read_json(found, folder).get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(name, str) for name in places.values()):
        raise DataError(f"{found} has no weight_map.", fix=_ANEW)
    for name in sorted(set(places.values())):
        if not (folder / name).is_file():
            raise DataError(f"{found.name} lists {name}, which is not in {folder}.", fix=f"Download {name} into it too.")
        yield folder / name


def _no_weights(folder: Path) -> DataError:
    others = sorted(p.name for p in folder.iterdir() if p.is_file() and p.suffix in _FOREIGN)
    if not others:
        return DataError(f"The folder {folder} has no weights.", fix="Download model.safetensors into it.")
    fix = "Load it with the library that wrote it; model.save_pretrained(FOLDER) of transformers then writes model.safetensors."
    if any(name.startswith("adapter_model.") for name in others):
        fix = "That is an adapter of PEFT: merge it into its model (merge_and_unload) and save that with save_pretrained."
    elif any(name.endswith(".safetensors") for name in others):
        fix = "Rename the file with the weights to model.safetensors."
    return DataError(f"{folder} holds {', '.join(others[:4])}, but no model.safetensors or pytorch_model.bin.", fix=fix)


def _check_safetensors(file: Path) -> None:
    """Whether the file is as long as its header says."""
    size = file.stat().st_size
    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        head = opened.read(length) if 8 + length <= size else b""
    if not head:
        raise DataError(f"{file} is no safetensors file, or cut off within its header ({size} bytes).", fix=_ANEW)
    try:
        tensors = [about for name, about in json.loads(head).items() if name != "__metadata__"]
        whole = 8 + length + max((int(about["data_offsets"][1]) for about in tensors), default=0)
    except (ValueError, TypeError, KeyError, AttributeError, IndexError) as error:
        raise DataError(f"{file} has an unreadable safetensors header.", fix=_ANEW) from error
    if size < whole:
        raise DataError(f"{file} is cut off: it has {size} of {whole} bytes.", fix=_ANEW)


def _check_torch(file: Path) -> None:
    """Whether it is a whole archive of torch. (Before 1.6 torch wrote bare pickles, which end somewhere.)"""
    with file.open("rb") as opened:
        start = opened.read(2)
    if start == b"PK" and not zipfile.is_zipfile(file):
        raise DataError(f"{file} is cut off ({file.stat().st_size} bytes).", fix=_ANEW)
    if start != b"PK" and start[:1] != b"\x80":
        raise DataError(f"{file} is no file of torch: it begins with {start!r}.", fix=_ANEW)

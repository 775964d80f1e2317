"""The files of a checkpoint folder, looked at before transformers opens them: each fault a sentence with the file and what to do.

A pointer of Git LFS, a download that broke off, a tokenizer that was not copied: the library says of these "header too large",
or makes a tokenizer of five special tokens and goes on.
"""

from __future__ import annotations

import codecs
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
_SETTINGS = (
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "preprocessor_config.json",
    "processor_config.json",
)
"""Of texts and pictures: read where they are there."""
_BOMS = (codecs.BOM_UTF8, codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_HEADER_CAP = 100_000_000
"""Bytes of a safetensors header at most, as the library has it."""
_QUANTISED = frozenset({"I8", "U8", "I16", "U16", "U32", "C64", "F4", "F6_E2M3", "F6_E3M2", "F8_E8M0"})
"""Types that no plain weight has: read as numbers they would be another model's."""
_UNFINISHED = (".incomplete", ".crdownload", ".part", ".partial", ".aria2", ".download", ".tmp")
_FOREIGN = (".ckpt", ".gguf", ".h5", ".msgpack", ".onnx", ".pt", ".pth", ".bin", ".safetensors")
_ANEW = "Download it again, and compare its size with the one at its source."

TO_SAFETENSORS = (
    'python -c "import torch; from safetensors.torch import save_file; '
    "w = torch.load('pytorch_model.bin', map_location='cpu', weights_only=False); "
    "save_file({k: v.clone().contiguous() for k, v in w.items()}, 'model.safetensors', metadata={'format': 'pt'})\""
)

WRAPPERS = ("state_dict", "model_state_dict", "model", "module")
"""Below which trainers put the tensors into their files."""


def unwrapped(key: str) -> str:
    """The command that makes safetensors of the tensors that a .bin has below `key`."""
    return TO_SAFETENSORS.replace("weights_only=False)", f"weights_only=True)['{key}']")


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
        _check_mark(folder / name)
    for name in _SETTINGS:
        if (folder / name).is_file():
            _read_json(folder / name, folder)


def shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Tensor -> its shape, of the safetensors files of a folder that passed `check_folder`; {} of a .bin, which would have to be
    unpickled."""
    return {name: tuple(about["shape"]) for f in _weights(folder) if f.suffix == ".safetensors" for name, about in _header(f)[1]}


def _start(file: Path) -> bytes:
    with file.open("rb") as opened:
        return opened.read(200)


def _check_mark(file: Path) -> None:
    if _start(file).startswith(_BOMS):
        raise DataError(
            f"{file} begins with a byte order mark, which transformers does not read.",
            fix="Save it as UTF-8 without one (an editor's `UTF-8`, not `UTF-8 with BOM` or UTF-16).",
        )


def _check_real(file: Path) -> None:
    start = _start(file)
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
    _check_mark(file)
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
    if not places:
        raise DataError(f"{found} lists no file: its weight_map is empty.", fix=_ANEW)
    for name in sorted(set(places.values())):
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise DataError(
                f"{found} lists {name}, which lies outside of {folder}: it is not read.",
                fix="Put the file into the folder, and its plain name into the weight_map; or download the index again.",
            )
        if not (folder / name).is_file():
            raise DataError(f"{found.name} lists {name}, which is not in {folder}.", fix=f"Download {name} into it too.")
        yield folder / name


def _no_weights(folder: Path) -> DataError:
    every = sorted(folder.iterdir())
    broken = next((p for p in every if p.is_symlink() and not p.exists() and p.name in WEIGHTS), None)
    if broken is not None:
        return DataError(
            f"{broken} is a link to {broken.readlink()}, which is not there.",
            fix="Copy the files themselves (cp -L), or download the model again.",
        )
    half = next((p for p in every if p.suffix in _UNFINISHED and p.stem in WEIGHTS), None)
    if half is not None:
        return DataError(f"{half} is a download that did not end.", fix=f"Download {half.stem} again.")
    others = [p.name for p in every if p.is_file() and p.suffix in _FOREIGN]
    if any(p.is_dir() and p.name.startswith("global_step") for p in every):
        return DataError(
            f"{folder} is a checkpoint of DeepSpeed's training, without the model's weights in one file.",
            fix="Make them with the zero_to_fp32.py beside them: python zero_to_fp32.py . . --safe_serialization",
        )
    if not others:
        return DataError(f"The folder {folder} has no weights.", fix="Download model.safetensors into it.")
    fix = "Load it with the library that wrote it; model.save_pretrained(FOLDER) of transformers then writes model.safetensors."
    pieces = [name for name in others if "-of-" in name]
    if any(name.startswith("adapter_model.") for name in others):
        fix = "That is an adapter of PEFT: merge it into its model (merge_and_unload) and save that with save_pretrained."
    elif pieces:
        fix = f"Download {pieces[0].partition('-')[0]}{Path(pieces[0]).suffix}.index.json too: it says which piece holds what."
    elif any(name.endswith(".safetensors") for name in others):
        fix = "Rename the file with the weights to model.safetensors."
    return DataError(f"{folder} holds {', '.join(others[:4])}, but no model.safetensors or pytorch_model.bin.", fix=fix)


def _header(file: Path) -> tuple[int, list[tuple[str, Any]]]:
    """(where the header of a safetensors file ends, what it says of each tensor). Raises DataError."""
    size = file.stat().st_size
    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        head = opened.read(length) if 8 + length <= size and length <= _HEADER_CAP else b""
    if not head:
        raise DataError(f"{file} is no safetensors file, or cut off within its header ({size} bytes).", fix=_ANEW)
    try:
        tensors = [(str(name), about) for name, about in json.loads(head).items() if name != "__metadata__"]
        for _, about in tensors:
            int(about["data_offsets"][1]), tuple(about["shape"]), about["dtype"]
    except (ValueError, TypeError, KeyError, AttributeError, IndexError) as error:
        raise DataError(f"{file} has an unreadable safetensors header.", fix=_ANEW) from error
    return 8 + length, tensors


def _check_safetensors(file: Path) -> None:
    """Whether the file is as long as its header says, without holes, and its tensors are plain numbers."""
    size = file.stat().st_size
    start, tensors = _header(file)
    whole = start + max((int(about["data_offsets"][1]) for _, about in tensors), default=0)
    if size < whole:
        raise DataError(f"{file} is cut off: it has {size} of {whole} bytes.", fix=_ANEW)
    if size > whole:
        raise DataError(f"{file} has {size - whole} bytes behind its last tensor, {size} in all.", fix=_ANEW)
    quantised = next(((name, about["dtype"]) for name, about in tensors if about["dtype"] in _QUANTISED), None)
    if quantised is not None:
        raise DataError(
            f"{file} holds {quantised[0]} as {quantised[1]}, no floating-point number: what a quantised model stores means "
            "nothing by itself.",
            fix="Use the model's own checkpoint in float32, float16 or bfloat16.",
        )
    position = 0
    for name, about in sorted(tensors, key=lambda item: (int(item[1]["data_offsets"][0]), int(item[1]["data_offsets"][1]))):
        if int(about["data_offsets"][0]) != position:
            raise DataError(f"{file}: its tensors overlap or leave a hole before {name}.", fix=_ANEW)
        position = int(about["data_offsets"][1])


def _check_torch(file: Path) -> None:
    """Whether it is a whole archive of torch. (Before 1.6 torch wrote bare pickles, which end somewhere.)"""
    with file.open("rb") as opened:
        start = opened.read(2)
    if start == b"PK" and not zipfile.is_zipfile(file):
        raise DataError(f"{file} is cut off ({file.stat().st_size} bytes).", fix=_ANEW)
    if start != b"PK" and start[:1] != b"\x80":
        raise DataError(f"{file} is no file of torch: it begins with {start!r}.", fix=_ANEW)

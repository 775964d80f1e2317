"""Damaged checkpoints: each is refused in a sentence with the file and what to do, and never loaded with chance or NaN in it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import (
    AutoTokenizer,
    ViltModel,
)

from atlas_dist.errors import DataError
from atlas_dist.model.backbone import Backbone, load_backbone
from tests.kits.checkpoints import as_bin, edited, loaded, saved, stock


@pytest.fixture(scope="module")
def small() -> Backbone:
    return load_backbone("random-tiny")


def _nan(folder: Path) -> None:
    def edit(weights: dict[str, Tensor]) -> dict[str, Tensor]:
        weights["pooler.dense.bias"][3] = float("nan")
        return weights

    edited(folder, edit)


def _infinite(folder: Path) -> None:
    edited(folder, lambda weights: {**weights, "pooler.dense.bias": torch.full_like(weights["pooler.dense.bias"], float("inf"))})


def _other_vocabulary(folder: Path) -> None:
    name = "embeddings.text_embeddings.word_embeddings.weight"
    edited(folder, lambda weights: {**weights, name: weights[name][:-7].clone()})


def _fewer_embeddings_than_words(folder: Path) -> None:
    """Weights and configuration agree with each other and not with the tokenizer."""
    _other_vocabulary(folder)
    config = json.loads((folder / "config.json").read_text())
    config["vocab_size"] -= 7
    (folder / "config.json").write_text(json.dumps(config))


def _no_tokenizer(folder: Path) -> None:
    for file in folder.glob("tokenizer*"):
        file.unlink()


def _only_its_config(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()


def _no_words(folder: Path) -> None:
    """As a library writes it that had nothing to start from."""
    _no_tokenizer(folder)
    (folder / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\n")


def _broken_tokenizer(folder: Path) -> None:
    file = folder / "tokenizer.json"
    file.write_bytes(file.read_bytes()[:-200])


def _pointer(name: str) -> Callable[[Path], None]:
    text = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 470000000\n"

    def damage(folder: Path) -> None:
        if name == "pytorch_model.bin":
            as_bin(folder)
        (folder / name).write_text(text)

    return damage


def _cut(name: str, keep: Callable[[int], int]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        if name == "pytorch_model.bin":
            as_bin(folder)
        os.truncate(folder / name, keep((folder / name).stat().st_size))

    return damage


def _web_page(name: str) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        if name == "pytorch_model.bin":
            as_bin(folder)
        (folder / name).write_text("<!DOCTYPE html><html>404 not found</html>" * 40)

    return damage


class Trap:
    """What a pickle could run."""

    def __reduce__(self) -> Any:
        return (os.system, ("touch /tmp/atlas-dist-trap-was-sprung",))


def _trap(folder: Path) -> None:
    as_bin(folder, {"pooler.dense.bias": Trap()})


def _whole_model(folder: Path) -> None:
    """`torch.save(model)` and not of its tensors."""
    as_bin(folder, ViltModel.from_pretrained(folder))


def _other_format(name: str) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        (folder / "model.safetensors").rename(folder / name)

    return damage


def _no_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def _no_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def _prefixed(folder: Path) -> None:
    """As a trainer saves it that had wrapped the model."""
    edited(folder, lambda weights: {f"module.net.{name}": value for name, value in weights.items()})


def _typed(dtype: torch.dtype) -> Callable[[Path], None]:
    """As a quantised model has it: transformers would take the numbers for weights."""

    def damage(folder: Path) -> None:
        edited(folder, lambda weights: {**weights, "pooler.dense.weight": (weights["pooler.dense.weight"] * 100).to(dtype)})

    return damage


def _configured(**changed: Any) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        file = folder / "config.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), **changed}))

    return damage


def _marked(name: str, encoding: str = "utf-8-sig") -> Callable[[Path], None]:
    """As some editors save it."""

    def damage(folder: Path) -> None:
        (folder / name).write_bytes((folder / name).read_text(encoding="utf-8").encode(encoding))

    return damage


def _header(length: int, size: int) -> Callable[[Path], None]:
    """A header that claims `length` bytes in a file of `size`."""

    def damage(folder: Path) -> None:
        file = folder / "model.safetensors"
        file.write_bytes(length.to_bytes(8, "little") + b"{")
        os.truncate(file, size)

    return damage


def _longer(folder: Path) -> None:
    with (folder / "model.safetensors").open("ab") as file:
        file.write(b"x" * 10)


def _overlapping(folder: Path) -> None:
    file = folder / "model.safetensors"
    data = file.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    first, second = sorted((n for n in header if n != "__metadata__"), key=lambda n: header[n]["data_offsets"][0])[:2]
    header[second]["data_offsets"] = [header[first]["data_offsets"][0], header[second]["data_offsets"][1]]
    text = json.dumps(header).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])


def _padded_otherwise(folder: Path) -> None:
    """A token that the model has no embedding for: the first batch that is padded would end the run."""
    file = folder / "tokenizer_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "pad_token": "<pad>"}))


def _more_words(folder: Path) -> None:
    own = AutoTokenizer.from_pretrained(folder)
    own.add_tokens([f"[NEW{i}]" for i in range(9)])
    own.save_pretrained(folder)


def _wrapped(folder: Path) -> None:
    as_bin(folder, {"state_dict": load_file(folder / "model.safetensors"), "epoch": torch.tensor(3)})


def _old_bin_cut(folder: Path) -> None:
    file = folder / "pytorch_model.bin"
    torch.save(load_file(folder / "model.safetensors"), file, _use_new_zipfile_serialization=False)
    (folder / "model.safetensors").unlink()
    os.truncate(file, file.stat().st_size // 2)


def _linked_nowhere(folder: Path) -> None:
    """As a cache of the hub is when only its snapshot was copied."""
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").symlink_to("../../blobs/4d7a")


def _sharded(change: Callable[[Path, dict[str, str]], Any]) -> Callable[[Path], None]:
    """`change` gets the folder and the index's weight_map, which is written back."""

    def damage(folder: Path) -> None:
        ViltModel.from_pretrained(folder).save_pretrained(folder, max_shard_size="20KB")
        (folder / "model.safetensors").unlink(missing_ok=True)
        file = folder / "model.safetensors.index.json"
        index = json.loads(file.read_text())
        change(folder, index["weight_map"])
        if file.exists():
            file.write_text(json.dumps(index))

    return damage


def _outside(folder: Path, places: dict[str, str]) -> None:
    one = sorted(set(places.values()))[0]
    (folder.parent / "elsewhere").mkdir()
    (folder / one).rename(folder.parent / "elsewhere" / one)
    places |= {name: f"../elsewhere/{one}" for name, place in places.items() if place == one}


def _trained_with_deepspeed(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "global_step10").mkdir()


FAULTS: dict[str, tuple[Callable[[Path], None], str]] = {
    "NaN inside": (_nan, r"not finite.*pooler\.dense\.bias.*before its training went wrong"),
    "infinity inside": (_infinite, r"not finite.*pooler\.dense\.bias"),
    "another vocabulary": (_other_vocabulary, r"do not fit|wrong shape"),
    "a tokenizer of another vocabulary": (_fewer_embeddings_than_words, r"knows \d+ tokens, its model \d+.*trained with"),
    "no tokenizer": (_no_tokenizer, r"has no tokenizer.*tokenizer\.json"),
    "no tokenizer but its configuration": (_only_its_config, r"has no tokenizer.*tokenizer\.json"),
    "a tokenizer without words": (_no_words, r"knows no words.*tokenizer\.json"),
    "half a tokenizer": (_broken_tokenizer, r"tokenizer.*can't be read.*tokenizer\.json"),
    "a pointer for weights": (_pointer("model.safetensors"), r"model\.safetensors is a pointer of Git LFS.*git lfs pull"),
    "a pointer for a bin": (_pointer("pytorch_model.bin"), r"pytorch_model\.bin is a pointer of Git LFS.*git lfs pull"),
    "a pointer for a tokenizer": (_pointer("tokenizer.json"), r"tokenizer\.json is a pointer of Git LFS.*git lfs pull"),
    "weights cut off": (_cut("model.safetensors", lambda n: n - 100), r"model\.safetensors is cut off.*\d+ of \d+.*again"),
    "weights cut off early": (_cut("model.safetensors", lambda n: 100), r"model\.safetensors.*cut off"),
    "weights of no bytes": (_cut("model.safetensors", lambda n: 0), r"model\.safetensors is empty"),
    "a bin cut off": (_cut("pytorch_model.bin", lambda n: n // 2), r"pytorch_model\.bin is cut off.*again"),
    "a configuration cut off": (_cut("config.json", lambda n: n // 2), r"config\.json is not JSON.*again"),
    "a page for weights": (_web_page("model.safetensors"), r"model\.safetensors is no safetensors file"),
    "a page for a bin": (_web_page("pytorch_model.bin"), r"pytorch_model\.bin is no file of torch"),
    "a bin that would run something": (_trap, r"holds more than tensors.*convert it.*safetensors"),
    "a bin of a whole model": (_whole_model, r"holds more than tensors.*convert it.*safetensors"),
    "weights of TensorFlow": (_other_format("tf_model.h5"), r"holds tf_model\.h5, but no model\.safetensors.*save_pretrained"),
    "weights of flax": (_other_format("flax_model.msgpack"), r"holds flax_model\.msgpack, but no.*save_pretrained"),
    "weights of a trainer": (_other_format("last.ckpt"), r"holds last\.ckpt, but no.*save_pretrained"),
    "an adapter of PEFT": (_other_format("adapter_model.safetensors"), r"adapter_model\.safetensors, but no.*merge"),
    "weights of another name": (_other_format("model.fp16.safetensors"), r"model\.fp16\.safetensors, but no.*Rename"),
    "no configuration": (_no_config, r"no config\.json"),
    "no weights": (_no_weights, r"has no weights"),
    "numbers of 8 bits": (
        _typed(torch.int8),
        r"model\.safetensors holds pooler\.dense\.weight as I8, no floating-point.*float32",
    ),
    "complex numbers": (_typed(torch.complex64), r"holds pooler\.dense\.weight as C64"),
    "a header that claims too much": (_header(1 << 60, 500), r"model\.safetensors is no safetensors file.*500 bytes"),
    "a header of two gigabytes": (_header(1 << 31, (1 << 31) + 100), r"model\.safetensors is no safetensors file"),
    "more bytes than tensors": (_longer, r"model\.safetensors has 10 bytes behind its last tensor"),
    "tensors that overlap": (_overlapping, r"model\.safetensors: its tensors overlap"),
    "another width": (_configured(hidden_size=64), r"wrong shape: embeddings\.cls_token is \[1, 1, 32\], by config.json.*64"),
    "fewer layers": (_configured(num_hidden_layers=1), r"unexpected: encoder\.layer\.1"),
    "a vocabulary that fills no memory": (
        _configured(vocab_size=10**11),
        r"word_embeddings\.weight is .*by config.json \[10{11}",
    ),
    "a configuration with a mark": (_marked("config.json"), r"config\.json begins with a byte order mark.*without"),
    "a configuration in UTF-16": (_marked("config.json", "utf-16"), r"config\.json begins with a byte order mark"),
    "a tokenizer with a mark": (_marked("tokenizer.json"), r"tokenizer\.json begins with a byte order mark"),
    "a pointer beside the tokenizer": (_pointer("tokenizer_config.json"), r"tokenizer_config\.json is a pointer of Git LFS"),
    "another padding token": (_padded_otherwise, r"has '<pad>' as number \d+; its model knows the numbers below \d+"),
    "words that were added": (_more_words, r"has '\[NEW8\]' as number \d+.*what was added"),
    "tensors within something": (_wrapped, r"state_dict.*within 'state_dict'.*weights_only=True\)\['state_dict'\]"),
    "an old bin cut off": (_old_bin_cut, r"\.bin file.*cut off or damaged.*Download it again"),
    "a link to nowhere": (_linked_nowhere, r"model\.safetensors is a link to \.\./\.\./blobs/4d7a.*cp -L"),
    "a download that did not end": (_other_format("model.safetensors.incomplete"), r"incomplete is a download that did not end"),
    "an index that leads out": (_sharded(_outside), r"index\.json lists \.\./elsewhere/model-00001.*outside"),
    "an index of nothing": (_sharded(lambda _, places: places.clear()), r"index\.json lists no file"),
    "pieces without an index": (
        _sharded(lambda folder, _: (folder / "model.safetensors.index.json").unlink()),
        r"model-00001-of.*Download model\.safetensors\.index\.json too",
    ),
    "a checkpoint of DeepSpeed": (_trained_with_deepspeed, r"checkpoint of DeepSpeed.*zero_to_fp32"),
    "keys of a wrapper": (_prefixed, r"missing: .* and \d+ more; unexpected: module\.net\."),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_faulty_checkpoint_is_told_in_a_sentence(fault: str, small: Backbone, tmp_path: Path) -> None:
    damage, says = FAULTS[fault]
    damage(saved(tmp_path, stock(small)))
    with pytest.raises(DataError, match=f"(?s){says}") as caught:
        loaded(tmp_path)
    assert str(tmp_path) in str(caught.value), "the folder is named"
    assert caught.value.fix
    assert len(caught.value.message) < 1200
    assert not Path("/tmp/atlas-dist-trap-was-sprung").exists()


def test_a_shard_that_is_missing_is_named(small: Backbone, tmp_path: Path) -> None:
    saved(tmp_path, stock(small), max_shard_size="20KB")
    gone = sorted(tmp_path.glob("model-*.safetensors"))[1]
    gone.unlink()
    with pytest.raises(DataError, match=rf"lists {gone.name}.*Download {gone.name}"):
        loaded(tmp_path)


def test_a_shard_that_is_cut_off_is_named(small: Backbone, tmp_path: Path) -> None:
    saved(tmp_path, stock(small), max_shard_size="20KB")
    cut = sorted(tmp_path.glob("model-*.safetensors"))[1]
    os.truncate(cut, cut.stat().st_size - 10)
    with pytest.raises(DataError, match=rf"{cut.name} is cut off"):
        loaded(tmp_path)


def test_a_file_is_no_folder(small: Backbone, tmp_path: Path) -> None:
    saved(tmp_path, stock(small))
    with pytest.raises(DataError, match=r"model\.safetensors is a file.*the folder"):
        loaded(tmp_path / "model.safetensors")

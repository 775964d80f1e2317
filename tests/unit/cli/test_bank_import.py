"""`bank import`, `ls`, `show` and `push` of adapters that PEFT made, as a shell sees them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from atlas_dist.cli.bank_peft import printable
from atlas_dist.compose import compose_config
from tests.kits.peft_folders import edit, save_peft
from tests.kits.shell import Command
from tests.kits.stage import pack_toys, toy_words


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Packed toys, and an adapter whose card and configuration try to talk to a terminal."""
    folder = tmp_path_factory.mktemp("place")
    pack_toys(compose_config(list(toy_words(folder))), samples=32)
    save_peft(folder / "theirs")
    edit(folder / "theirs", base_model_name_or_path="some\x1b]0;title\x07body/other-model")
    return folder


def test_an_import_says_what_it_took_and_what_to_look_at(atlas: Command, place: Path) -> None:
    words = toy_words(place)
    said = atlas("bank", "import", str(place / "theirs"), "--task", "toy_shape", "--by", "me", *words)
    assert said.code == 0, said.err
    assert "theirs: LoRA at 4 linear layers, described by 32 samples of toy_shape, licence mit" in said.out
    assert "note: its configuration names the base model" in said.out and "\x1b" not in said.out
    assert "sequence.experience=[theirs]" in said.out
    assert "had it already" in atlas("bank", "import", str(place / "theirs"), "--task", "toy_shape", *words).out

    listed = atlas("bank", "ls", *words, "run=theirs").out
    assert "Imported adapters: 1" in listed and "mit" in listed and "\x1b]" not in listed
    (told,) = json.loads(atlas("bank", "ls", "--json", *words, "run=theirs").out)
    assert (told["imported"], told["licence"], told["imported_by"]) == ("theirs", "mit", "me")
    assert set(told["sha256"]) == {"adapter_config.json", "adapter_model.safetensors", "README.md", "LICENSE"}
    shown = atlas("bank", "show", "theirs", *words, "run=theirs").out
    assert "imported by: me" in shown and "Permission is hereby granted" in shown and "\x1b" not in shown
    assert "theirs imported from theirs by me, licence mit" in atlas("bank", "log", *words, "run=theirs").out
    assert "all whole" in atlas("bank", "verify", *words, "run=theirs").out


def test_what_is_wrong_is_one_sentence_and_exit_code_3(atlas: Command, place: Path, tmp_path: Path) -> None:
    folder = save_peft(tmp_path / "dora")
    edit(folder, use_dora=True)
    said = atlas("bank", "import", str(folder), "--task", "toy_shape", *toy_words(place))
    assert said.code == 3 and "use_dora is True" in said.err and "Fix: " in said.err and len(said.err.splitlines()) < 10


def test_words_that_do_not_belong_together_are_exit_code_2(atlas: Command, place: Path, tmp_path: Path) -> None:
    words = toy_words(place)
    assert atlas("bank", "import", str(place / "theirs"), *words).code == 2, "no samples are named"
    (tmp_path / "bank").mkdir()
    assert atlas("bank", "import", str(tmp_path / "bank"), "--task", "toy_shape", *words).code == 2, "not of PEFT"
    assert atlas("bank", "push", "me/x", "--from", str(tmp_path / "nowhere"), *words).code == 2
    assert atlas("bank", "push", "me/x", "--from", str(tmp_path), "--task", "a", *words).code == 2
    said = atlas("bank", "pull", "me/x", str(tmp_path / "new"))
    assert said.code == 2 and "HF_HUB_OFFLINE" in said.err


def test_printable() -> None:
    assert printable("a\x1b[31mb\nc\td") == "a\N{REPLACEMENT CHARACTER}[31mb\nc\td"

"""What a plan needs of a backbone is remembered under what its files hold, and never instead of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from atlas_dist.errors import DataError
from atlas_dist.model import backbone
from atlas_dist.model.backbone import load_backbone
from atlas_dist.model.backbone_facts import BackboneFacts, facts_of
from atlas_dist.model.backbone_refs import BackboneRef, named_backbone


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder of the test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the backbones that were loaded since."""
    seen: list[str] = []

    def load(ref: BackboneRef) -> backbone.Backbone:
        seen.append(ref.name)
        return load_backbone(ref)

    monkeypatch.setattr(backbone, "load_backbone", load)
    return seen


@pytest.fixture
def checkpoint(tmp_path: Path) -> BackboneRef:
    folder = tmp_path / "checkpoint"
    random = load_backbone("random-tiny", seed=1)
    random.model.save_pretrained(folder)
    random.tokenizer.save_pretrained(folder)
    return BackboneRef("mine", str(folder))


@pytest.mark.parametrize("name", ["random-tiny", "random-siglip", "random-smolvlm"])
def test_what_is_remembered_is_what_loading_says(name: str, loads: list[str]) -> None:
    ref = named_backbone(name)
    first, again = facts_of(ref), facts_of(ref)
    assert first == again == BackboneFacts.of(load_backbone(ref))
    assert loads == [name]
    assert first.writes == (name == "random-smolvlm")


def test_other_weights_in_the_same_folder_are_another_backbone(checkpoint: BackboneRef, loads: list[str]) -> None:
    first = facts_of(checkpoint)
    load_backbone("random-tiny", seed=2).model.save_pretrained(checkpoint.source)
    second = facts_of(checkpoint)
    assert loads == ["mine", "mine"]
    assert first.digest != second.digest == load_backbone(checkpoint).digest


def test_another_version_of_a_package_loads_it_again(
    checkpoint: BackboneRef, loads: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    facts_of(checkpoint)
    monkeypatch.setattr("atlas_dist.model.backbone_facts.version", lambda name: "0")
    facts_of(checkpoint)
    assert loads == ["mine", "mine"]


@pytest.mark.parametrize("said", [b"", b"{", b'{"digest": 3}', b"[]"])
def test_a_damaged_cache_is_passed_over(said: bytes, checkpoint: BackboneRef, loads: list[str], cache: Path) -> None:
    first = facts_of(checkpoint)
    (file,) = (path for path in cache.rglob("*") if path.is_file())
    file.write_bytes(said)
    assert facts_of(checkpoint) == first
    assert facts_of(checkpoint) == first
    assert loads == ["mine", "mine"], "mended on the way"


def test_without_a_place_to_remember_every_process_loads_it(checkpoint: BackboneRef, loads: list[str], cache: Path) -> None:
    cache.write_text("no folder")
    assert facts_of(checkpoint) == facts_of(checkpoint)
    assert loads == ["mine", "mine"]


def test_what_cannot_be_loaded_is_never_remembered(checkpoint: BackboneRef, cache: Path) -> None:
    (Path(checkpoint.source) / "model.safetensors").write_bytes(b"damaged")
    for _ in range(2):
        with pytest.raises(DataError):
            facts_of(checkpoint)
    assert not cache.exists()

"""`doctor` of a whole run and `shards verify`: what is wrong with packed data, in a sentence with what to do."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from tests.kits.shell import Shell

WORDS = ("experiment=mine", "backbone.name=random-tiny")


def packed(shell: Shell) -> Path:
    """Two tasks, packed; the folder of the shards."""
    for task in ("one", "two"):
        for split, count in (("train", 6), ("val", 3)):
            for label in ("a", "b"):
                folder = Path("data", task, split, label)
                folder.mkdir(parents=True)
                for i in range(count):
                    Image.new("RGB", (9, 9), (i * 20, 40, 9)).save(folder / f"{i}.png")
    assert shell("init", "mine", "data/one", "data/two")[0] == 0
    assert shell("shards", "pack", *WORDS)[0] == 0
    return Path("mine-run/shards")


def test_the_doctor_of_a_run_tells_what_is_there(shell: Shell) -> None:
    packed(shell)
    code, said = shell("doctor", *WORDS)
    assert code == 0, said
    assert "ok    task one: one/train: 12 samples, 2 classes, 1 shards" in said and said.count("ok    task ") == 4
    assert said.count("are free below") == 2 and "Nothing stands in the way" in said and "one winner a key" in said


def gone(shards: Path) -> None:
    (shards / "one/val/manifest.json").unlink()


def no_tar(shards: Path) -> None:
    next((shards / "one/val").glob("*.tar")).unlink()


def cut(shards: Path) -> None:
    tar = next((shards / "one/val").glob("*.tar"))
    tar.write_bytes(tar.read_bytes()[:-700])


def torn(shards: Path) -> None:
    (shards / "one/val/manifest.json").write_text("{")


def of_another_task(shards: Path) -> None:
    """A folder put in the place of another, whose classes differ."""
    from atlas_dist.core.types import TaskKind
    from atlas_dist.data.inspect import run_index
    from atlas_dist.store.local import LocalStore

    (shards / "one/val/manifest.json").unlink()
    run_index(LocalStore(shards.absolute()), "one", "val", TaskKind.SINGLE, ("a", "c"))


FAULTS: dict[str, tuple[Callable[[Path], None], str, str]] = {
    "not packed": (gone, "There is no one/val/manifest.json", "atlas-dist shards pack"),
    "a shard is missing": (no_tar, "1 of 1 shards are missing: 000000.tar", "pack.overwrite=true"),
    "a shard is cut": (cut, "shards are not those of its manifest: 000000.tar has", "pack.overwrite=true"),
    "a torn manifest": (torn, "is damaged or not a manifest", "again"),
    "other classes": (of_another_task, "its classes are not those of train (2 and 2: b, c)", "with the same classes"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_is_wrong_with_the_data_is_told_and_the_rest_looked_at(shell: Shell, fault: str) -> None:
    damage, says, fix = FAULTS[fault]
    damage(packed(shell))
    code, said = shell("doctor", *WORDS)
    flat = " ".join(said.split())
    assert code == 3 and "FAIL task one: one/val: " in flat and says in flat, said
    assert fix in flat and "ok task two: two/val" in flat and "Traceback" not in said and "1 of " in said
    code, said = shell("shards", "verify", *WORDS)
    flat = " ".join(said.split())
    assert code == 3 and "two/val: whole" in flat and "one/train: whole" in flat, said
    assert says in flat or "one/val: 1 damaged" in flat or "one/val: 2 damaged" in flat, said


def test_tars_beside_are_noted_and_a_shard_that_rotted_is_found_by_verify(shell: Shell) -> None:
    shards = packed(shell)
    tar = next((shards / "one/val").glob("*.tar"))
    (shards / "one/val/more.tar").write_bytes(tar.read_bytes())
    code, said = shell("doctor", *WORDS)
    assert code == 0 and "1 tars lie beside that its manifest does not list (more.tar)" in said
    code, said = shell("shards", "verify", *WORDS)
    assert code == 0 and "1 tars lie beside" in said
    (shards / "one/val/one more.tar").write_bytes(tar.read_bytes())
    assert "2 tars lie beside that its manifest does not list (more.tar, one more.tar)" in shell("doctor", *WORDS)[1]
    data = bytearray(tar.read_bytes())
    data[700] ^= 1
    tar.write_bytes(data)
    assert shell("doctor", *WORDS)[0] == 0, "it reads no shard"
    code, said = shell("shards", "verify", *WORDS)
    assert code == 3 and "one/val: 1 damaged" in said and "000000.tar part 0" in said


def test_a_full_disk_and_a_small_one_for_the_cache_are_said(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    packed(shell)
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 5_000_000_000}))
    code, said = shell("doctor", *WORDS, "shards.cache_dir=cache", "shards.cache_mb=20000")
    assert code == 0 and "5.0 GB are free below" in said and "it may take 21.0 GB and stays smaller (shards.cache_mb)" in said
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 1_000}))
    code, said = shell("doctor", *WORDS)
    assert code == 6 and "FAIL  room for the store: 0.0 GB are free" in said and "Free some space" in said


def test_a_store_alone_is_checked_as_ever_whatever_it_is_called(shell: Shell) -> None:
    for name in ("store", "a=b", "with space", "x y=1/z"):
        code, said = shell("doctor", name)
        assert code == 0 and f"{name} is fit to hold runs" in said and "are free below" in said, said
    code, said = shell("doctor", "a", "b")
    assert code == 2 and "neither one store nor the settings" in said

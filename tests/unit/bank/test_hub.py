"""Pushing and pulling, against the hub's endpoints on the loopback: one commit up, that commit down, no code."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub.constants
import pytest

from atlas_dist.bank.adopt_adapter import PULLED_FILE
from atlas_dist.bank.hub import pull, push
from atlas_dist.errors import AtlasError, AuthError, ConfigError, DataError, StoreError
from tests.kits.hub import Hub, fake_hub, use_hub
from tests.kits.peft_folders import save_peft


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    with fake_hub() as hub:
        use_hub(hub, tmp_path, monkeypatch)
        yield hub


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_what_was_pushed_is_pulled_to_the_last_byte(hub: Hub, tmp_path: Path) -> None:
    theirs = save_peft(tmp_path / "theirs")
    pushed = push(theirs, "me/theirs")
    assert hub.repos["me/theirs"].private and pushed.commit == hub.repos["me/theirs"].branches["main"]
    assert pushed.commit in pushed.url
    pulled = pull("me/theirs", tmp_path / "back")
    assert pulled.commit == pushed.commit
    found = contents(tmp_path / "back")
    assert json.loads(found.pop(PULLED_FILE)) == {"repo": "me/theirs", "commit": pushed.commit}
    assert found == contents(theirs)


def test_an_older_commit_is_pulled_by_its_name(hub: Hub, tmp_path: Path) -> None:
    theirs = save_peft(tmp_path / "theirs")
    first = push(theirs, "me/theirs")
    (theirs / "LICENSE").write_text("another\n")
    second = push(theirs, "me/theirs")
    assert first.commit != second.commit
    pull("me/theirs", tmp_path / "old", revision=first.commit)
    pull("me/theirs", tmp_path / "new")
    assert (tmp_path / "old" / "LICENSE").read_text() != (tmp_path / "new" / "LICENSE").read_text() == "another\n"


def test_a_commit_that_comes_in_between_is_not_mixed_in(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = save_peft(tmp_path / "theirs")
    first = push(theirs, "me/theirs")
    info = huggingface_hub.HfApi.model_info

    def then_somebody_commits(self: huggingface_hub.HfApi, *args: object, **more: object) -> object:
        found = info(self, *args, **more)  # type: ignore[arg-type]
        hub.repos["me/theirs"].commit("main", {"LICENSE": b"changed meanwhile\n"})
        return found

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", then_somebody_commits)
    assert pull("me/theirs", tmp_path / "back").commit == first.commit
    assert (tmp_path / "back" / "LICENSE").read_text() == (theirs / "LICENSE").read_text()


def test_pickles_and_code_are_left_where_they_are(hub: Hub, tmp_path: Path) -> None:
    push(save_peft(tmp_path / "theirs"), "me/theirs")
    hub.repos["me/theirs"].commit(
        "main", {"adapter_model.bin": b"\x80", "run.py": b"boom", "LICENSE.py": b"boom", "sub/NOTICE": b"read me"}
    )
    pull("me/theirs", tmp_path / "back")
    names = set(contents(tmp_path / "back"))
    assert {"adapter_model.safetensors", "LICENSE", "README.md", "sub/NOTICE"} <= names
    assert not names & {"adapter_model.bin", "run.py", "LICENSE.py"}


def refused(kind: type[AtlasError], says: str, call: object) -> None:
    with pytest.raises(kind, match=says) as error:
        call()  # type: ignore[operator]
    assert type(error.value) is kind and len(str(error.value)) < 700


def test_what_goes_wrong_is_said(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = save_peft(tmp_path / "theirs")
    refused(ConfigError, "There is no me/nothing", lambda: pull("me/nothing", tmp_path / "a"))
    refused(ConfigError, "names no repository", lambda: pull("no//name", tmp_path / "a"))
    push(theirs, "me/theirs")
    refused(ConfigError, "no such revision", lambda: pull("me/theirs", tmp_path / "a", revision="v9"))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    refused(DataError, "not an empty folder", lambda: pull("me/theirs", tmp_path / "full"))
    (theirs / "README.md").write_text("---\nlicense: nonsense\n---\n")
    refused(DataError, "refuses", lambda: push(theirs, "me/theirs"))
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    refused(AuthError, "does not allow", lambda: push(theirs, "me/other"))
    hub.refuse = 403
    refused(AuthError, "403", lambda: pull("me/theirs", tmp_path / "b"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    refused(ConfigError, "HF_HUB_OFFLINE", lambda: pull("me/theirs", tmp_path / "c"))


def test_a_hub_that_is_away_is_a_store_in_trouble(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.refuse = 500
    refused(StoreError, "500", lambda: pull("me/theirs", tmp_path / "a"))
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    refused(StoreError, "cannot be reached", lambda: pull("me/theirs", tmp_path / "b"))

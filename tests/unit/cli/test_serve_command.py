"""`serve`: what stands in its way is said before a Ray starts, in two lines, with the exit code of its kind."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from atlas_dist import packages
from atlas_dist.serve.guard import TOKEN
from tests.kits.shell import Command


@pytest.fixture(autouse=True)
def no_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(TOKEN, raising=False)


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        ((), 3, "nowhere"),
        (("--host", "0.0.0.0"), 2, "can be reached by others"),
        (("--cluster", "auto"), 2, "On a cluster others reach the service"),
        (("--cpus", "5000"), 2, "1 replicas need 5000 cpus"),
        (("--max-batch", "0"), 2, "max_batch"),
        (("--max-megapixels", "1000"), 2, "max_megapixels"),
        (("--host", "192.0.2.77"), 2, "can be reached by others"),
    ],
)
def test_what_stands_in_its_way_is_said(atlas: Command, words: tuple[str, ...], code: int, said: str) -> None:
    got = atlas("serve", "--from", "nowhere", "--port", "0", *words)
    assert got.code == code, got.err
    assert said in got.err
    assert "Fix" in got.err or "max_" in said


def test_a_port_that_is_taken_is_named(atlas: Command) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        got = atlas("serve", "--from", "nowhere", "--port", str(port))
    assert got.code == 2
    assert f"Cannot listen on 127.0.0.1:{port}" in got.err and "--port" in got.err


def test_a_token_that_is_too_short_is_not_shown(atlas: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(TOKEN, "hunter2")
    got = atlas("serve", "--from", "nowhere", "--port", "0")
    assert got.code == 2
    assert TOKEN in got.err and "hunter2" not in got.err + got.out


def test_a_missing_package_names_the_extra(atlas: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    found = packages.find_spec
    monkeypatch.setattr(packages, "find_spec", lambda name: None if name == "grpc_reflection" else found(name))
    got = atlas("serve", "--from", str(tmp_path), "--port", "0")
    assert got.code == 2
    assert "grpc_reflection" in got.err and "atlas-dist[serve]" in got.err

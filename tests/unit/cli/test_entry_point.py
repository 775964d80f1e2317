"""Whatever goes wrong, a shell sees cause, value and fix in under ten lines; the traceback only when it asks for it."""

from __future__ import annotations

import errno
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from atlas_dist.store.local import LocalStore
from tests.kits.bank import copied, toys
from tests.kits.shell import Command, Shell

Words = tuple[str, ...]


class _Refusing(BaseHTTPRequestHandler):
    """An S3 that knows no bucket called `missing` and lets nobody into any other."""

    def _answer(self) -> None:
        missing = self.path.startswith("/missing")
        code, status = ("NoSuchBucket", 404) if missing else ("AccessDenied", 403)
        body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>no</Message></Error>".encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_GET = do_HEAD = do_PUT = _answer

    def log_message(self, format: str, *args: object) -> None:
        """Not to the test's output."""


@pytest.fixture(scope="module")
def refusing() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Refusing)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def shell(atlas: Command) -> Shell:
    """Exit code and what stderr got."""

    def call(*words: str) -> tuple[int, str]:
        said = atlas(*words)
        return said.code, said.err

    return call


def _torn_manifest(folder: Path, _: str) -> Words:
    words = copied(toys(), folder)
    manifest = folder / "toys" / "shards" / "toy_kin" / "train" / "manifest.json"
    manifest.write_bytes(manifest.read_bytes()[:-40])
    return ("plan", *words)


def _no_shards(folder: Path, _: str) -> Words:
    return ("plan", "experiment=toy", f"shards.url={folder}/nothing")


def _damaged_adapter(folder: Path, _: str) -> Words:
    words = copied(toys(), folder)
    adapter = folder / "toys" / "store" / toys().bank.find("toy_kin").ref.prefix / "adapter.safetensors"
    adapter.write_bytes(b"\1" + adapter.read_bytes()[1:])
    return ("bank", "verify", *words)


def _broken_ledger(folder: Path, _: str) -> Words:
    words = copied(toys(), folder)
    (folder / "toys" / "store" / "runs" / "toy" / "ledger" / f"{4:016d}").unlink()
    return ("status", *words)


def _another_backbone(folder: Path, _: str) -> Words:
    from atlas_dist.bank.package import export_bank
    from atlas_dist.bank.weights import load_weights

    learnt = toys()
    export_bank(learnt.store, learnt.bank, load_weights(learnt.store, learnt.bank), folder / "bank")
    path = folder / "bank" / "adapter_config.json"
    about = json.loads(path.read_text())
    about["base_model"]["name"] = "tiny"
    path.write_text(json.dumps(about))
    return ("predict", "--from", str(folder / "bank"), "--task", "toy_shape")


def _in_the_way(folder: Path) -> str:
    (folder / "file").write_text("not a folder")
    return str(folder / "file")


def _no_picture(folder: Path, _: str) -> Words:
    return ("predict", *toys().words, "--task", "toy_shape", "--image", _in_the_way(folder))


def _store_in_the_way(folder: Path, _: str) -> Words:
    return ("run", *toys().words, f"store.url={_in_the_way(folder)}/store")


def _report_in_the_way(folder: Path, _: str) -> Words:
    return ("report", *toys().words, f"report={_in_the_way(folder)}")


def _shards_of(bucket: str) -> Callable[[Path, str], Words]:
    return lambda _, s3: ("shards", "ls", "experiment=toy", f"shards.url=s3://{bucket}/x", f"shards.endpoint_url={s3}")


CASES: dict[str, tuple[Callable[[Path, str], Words], int, tuple[str, ...]]] = {
    "unknown key": (lambda *_: ("plan", "train.workrs=3"), 2, ("train.workrs", "did you mean workers")),
    "unknown choice": (lambda *_: ("plan", "experiment=dmeo"), 2, ("dmeo", "demo")),
    "bad value": (lambda *_: ("config", "train.precision=fp8"), 2, ("train.precision", "fp8", "bf16")),
    "many faults": (
        lambda *_: ("config", *(f"train.k{n}=1" for n in range(12))),
        2,
        ("train.k0", "lines more"),
    ),
    "unknown key to explain": (lambda *_: ("config", "--explain", "train.sped"), 2, ("train has no sped", "workers")),
    "missing bucket": (lambda _, s3: ("bank", "ls", "store.url=s3://missing/x", f"store.endpoint_url={s3}"), 6, ("missing",)),
    "denied": (lambda _, s3: ("bank", "ls", "store.url=s3://closed/x", f"store.endpoint_url={s3}"), 4, ("closed",)),
    "missing bucket of shards": (_shards_of("missing"), 6, ("s3://missing/x",)),
    "shards denied": (_shards_of("closed"), 4, ("s3://closed/x", "credentials")),
    "no address": (
        lambda *_: ("bank", "ls", "store.url=s3://closed/x", "store.endpoint_url=10.0.0.1:9000"),
        2,
        ("endpoint_url=10.0.0.1:9000", "http://"),
    ),
    "wrong option": (lambda *_: ("run", "--wrong"), 2, ("--wrong", "--help")),
    "no store to write": (_store_in_the_way, 6, ("store.url=", "can't be written", "another folder")),
    "no report to write": (_report_in_the_way, 6, ("file", "set report")),
    "another run's name": (
        lambda *_: ("run", *toys().words, "seeds=[9]"),
        2,
        ("means something else", "seeds: [0] -> [9]", "name"),
    ),
    "no backbone there": (
        lambda *_: ("plan", *toys().words, "backbone.name=mine", "backbone.source=/nowhere"),
        3,
        ("no folder '/nowhere'", "backbone.source"),
    ),
    "no picture": (_no_picture, 3, ("file", "neither JPEG nor PNG", "Convert")),
    "nobody to pause": (lambda folder, _: ("pause", f"store.url={folder}"), 2, ("no run demo", "atlas-dist run")),
    "no bucket": (lambda *_: ("doctor", "s3://"), 2, ("bucket", "s3://bucket/prefix")),
    "two slashes": (lambda *_: ("doctor", "file://runs/x"), 2, ("'runs'", "file:///", "runs/x for a folder below this one")),
    "one slash": (lambda *_: ("doctor", "s3:/bucket/x"), 2, ("s3:/bucket/x", "s3://bucket/x")),
    "no shards": (_no_shards, 3, ("toy_", "nothing")),
    "torn manifest": (_torn_manifest, 3, ("toy_kin", "manifest")),
    "damaged adapter": (_damaged_adapter, 3, ("1 of", "replica")),
    "broken ledger": (_broken_ledger, 6, ("gap", "restore")),
    "no such run": (lambda folder, _: ("bank", "ls", f"store.url={folder}"), 2, ("no run demo", "none")),
    "no run to show": (lambda folder, _: ("logs", f"store.url={folder}"), 2, ("no run demo", "atlas-dist run")),
    "wrong backbone": (_another_backbone, 2, ("another backbone", "tiny", "backbone.source")),
    "no bank": (lambda folder, _: ("predict", "--from", f"{folder}/x", "--task", "a"), 3, ("adapter_config.json", "bank export")),
    "nothing asked": (lambda *_: ("predict",), 2, ("--task", "--jsonl")),
    "no data to start from": (lambda folder, _: ("init", "mine", f"{folder}/none"), 3, ("no folder", "none")),
}


@pytest.mark.parametrize("case", CASES)
def test_an_error_says_cause_value_and_fix(case: str, shell: Shell, refusing: str, tmp_path: Path) -> None:
    make, code, says = CASES[case]
    got, text = shell(*make(tmp_path, refusing))
    assert got == code, text
    lines = text.strip().splitlines()
    assert len(lines) < 10, text
    assert "Traceback" not in text
    assert "not-a-secret-value" not in text
    assert all(word in text for word in says), text
    assert "Fix: " in text or "\n" in text.strip() or case == "bad value", "what to do about it"


def test_a_profile_that_is_not_there_is_a_matter_of_credentials(
    shell: Shell, refusing: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "config").write_text("[profile work]\nregion = us-east-1\n")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/dev/null")
    monkeypatch.setenv("AWS_PROFILE", "nosuch")
    for words in (("doctor", "s3://b/a", "--endpoint-url", refusing), ("bank", "ls", "store.url=s3://b/a")):
        code, text = shell(*words)
        assert code == 4, text
        assert "nosuch" in text
        assert "Set AWS_PROFILE to one that exists, or unset it; the profiles there are work." in text


def test_a_configuration_file_of_the_sdk_that_cannot_be_read_is_named(
    shell: Shell, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "config").write_text("no section\n")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    code, text = shell("bank", "ls", "store.url=s3://b/a")
    assert code == 4, text
    assert "AWS_CONFIG_FILE" in text


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("store.region=us east",), "store.region"),
        (("store.endpoint_url=ftp://host",), "http://"),
        (("store.endpoint_url=http://ho st:9",), "endpoint_url"),
    ],
)
def test_a_server_that_cannot_be_meant_is_a_matter_of_settings(shell: Shell, words: Words, says: str) -> None:
    code, text = shell("bank", "ls", "store.url=s3://b/a", *words)
    assert code == 2, text
    assert says in text
    assert "Fix: " in text


@pytest.mark.parametrize(("number", "says"), [(errno.ENOSPC, "make room"), (errno.EROFS, "read-only"), (errno.EIO, "--debug")])
def test_a_disk_that_fails_is_told_like_everything_else(
    shell: Shell, monkeypatch: pytest.MonkeyPatch, number: int, says: str, tmp_path: Path
) -> None:
    def full(*_: object) -> None:
        raise OSError(number, "the system's words", "/some/file")

    monkeypatch.setattr(LocalStore, "list", full)
    code, text = shell("bank", "ls", f"store.url={tmp_path}")
    assert code == 6
    assert "/some/file: the system's words." in text
    assert says in text
    assert len(text.strip().splitlines()) < 10
    assert "Traceback" not in text


def test_a_full_disk_at_an_export_leaves_the_store_alone(shell: Shell, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    words = toys().words

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    code, text = shell("bank", "export", str(tmp_path / "out"), *words)
    assert code == 6
    assert "No space left on device" in text
    assert "disk full" in text


def test_what_nobody_foresaw_is_told_in_two_lines_and_with_debug_in_full(
    shell: Shell, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("deep down")

    monkeypatch.setattr(LocalStore, "list", broken)
    code, text = shell("bank", "ls", f"store.url={tmp_path}")
    assert code == 1
    assert "ZeroDivisionError: deep down" in text
    assert "--debug" in text
    assert "Traceback" not in text
    code, text = shell("--debug", "bank", "ls", f"store.url={tmp_path}")
    assert code == 1
    assert "Traceback" in text
    assert "in broken" in text


def test_debug_shows_where_an_expected_error_came_from(shell: Shell) -> None:
    code, text = shell("--debug", "config", "train.workers=0")
    assert code == 2
    assert "Traceback" in text
    assert "load_config" in text

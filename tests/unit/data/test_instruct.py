"""Instructions as public sets have them become questions with written answers; what cannot be used is counted by its reason."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from atlas_dist.app.init import init
from atlas_dist.compose import compose_config
from atlas_dist.core.types import TaskKind
from atlas_dist.data.decode import AnswerEncoder, ConversationPrompt
from atlas_dist.data.leftout import by_reason
from atlas_dist.data.manifest import read_manifest
from atlas_dist.data.pack import PackReport, run_pack
from atlas_dist.data.recognise import recognise
from atlas_dist.data.sample import parse_sample
from atlas_dist.errors import DataError
from atlas_dist.store.objects import MemoryStore
from tests.kits.data import letter_tokenizer, memory_store


def turns(*said: str, system: str = "") -> list[dict[str, Any]]:
    speakers = ["user", "assistant"] * len(said)
    first = [{"role": "system", "content": system}] if system else []
    return first + [{"role": speaker, "content": text} for speaker, text in zip(speakers, said, strict=False)]


ASKED = [{"type": "image"}, {"type": "text", "text": "What is this?"}]
GOOD: tuple[tuple[dict[str, Any], str, str], ...] = (
    (
        {"messages": [{"role": "user", "content": ASKED}, *turns("", "A red square.")[1:]], "images": ["a.png"]},
        "What is this?",
        "A red square.",
    ),
    ({"messages": turns("<image>\nHow many?", "2", system="Be brief."), "images": ["a.png"]}, "Be brief.\nHow many?", "2"),
    (
        {
            "id": "7",
            "image": "a.png",
            "conversations": [{"from": "human", "value": "What colour?\n<image>"}, {"from": "gpt", "value": "red"}],
        },
        "What colour?",
        "red",
    ),
    (
        {"messages": [{"role": "user", "content": [{"type": "image", "path": "a.png"}, ASKED[1]]}, *turns("", "x")[1:]]},
        "What is this?",
        "x",
    ),
    ({"messages": turns("One?", "first", "Two?", " "), "images": ["a.png"]}, "One?", "first"),
)
BAD: tuple[tuple[dict[str, Any], str], ...] = (
    ({"text": "a", "images": ["a.png"]}, "no turns"),
    ({"messages": "hello", "images": ["a.png"]}, "no turns"),
    ({"messages": [{"role": "tool", "content": "x"}], "images": ["a.png"]}, "a turn of somebody else"),
    ({"messages": [{"role": "user", "content": 5}], "images": ["a.png"]}, "no text"),
    (
        {"messages": [{"role": "user", "content": [{"type": "video"}]}], "images": ["a.png"]},
        "a part that is neither text nor picture",
    ),
    ({"messages": turns("What?"), "images": ["a.png"]}, "no question with its answer"),
    ({"messages": turns("What?", " "), "images": ["a.png"]}, "an empty answer"),
    ({"messages": turns("<image>", "red"), "images": ["a.png"]}, "an empty question"),
    ({"messages": turns("What?", "\ud800"), "images": ["a.png"]}, "half a character"),
    ({"messages": turns("What?", "red"), "images": [{"bytes": "…"}]}, "a picture that is no file"),
    ({"messages": turns("What?", "red"), "images": ["gone.png"]}, "missing file"),
)
OTHER = ({"messages": turns("Hello?", "Hi.")}, {"messages": turns("Which?", "the left"), "images": ["a.png", "a.png"]})


def packed(folder: Path, records: list[dict[str, Any]], store: MemoryStore, **more: Any) -> PackReport:
    (folder / "train.jsonl").write_text("\n".join(json.dumps(record) for record in records))
    Image.new("RGB", (12, 12), (200, 40, 40)).save(folder / "a.png")
    return run_pack("instruct_jsonl", folder, store, "d", "train", image_size=16, **more)


def stored(store: MemoryStore) -> list[dict[str, Any]]:
    manifest = read_manifest(store, "d", "train")
    out = []
    for shard in manifest.shards:
        with tarfile.open(fileobj=io.BytesIO(store.get(f"d/train/{shard.name}"))) as tar:
            members = [(member.name, tar.extractfile(member)) for member in tar.getmembers()]
            out += [json.loads(file.read()) for name, file in members if file is not None and name.endswith(".json")]
    return sorted(out, key=lambda body: str(body["id"]))


def test_either_form_becomes_a_question_and_its_answer(tmp_path: Path) -> None:
    store = memory_store()
    report = packed(tmp_path, [record for record, _, _ in GOOD], store)
    assert (report.manifest.kind, report.manifest.images, report.manifest.classes) == (TaskKind.GENERATE, 1, ())
    assert report.left_out == () and report.notes == (
        "1 of 5 records go on after the last answer that can be used: what follows is not learnt",
    )
    told = {(body["texts"][0][0], body["answer"]) for body in stored(store)}
    assert told == {(question, answer) for _, question, answer in GOOD}
    assert "7" in [body["id"] for body in stored(store)]


DIGEST = "f268ce0ae5ed82ca3eebbbd453cdfd7416490f8892fcf867338e78ba04dccbe0"
TALK = {"id": "t", "messages": turns("One?", "first", "Two?", "second", "Three?", system="Be brief."), "images": ["a.png"]}


def test_each_answer_of_a_conversation_is_a_sample_with_the_turns_before_it(tmp_path: Path) -> None:
    store = memory_store()
    report = packed(tmp_path, [TALK, GOOD[0][0]], store)
    assert report.notes == (
        "2 records have 3 answers: each is a sample, with the turns before it",
        "1 of 2 records go on after the last answer that can be used: what follows is not learnt",
    )
    first, second = (next(body for body in stored(store) if body["id"] == name) for name in ("t", "t#2"))
    assert (first["texts"], first["answer"], "earlier" in first) == ([["Be brief.\nOne?"]], "first", False)
    assert (second["texts"], second["answer"]) == ([["Two?"]], "second")
    assert second["earlier"] == [["Be brief.\nOne?", "first"]]
    read = parse_sample({"json": memoryview(json.dumps(second).encode())})
    assert read.earlier == (("Be brief.\nOne?", "first"),)
    only = packed(tmp_path, [TALK], memory_store(), options={"turns": "first"})
    assert only.manifest.samples == 1 and only.notes == (
        "1 of 1 records go on after the first answer: what follows is not learnt",
    )


def test_data_of_single_turns_keep_the_digest_that_they_had(tmp_path: Path) -> None:
    """Taken before there were conversations."""
    records = [{"messages": turns(f"{n}?", "yes")} for n in range(4)]
    report = packed(tmp_path, records, memory_store(), options={"pictures": 0})
    assert report.manifest.digest == DIGEST


@pytest.mark.parametrize("earlier", [["a", "b"], [["a"]], [["a", 1]], 5, [["a", "\ud800"]]])
def test_turns_that_cannot_be_read_are_no_sample(earlier: Any) -> None:
    body = json.dumps({"id": "t", "texts": [["b?"]], "answer": "b", "earlier": earlier}).encode()
    with pytest.raises(DataError, match="cannot be read"):
        parse_sample({"json": memoryview(body)})
    other = json.dumps({"id": "t", "texts": [["b?"]], "label": 1, "earlier": earlier}).encode()
    assert parse_sample({"json": memoryview(other)}).earlier == (), "another kind of sample may have what it likes there"


def test_a_conversation_too_long_loses_its_oldest_turns_and_that_is_said(tmp_path: Path) -> None:
    asked = ConversationPrompt(letter_tokenizer(), " A ", " Q ", length=12)
    earlier = (("aaa", "bb"), ("cc", "d"))
    assert asked((("ee", "f"),), ()) == (("ee", "f"),)
    assert asked((("ee",),), earlier[1:]) == asked((("ee",),), earlier) == (("cc A d Q ee",),)
    assert asked((("abcdefghijklmnop",),), earlier) == (("abcdefghijklmnop",),), "which is then cut as any text is"
    report = packed(tmp_path, [TALK], memory_store(), asked=ConversationPrompt(letter_tokenizer(), " A ", " Q ", length=8))
    wanted = "1 of 2 records have earlier turns of more tokens than max_text: the oldest will be left out (first: t#2)"
    assert wanted in report.notes


def test_what_cannot_be_used_is_counted_by_its_reason(tmp_path: Path) -> None:
    records = [record for record, _, _ in GOOD] + [record for record, _ in BAD] + list(OTHER)
    report = packed(tmp_path, records, memory_store(), max_bad=0.9)
    found = {reason: len(entries) for reason, entries in by_reason(report.left_out).items()}
    wanted: dict[str, int] = {"a record with no picture": 1, "a record with several pictures": 1}
    for _, reason in BAD:
        wanted[reason] = wanted.get(reason, 0) + 1
    assert found == wanted and report.manifest.samples == len(GOOD)
    assert not any(entry.bad for entry in report.left_out if "a record with" in entry.reason), "the set's own kinds are no faults"
    assert any("train.jsonl, line 6" in entry.record for entry in report.left_out)
    with pytest.raises(DataError, match=r"more than pack\.max_bad"):
        packed(tmp_path, records, memory_store())


def test_records_without_pictures_are_a_task_of_their_own(tmp_path: Path) -> None:
    store = memory_store()
    report = packed(tmp_path, [*(record for record, _, _ in GOOD), *OTHER], store, options={"pictures": 0})
    assert (report.manifest.images, report.manifest.samples) == (0, 1) and stored(store)[0]["answer"] == "Hi."
    assert {entry.reason for entry in report.left_out} == {"a record with one picture", "a record with several pictures"}


def test_answers_that_training_would_cut_are_said(tmp_path: Path) -> None:
    encode = AnswerEncoder(letter_tokenizer(), " ", end=3, most=5)
    report = packed(tmp_path, [record for record, _, _ in GOOD], memory_store(), long_answers=encode.longer)
    wanted = "2 of 5 records have an answer of more tokens than max_new_tokens: they will be cut (first: train-0)"
    assert wanted in report.notes
    assert (
        encode.longer(["four", "fiveo", "red"])
        == [1]
        == [n for n, row in enumerate(encode(["four", "fiveo", "red"])) if 3 not in row]
    )


def test_init_finds_instructions_and_chooses_a_decoder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "asked"
    folder.mkdir()
    records = [{"messages": turns(f"What is number {n}?", "red"), "images": ["a.png"]} for n in range(20)]
    packed(folder, records, memory_store())
    found = recognise(folder, 0.2)
    assert (found.kind, found.converter) == (TaskKind.GENERATE, "instruct_jsonl") and 10 < found.samples < 20
    assert found.options["pictures"] == 1
    (folder / "train.jsonl").write_text("\n".join(json.dumps({"messages": turns(f"{n}?", "yes")}) for n in range(20)))
    assert recognise(folder, 0.2).options["pictures"] == 0
    monkeypatch.chdir(tmp_path)
    written = init("asking", [folder])
    assert "override /backbone: smolvlm_256m" in (tmp_path / "configs/experiment/asking.yaml").read_text()
    assert "kind: generate" in (tmp_path / "configs/task/asked.yaml").read_text() and len(written.files) == 3
    config = compose_config(["experiment=asking", "train.precision=fp32"])
    assert config.backbone.name == "smolvlm-256m" and config.tasks["asked"].new_tokens == 16

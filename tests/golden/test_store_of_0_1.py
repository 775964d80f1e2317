"""A store that 0.1 wrote still opens: status, bank, predict, report, and a run of the same settings finds everything done.

`store-0.1.tar.gz` is what a run of `experiment=toy` left with 0.1 (commit f8dc0fa): its store, whole, and the manifests of its
shards. What the code of that commit answered to `QUESTIONS` stands beside them.
"""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import pytest
from PIL import Image

from atlas_dist.bank.contents import read_bank
from atlas_dist.compose import compose_config
from atlas_dist.coordinator.coordinator import meaning
from atlas_dist.coordinator.expand import expand, specification
from atlas_dist.core.keys import canonical_json
from atlas_dist.core.records import Begin
from atlas_dist.core.result_files import AdapterConfig
from atlas_dist.core.results import EvalResult, TrainResult
from atlas_dist.core.types import JobKind
from atlas_dist.runs.status import load_run
from atlas_dist.runs.stores import open_run_store
from atlas_dist.store import artifacts
from tests.kits.shell import Command, say

RECORDED = Path(__file__).parent / "store-0.1.tar.gz"

QUESTIONS = [
    ({"task": "toy_kin", "text": "what?", "choices": ["a", "b", "c"]}, 0, [0.333342, 0.333318, 0.333339]),
    ({"task": "toy_pair", "image": ["red.png", "red.png"], "text": "the same"}, 1, [0.461571, 0.538429]),
    (
        {"task": "toy_ask", "image": "red.png", "text": "what colour?"},
        6,
        [0.498363, 0.448821, 0.508893, 0.436109, 0.372299, 0.507585, 0.516519],
    ),
]
"""What was asked, the index of 0.1's answer, and its scores."""

MATRIX = {
    "task": [[14.0625], [14.0625, 17.1875], [14.0625, 17.1875, 23.906250298023224]],
    "latest": [[14.0625], [14.0625, 17.1875], [14.0625, 15.625, 23.906250298023224]],
}
"""In the `run.json` that 0.1 wrote."""


@pytest.fixture
def words(tmp_path: Path) -> tuple[str, ...]:
    """A run of the recorded settings over a copy of the store."""
    with tarfile.open(RECORDED) as packed:
        packed.extractall(tmp_path, filter="data")
    return ("experiment=toy", "method=atlas_paper", f"store.url={tmp_path}/store", f"shards.url={tmp_path}/shards")


@pytest.fixture
def atlas(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Command:
    monkeypatch.chdir(tmp_path)
    return lambda *words: say(monkeypatch, capsys, words)


def test_the_same_settings_give_the_same_plan_and_everything_is_done(words: tuple[str, ...]) -> None:
    config = compose_config(words)
    plan = expand(config)
    state, entries = load_run(open_run_store(config), config.run)
    begin = entries[0].record
    assert isinstance(begin, Begin)
    spec = specification(config)
    assert canonical_json(spec) == canonical_json(begin.spec)
    assert (plan.digest, meaning(plan, spec)) == (begin.plan_digest, begin.spec_digest)
    assert {key for key, job in state.jobs.items() if job.committed} == set(plan.jobs)


def test_every_result_is_read_and_would_be_written_the_same(words: tuple[str, ...]) -> None:
    config = compose_config(words)
    store, plan = open_run_store(config), expand(config)
    state, _ = load_run(store, config.run)
    for key, job in plan.jobs.items():
        ref = state.job(key).committed
        assert ref is not None
        kind = EvalResult if job.kind is JobKind.EVAL else TrainResult
        assert canonical_json(kind.of(ref).to_json()) == canonical_json(ref.metrics)
        if any(blob.name == "adapter_config.json" for blob in ref.blobs):
            data = artifacts.load(store, ref, "adapter_config.json")
            assert AdapterConfig.from_json(data, "it").to_json() == data


def test_status_and_bank_tell_what_was_learnt(atlas: Command, words: tuple[str, ...]) -> None:
    about = json.loads(atlas("status", "--json", *words).out)
    assert (about["phase"], about["committed"], about["total"]) == ("complete", 14, 14)
    listed = json.loads(atlas("bank", "ls", "--json", *words).out)
    assert [each["task"] for each in listed] == ["toy_shape", "toy_kin", "toy_ask", "toy_pair"]
    bank = read_bank(open_run_store(compose_config(words)), "toy")
    kin = bank.evaluation_of(bank.find("toy_kin").key)
    assert kin is not None
    assert (kin.score, kin.samples, len(kin.without)) == (17.1875, 128, 2)
    assert atlas("bank", "verify", *words).code == 0


def test_it_answers_as_0_1_did(atlas: Command, words: tuple[str, ...], tmp_path: Path) -> None:
    picture = Image.new("RGB", (64, 64), (255, 255, 255))
    picture.paste((220, 30, 30), (16, 16, 48, 48))
    picture.save(tmp_path / "red.png")
    (tmp_path / "ask.jsonl").write_text("\n".join(json.dumps(asked) for asked, _, _ in QUESTIONS))
    answers = [json.loads(line) for line in atlas("predict", "--jsonl", "ask.jsonl", *words).out.splitlines()]
    assert len(answers) == len(QUESTIONS)
    for answer, (_, index, scores) in zip(answers, QUESTIONS, strict=True):
        assert answer["index"] == index
        assert answer["scores"] == pytest.approx(scores, abs=2e-6)


def test_a_run_finds_everything_done_and_reports_the_same_scores(atlas: Command, words: tuple[str, ...], tmp_path: Path) -> None:
    before = {path: path.read_bytes() for path in (tmp_path / "store").rglob("*") if path.is_file()}
    said = atlas("run", *words, "report=told")
    assert said.code == 0, said.err
    assert "complete; nothing to do" in said.out
    told = json.loads((tmp_path / "told" / "run.json").read_text())
    (sequence,) = told["sequences"]
    assert sequence["matrix"] == MATRIX
    assert all(stage["curve"] and stage["points"] for task in sequence["upstream"] for stage in task["stages"])
    after = {path: path.read_bytes() for path in (tmp_path / "store").rglob("*") if path.is_file()}
    assert after == before, "nothing that was learnt is altered"
    assert atlas("report", *words, "report=again").code == 0
    assert (tmp_path / "again" / "index.html").exists()

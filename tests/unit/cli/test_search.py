"""`atlas-dist search`, with made-up learning: what a rung plans, who goes on, and that the same command finds it all again."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path

import pytest

from atlas_dist.app.composed import ComposedRun
from atlas_dist.core.attempts import CommittedRef
from atlas_dist.core.plan import Plan
from atlas_dist.core.types import StageJob
from atlas_dist.runs.status import load_run
from atlas_dist.runs.stores import open_run_store
from tests.kits.bank import write_ledger
from tests.kits.shell import Shell
from tests.kits.stage import pack_toys, toy_config

SEARCH = ("tasks.toy_kin.stage2.lr=log(1e-4,1e-2)", "--task", "toy_kin", "--trials", "4", "--factor", "2")


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, ...]]:
    folder = tmp_path_factory.mktemp("search")
    pack_toys(toy_config(folder), samples=32)
    yield ("experiment=toy", "train.workers=1", f"shards.url={folder}/shards")


class FakeRuns:
    """Stands for a cluster: a stage scores better the nearer its rate is to 1e-3, and the longer it learns."""

    def __init__(self) -> None:
        self.runs: list[tuple[str, int, int]] = []

    def __call__(self, composed_run: ComposedRun, observer: object) -> bool:
        store, plan = open_run_store(composed_run.config), composed_run.plan()
        if load_run(store, composed_run.config.run)[0].finished:
            return False
        self.runs.append((composed_run.config.run, len(composed_run.rows), self.steps(plan)))
        done = {
            key: CommittedRef(key, f"{composed_run.config.run}-{key}", f"p/{key}", (), self.metrics(job))
            for key, job in plan.jobs.items()
        }
        write_ledger(store, composed_run.config, plan, done, composed_run.specification())
        return True

    @staticmethod
    def steps(plan: Plan) -> int:
        (steps,) = {j.budget.max_steps for j in plan.jobs.values() if j.label.endswith("toy_kin stage2")}
        return steps

    @staticmethod
    def metrics(job: StageJob) -> dict[str, object]:
        took = {"samples": 8, "seconds": {"stepping": 1.0, "training": 1.0}}
        if job.stage is None:
            return took | {"views": {"task": {"score": 1.0, "samples": 8}}}
        return took | {
            "steps": job.budget.max_steps,
            "score": 90.0 - 10.0 * abs(math.log10(job.budget.lr) + 3.0) + 0.1 * job.budget.max_steps,
        }


@pytest.fixture
def fake_runs(monkeypatch: pytest.MonkeyPatch) -> FakeRuns:
    fake = FakeRuns()
    monkeypatch.setattr("atlas_dist.app.search.learn", fake)
    return fake


def test_the_best_half_goes_on_for_twice_as_long(
    shell: Shell, words: tuple[str, ...], fake_runs: FakeRuns, tmp_path: Path
) -> None:
    code, text = shell("search", *SEARCH, *words)
    assert code == 0, text
    assert [(rows, steps) for _, rows, steps in fake_runs.runs] == [(4, 2), (2, 4), (1, 8)]
    (table,) = (tmp_path / "toy-run" / "report-toy").glob("toy-search-*.json")
    found = json.loads(table.read_text())
    assert sorted(map(len, found["scores"].values())) == [1, 1, 2, 3]
    best = float(found["best"]["tasks.toy_kin.stage2.lr"])
    rates = [float(name.partition("=")[2]) for name in found["scores"]]
    assert best == min(rates, key=lambda rate: abs(math.log10(rate) + 3.0))
    assert f"best    tasks.toy_kin.stage2.lr={best:g}" in text
    fake_runs.runs.clear()
    code, again = shell("search", *SEARCH, *words)
    assert (code, fake_runs.runs) == (0, [])
    assert again == text, "the same command finds every rung done"


def test_the_winner_is_the_very_job_of_a_run_with_its_settings(
    shell: Shell, words: tuple[str, ...], fake_runs: FakeRuns, tmp_path: Path
) -> None:
    shell("search", *SEARCH, *words)
    (table,) = (tmp_path / "toy-run" / "report-toy").glob("toy-search-*.json")
    ((key, value),) = json.loads(table.read_text())["best"].items()
    code, text = shell("plan", "--json", f"{key}={value}", *words)
    assert code == 0, text
    standing = {job["label"].rpartition("/")[2]: job["standing"] for job in json.loads(text)["jobs"]}
    assert standing["2 toy_kin stage2"].startswith("fact of toy-search-")
    assert standing["3 toy_ask stage1"] == "to do"


def test_a_further_round_looks_where_the_first_did_well_and_is_found_again(
    shell: Shell, words: tuple[str, ...], fake_runs: FakeRuns, tmp_path: Path
) -> None:
    code, one = shell("search", *SEARCH, *words)
    assert code == 0, one
    fake_runs.runs.clear()
    code, text = shell("search", "--rounds", "3", *SEARCH, *words)
    assert code == 0, text
    assert [(rows, steps) for _, rows, steps in fake_runs.runs] == 2 * [(4, 2), (2, 4), (1, 8)], "the first round is a fact"
    (table,) = (tmp_path / "toy-run" / "report-toy").glob("toy-search-*.json")
    found = json.loads(table.read_text())
    off = [abs(math.log10(float(name.partition("=")[2])) + 3.0) for name in found["scores"]]
    assert len(off) == 12
    assert sum(off[4:]) / 8 < sum(off[:4]) / 4, "decades from the best rate, later rounds against the first"
    best = float(found["best"]["tasks.toy_kin.stage2.lr"])
    assert abs(math.log10(best) + 3.0) == min(off)
    fake_runs.runs.clear()
    assert shell("search", "--rounds", "3", *SEARCH, *words) == (0, text)
    assert fake_runs.runs == []


def test_rounds_end_when_nothing_new_is_left(shell: Shell, words: tuple[str, ...], fake_runs: FakeRuns) -> None:
    few = ("tasks.toy_kin.stage2.lr=choice(1e-3,1e-2)", *SEARCH[1:])
    code, text = shell("search", "--rounds", "5", *few, *words)
    assert code == 0, text
    assert "round 1: nothing new is left to try" in text


def test_rounds_need_optuna(shell: Shell, words: tuple[str, ...], fake_runs: FakeRuns, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("atlas_dist.packages.find_spec", lambda name: None)
    code, text = shell("search", "--rounds", "2", *SEARCH, *words)
    assert (code, fake_runs.runs) == (2, [])
    assert "atlas-dist[optuna]" in text


def test_dry_starts_nothing_and_shows_the_ladder(shell: Shell, words: tuple[str, ...], fake_runs: FakeRuns) -> None:
    code, text = shell("search", "--dry", *SEARCH, *words)
    assert (code, fake_runs.runs) == (0, [])
    assert "4 for 25%, then 2 for 50%, then 1 for 100%" in text
    assert "the first rung: " in text


@pytest.mark.parametrize(
    ("said", "says"),
    [
        (("--task", "toy_kin"), ("Nothing to search", "log(1e-4,1e-2)")),
        (("tasks.toy_kin.stage2.lr=log(1e-4,1e-2)",), ("--task is ''", "toy_shape, toy_kin")),
        (("tasks.toy_shape.stage1.lr=log(1e-4,1e-2)", "--task", "toy_shape", "--stage", "1"), ("comes first", "--stage 2")),
        (("tasks.toy_kin.stage2.lr=log(1e-2,1e-4)", "--task", "toy_kin"), ("is empty", "lower number first")),
        (("train.eval_batch=int(16,64)", "--task", "toy_kin"), ("train.eval_batch", "run of its own")),
        (("tasks.toy_kin.stage2.speed=log(1,2)", "--task", "toy_kin"), ("no such key", "lr")),
    ],
)
def test_what_cannot_be_searched_is_said(
    shell: Shell, words: tuple[str, ...], said: tuple[str, ...], says: tuple[str, ...]
) -> None:
    kept = tuple(word for word in words if not word.startswith("train.workers"))
    code, text = shell("search", *said, *kept)
    assert code == 2, text
    assert all(word in text for word in says), text
    assert len(text.strip().splitlines()) < 10

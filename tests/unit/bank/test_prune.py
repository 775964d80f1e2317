"""Pruning: the greedy way by hand, what the ledger already knows, and a smaller bank that everything can read."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import pytest

from atlas_dist.bank.adopt import import_bank
from atlas_dist.bank.package import export_bank, read_package
from atlas_dist.bank.prune import Allowance, Pruning, Scorer, Step, View, as_record, eliminate, prune, recorded_scores
from atlas_dist.bank.prune_page import curve_files
from atlas_dist.bank.verify import rescore_weights, rescoring_context, worth
from atlas_dist.bank.weights import load_weights
from atlas_dist.errors import ConfigError, DataError
from atlas_dist.report.svg import COLOURS
from atlas_dist.serve import AtlasModel
from atlas_dist.store.objects import MemoryStore
from tests.kits.bank import Toys, toys
from tests.kits.pages import check_page

VIEWS: Mapping[str, View] = {"A": ("a",), "B": ("a", "b"), "C": ("a", "b", "c"), "D": ("a", "b", "c", "d")}
"""Four tasks in a row, each with its own adapter and all before it."""


class Worths:
    """Each adapter adds so many points to each task that reads it."""

    def __init__(self, **points: float) -> None:
        self.points = points
        self.calls: list[tuple[str, View]] = []

    def __call__(self, task: str, view: View) -> float:
        self.calls.append((task, view))
        return 40.0 + sum(self.points[key] for key in view)


def way(worths: Worths, mean: float, worst: float = 100.0) -> list[Step]:
    return list(eliminate(VIEWS, lambda dropped: 100 - 10 * len(dropped), worths, Allowance(mean, worst)))


def test_an_adapter_without_effect_goes_first_and_the_dearest_stays() -> None:
    """By hand: without c nothing changes; d costs D 2 points, 0.5 of the average; then b costs 3 tasks 4 each, 3.0 of it."""
    steps = way(Worths(a=10, b=4, c=0, d=2), mean=1.0)
    assert [(s.dropped, s.kept) for s in steps] == [
        ("", ("a", "b", "c", "d")),
        ("c", ("a", "b", "d")),
        ("d", ("a", "b")),
        ("b", ("a",)),
    ]
    assert [s.lost for s in steps] == pytest.approx([0, 0, 0.5, 3.5])
    assert [s.worst for s in steps] == pytest.approx([0, 0, 2, 6])
    assert [s.size for s in steps] == [100, 90, 80, 70]


def test_with_no_budget_every_useful_adapter_stays_and_what_harms_goes() -> None:
    """Without the harmful c the average gains 0.5 points: just enough to pay for d, and not for b."""
    assert [s.dropped for s in way(Worths(a=10, b=4, c=1, d=2), mean=0.0)] == ["", "c"], "c was looked at and refused"
    assert [s.dropped for s in way(Worths(a=10, b=4, c=-1, d=2), mean=0.0)] == ["", "c", "d", "b"], "b was refused"


def test_the_worst_task_has_a_budget_of_its_own() -> None:
    """b costs less on average than a would, but a single task may lose one point only."""
    steps = way(Worths(a=10, b=10, c=10, d=3), mean=1.0, worst=1.0)
    assert [s.dropped for s in steps] == ["", "d"]
    assert steps[-1].worst == pytest.approx(3)


def test_everything_may_go_when_it_is_of_no_use() -> None:
    steps = way(Worths(a=0, b=0, c=0, d=0), mean=0.0)
    assert steps[-1].kept == ()
    assert len(steps) == 5


def test_no_view_is_scored_twice() -> None:
    worths = Worths(a=1, b=1, c=1, d=1)
    way(worths, mean=100.0)
    assert len(worths.calls) == len(set(worths.calls))


def test_a_curve_of_many_tasks_draws_those_that_lost_most() -> None:
    names = [f"task{number}" for number in range(9)]
    first = {"dropped": "", "kept": names, "adapters": 9, "bytes": 9, "mean": 50.0, "lost": 0.0, "worst": 0.0}
    steps = [
        {**first, "scores": dict.fromkeys(names, 50.0)},
        {**first, "dropped": "task3", "adapters": 8, "scores": {name: 50.0 - number for number, name in enumerate(names)}},
    ]
    budget = {"mean": 1.0, "worst": 2.0}
    page = curve_files({"run": "r", "keys": dict.fromkeys(names, "k"), "budget": budget, "steps": steps, "refused": None})
    text = page["prune.html"].decode()
    check_page(text)
    assert text.count("<polyline") == COLOURS
    assert "The 5 tasks that lost most" in text


# ------------------------------------------------------------------------------------------------------------ a real bank


@pytest.fixture(scope="module")
def learnt() -> Toys:
    return toys()


def files_of(learnt: Toys) -> dict[str, str]:
    return {
        str(path.relative_to(learnt.folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(learnt.folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def pruned(learnt: Toys, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Pruning, Scorer]:
    """A generous budget, so that several adapters go."""
    before = files_of(learnt)
    bank = learnt.bank
    weights = load_weights(learnt.store, bank)
    scorer = Scorer(rescoring_context(learnt.config, weights, weights.first), weights, recorded_scores(bank))
    found = prune(weights, Allowance(6.0, 20.0), scorer, lambda _: None, lambda *_: None)
    folder = tmp_path_factory.mktemp("pruned") / "bank"
    record = as_record(found, weights, scorer)
    smaller = weights.without(found.dropped, found.steps[-1].scores)
    export_bank(learnt.store, bank, smaller, folder, record, curve_files(record))
    assert files_of(learnt) == before, "nothing of the store is altered"
    return folder, found, scorer


def test_the_first_round_is_what_the_run_recorded(learnt: Toys) -> None:
    """Whole views, and each view without one adapter: measured again they are the same numbers."""
    bank = learnt.bank
    known = recorded_scores(bank)
    ask = bank.find("toy_ask")
    assert {view for task, view in known if task == ask.key} == {
        ask.view,
        *(tuple(k for k in ask.view if k != left_out) for left_out in ask.view),
    }
    weights = load_weights(learnt.store, bank)
    context = rescoring_context(learnt.config, weights, weights.first)
    for (task, view), score in known.items():
        if task == ask.key:
            assert rescore_weights(context, weights, task, view) == pytest.approx(score, abs=1e-9)


def test_the_budget_holds_and_the_way_is_written_down(pruned: tuple[Path, Pruning, Scorer], learnt: Toys) -> None:
    folder, found, scorer = pruned
    record = json.loads((folder / "prune.json").read_text())
    assert found.dropped
    assert len(record["steps"]) == len(found.dropped) + 1
    assert record["steps"][-1]["lost"] <= 6.0
    assert record["steps"][-1]["bytes"] < record["steps"][0]["bytes"]
    assert record["evaluations"]["taken_from_the_ledger"] == scorer.reused > 0
    assert str(learnt.folder) not in (folder / "prune.json").read_text()
    rows = (folder / "prune.csv").read_text().splitlines()
    assert len(rows) == 1 + len(record["steps"]) + (record["refused"] is not None)
    page = (folder / "prune.html").read_text()
    check_page(page)
    assert "Every task with what is left" in page
    assert "pruned" in (folder / "README.md").read_text()


def test_a_pruned_bank_scores_what_was_promised_and_answers(
    pruned: tuple[Path, Pruning, Scorer], learnt: Toys, tmp_path: Path
) -> None:
    folder, found, _ = pruned
    back = read_package(folder)
    assert back.dropped == found.dropped
    context = rescoring_context(learnt.config, back, back.first)
    for key, expected in found.steps[-1].scores.items():
        got = worth(context, back, key)
        assert got.reproduced
        assert got.expected == pytest.approx(expected)
    model = AtlasModel.from_pretrained(folder)
    for key, task in back.tasks.items():
        if task.learnt.name == "toy_kin":
            answer = model.predict("toy_kin", text="what?", choices=["a", "b", "c"], output_adapter_coefficients=True)
            left = [back.tasks[seen].learnt.name for seen in back.view(key)]
            assert list(answer.adapter_coefficients or {}) == left


def test_a_bank_without_any_adapter_is_its_backbone_and_heads(learnt: Toys) -> None:
    weights = load_weights(learnt.store, learnt.bank)
    bare = weights.without(frozenset(weights.tasks), dict.fromkeys(weights.tasks, 0.0))
    assert all(not task.adapter and all(n.startswith("head/") for n in task.own) for task in bare.tasks.values())
    model = AtlasModel.from_weights(bare)
    answer = model.predict("toy_kin", text="what?", choices=["a", "b", "c"], output_adapter_coefficients=True)
    assert not answer.adapter_coefficients
    key = next(key for key, task in weights.tasks.items() if task.learnt.name == "toy_kin")
    context = rescoring_context(learnt.config, weights, weights.first)
    assert rescore_weights(context, bare, key) == rescore_weights(context, weights, key, ())


def test_a_pruned_bank_is_never_taken_for_what_a_run_learnt(pruned: tuple[Path, Pruning, Scorer]) -> None:
    folder, _, _ = pruned
    store = MemoryStore()
    with pytest.raises(ConfigError, match="pruned bank"):
        import_bank(store, folder, read_package(folder), "taken")
    assert list(store.list("")) == []


@pytest.mark.parametrize("damage", ["scores", "dropped", "record"])
def test_a_pruned_folder_that_contradicts_itself_is_refused(
    pruned: tuple[Path, Pruning, Scorer], tmp_path: Path, damage: str
) -> None:
    folder = tmp_path / "bank"
    folder.mkdir()
    for path in sorted(pruned[0].rglob("*")):
        if path.is_file():
            (folder / path.relative_to(pruned[0])).parent.mkdir(parents=True, exist_ok=True)
            (folder / path.relative_to(pruned[0])).write_bytes(path.read_bytes())
    config = json.loads((folder / "adapter_config.json").read_text())
    if damage == "scores":
        config["pruned"]["scores"].popitem()
    elif damage == "dropped":
        config["pruned"]["dropped"] = ["nobody"]
    else:
        (folder / "prune.json").write_text("{}")
    (folder / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(DataError):
        read_package(folder)

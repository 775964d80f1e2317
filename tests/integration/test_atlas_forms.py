"""ATLAS's default form from plan to bank, without Ray: three forms of each task, one committed; who declines has no adapter."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load as parse_tensors

from atlas_dist.bank.package import export_bank, read_package
from atlas_dist.bank.verify import rescore
from atlas_dist.bank.weights import load_weights
from atlas_dist.core.result_files import ADAPTER_FILE, SIGNATURES_FILE, TASK_FILE, VALIDATION_FILE
from atlas_dist.core.results import EvalResult, SelectResult, TrainResult
from atlas_dist.core.selection import Selection, select
from atlas_dist.core.types import JobKind, StageJob, View
from atlas_dist.serve.model import AtlasModel, Request
from atlas_dist.store import artifacts
from atlas_dist.train.select import commit_best
from tests.kits.bank import Toys, toys

GROWING, DECLINING = "method.settings.expand=always", "method.settings.epsilon=100"
pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def grown() -> Toys:
    """Every task grows an adapter."""
    return toys("method=atlas", GROWING, "method.settings.retrieve=1")


@pytest.fixture(scope="module")
def declined() -> Toys:
    """No gain is large enough: after the first task nobody grows."""
    return toys("method=atlas", DECLINING, "method.settings.epsilon_loss=1000")


def selections(learnt: Toys) -> dict[str, tuple[StageJob, SelectResult]]:
    """Task -> the job that committed it, and what it decided."""
    jobs = learnt.bench.plan.jobs.values()
    return {j.task.name: (j, SelectResult.of(learnt.bench.done[j.key])) for j in jobs if j.kind is JobKind.SELECT}


def test_a_task_commits_one_of_three_forms_that_were_scored_on_the_same_samples(grown: Toys) -> None:
    for job, chosen in selections(grown).values():
        assert chosen.form in ("own", "both")
        assert set(chosen.scores) == set(job.candidates)
        kept = grown.bench.done[job.candidates[chosen.form]]
        assert chosen.score == TrainResult.of(kept).score
        samples = [
            parse_tensors(artifacts.load(grown.store, grown.bench.done[key], VALIDATION_FILE))["sample"].tolist()
            for key in job.candidates.values()
        ]
        assert all(each == samples[0] for each in samples)
        means = parse_tensors(artifacts.load(grown.store, kept, VALIDATION_FILE))["score"].double().mean()
        assert chosen.scores[chosen.form] == pytest.approx(100 * float(means), abs=1e-3)


def test_what_is_committed_are_the_files_of_the_form_that_was_kept(grown: Toys) -> None:
    for job, chosen in selections(grown).values():
        ref, kept = grown.bench.done[job.key], grown.bench.done[job.candidates[chosen.form]]
        assert ref.blob(TASK_FILE).sha256 == kept.blob(TASK_FILE).sha256
        ours, theirs = (parse_tensors(artifacts.load(grown.store, each, ADAPTER_FILE)) for each in (ref, kept))
        assert {name for name in ours if not name.startswith("key/")} == set(theirs)
        assert all(ours[name].equal(theirs[name]) for name in theirs)
        assert all(ours[name].shape[0] == 2 for name in ours if name.startswith("key/")), "mean and spread of its own data"


def test_a_task_looks_at_the_nearest_only(grown: Toys) -> None:
    for job, chosen in selections(grown).values():
        assert len([key for key in chosen.sees if key != job.key]) <= 1
        assert set(chosen.similarity) == set(job.bank)


def test_data_as_similar_as_that_count_as_known(grown: Toys, monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[bool] = []

    def noted(*forms: Any, familiar: bool, **rule: Any) -> Selection:
        heard.append(familiar)
        return select(*forms, familiar=familiar, **rule)

    monkeypatch.setattr("atlas_dist.train.select.select", noted)
    (job, chosen) = next(each for each in selections(grown).values() if each[1].similarity)
    nearest = max(chosen.similarity.values())
    for bound in (nearest, nearest + 1e-6):
        asked = replace(job, settings={**job.settings, "familiar": bound})
        commit_best(grown.bench.context, grown.bench.assignment(asked))
    assert heard == [True, False]


def test_a_declined_task_has_no_adapter_and_nobody_sees_one_of_it(declined: Toys) -> None:
    forms = {task: chosen.form for task, (_, chosen) in selections(declined).items()}
    first, *others = forms
    assert forms[first] == "own"
    assert {forms[task] for task in others} == {"experience"}
    first_key = selections(declined)[first][0].key
    for task in others:
        job, chosen = selections(declined)[task]
        assert chosen.sees == (first_key,)
        assert ADAPTER_FILE not in {blob.name for blob in declined.bench.done[job.key].blobs}
        signatures = parse_tensors(artifacts.load(declined.store, declined.bench.done[job.key], SIGNATURES_FILE))
        assert {name.partition("/")[0] for name in signatures} == {first_key}


@pytest.mark.parametrize("which", ["grown", "declined"])
def test_old_tasks_stay_bitwise_equal(which: str, request: pytest.FixtureRequest) -> None:
    learnt: Toys = request.getfixturevalue(which)
    prints: dict[str, set[str]] = {}
    for job in learnt.bench.plan.jobs.values():
        if job.kind is JobKind.EVAL:
            view = EvalResult.of(learnt.bench.done[job.key]).views[View.TASK]
            prints.setdefault(job.task.name, set()).add(view.predictions_sha256)
    assert all(len(found) == 1 for found in prints.values())
    assert max(len(learnt.bench.plan.sequences[0].evaluations), 0) == 6


@pytest.mark.parametrize("which", ["grown", "declined"])
def test_the_bank_is_what_was_committed_and_answers_as_it_was_scored(
    which: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    learnt: Toys = request.getfixturevalue(which)
    bank = learnt.bank
    chosen = selections(learnt)
    assert {entry.task.name for entry in bank.learnt.values()} == set(chosen), "candidates are no tasks of the bank"
    assert {e.task.name: e.has_adapter for e in bank.learnt.values()} == {t: c.grew for t, (_, c) in chosen.items()}
    for entry in bank.learnt.values():
        again = rescore(learnt.config, bank, entry)
        assert again.evaluation is not None
        assert again.predictions_sha256 == again.evaluation.predictions_sha256
    weights = load_weights(learnt.store, bank)
    export_bank(learnt.store, bank, weights, tmp_path / "bank")
    carried = read_package(tmp_path / "bank")
    assert {key: task.learnt.form for key, task in carried.tasks.items()} == {k: e.form for k, e in bank.learnt.items()}
    requests = [
        Request("toy_kin", text="red or a square", choices=("red", "square", "green")),
        Request("toy_shape", text="what?"),
    ]
    told = [AtlasModel.from_weights(each).predict_batch(requests) for each in (weights, carried)]
    assert [p.scores for p in told[0]] == [p.scores for p in told[1]]

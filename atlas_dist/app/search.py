"""Settings of one task's stage, by rounds of successive halving; every rung is a run, every trial a fact."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from atlas_dist.app.composed import ComposedRun, Settings, compose_run, words_of
from atlas_dist.app.events import Observer, RoundStarted, RungFinished, SearchStarted
from atlas_dist.app.observers import observer_for
from atlas_dist.app.process import restored_process
from atlas_dist.app.proposals import propose
from atlas_dist.app.run import learn
from atlas_dist.compose import compose_config, row_name
from atlas_dist.config import RunConfig, check_rows
from atlas_dist.core.keys import digest_of
from atlas_dist.core.plan import Plan
from atlas_dist.core.results import TrainResult
from atlas_dist.core.search import KINDS, Rung, Space, Trial, draw, ranked, rungs, space_of, survivors
from atlas_dist.core.types import Stage
from atlas_dist.errors import ConfigError, TrainingError
from atlas_dist.packages import need_extra
from atlas_dist.runs.status import load_run


@dataclass(frozen=True)
class SearchResult:
    """How every candidate did."""

    task: str
    stage: Stage
    trials: Mapping[str, Trial]
    """By the names of their rows, the best one first."""
    table: Path
    """The same as JSON."""

    @property
    def best(self) -> Mapping[str, str]:
        """Key -> value of the best candidate: `atlas.run(..., result.best)` finds its result in the store."""
        return next(iter(self.trials.values())).candidate


def search(
    *settings: Settings,
    task: str,
    stage: int = 2,
    trials: int = 9,
    factor: int = 3,
    rounds: int = 1,
    seed: int = 0,
    observer: Observer | None = None,
) -> SearchResult:
    """Try, halve, and say what was best; the same search again finds every rung that is done.

    Args:
        settings: as for `run`, as words and mappings; at least one of them a space: `tasks.NAME.stage2.lr=log(1e-4,1e-2)`.
        task: whose validation score decides. stage: which of its stages is tried, 1 or 2.
        trials: candidates of the first rung. factor: of so many candidates one goes on, for so many times as long.
        rounds: further ones look where earlier ones did well (Optuna: `atlas-dist[optuna]`).
        seed: of the draw.
        observer: as for `run`.

    Raises:
        ConfigError: nothing to search, or no such task. Whatever ended a rung; the same search goes on from there.
    """
    if rounds > 1:
        need_extra("optuna", f"--rounds {rounds}", "--rounds 1")
    looked_for = _asked(settings, task, stage, trials, factor, seed)
    with restored_process():
        return _Searching(looked_for, rounds, observer or observer_for(looked_for.base)).search()


def first_rung(
    *settings: Settings,
    task: str,
    stage: int = 2,
    trials: int = 9,
    factor: int = 3,
    rounds: int = 1,
    seed: int = 0,
    observer: Observer | None = None,
) -> Plan:
    """What a search would begin with; the observer hears of the candidates, and nothing is started. As `search`."""
    looked_for = _asked(settings, task, stage, trials, factor, seed)
    return _Searching(looked_for, rounds, observer or observer_for(looked_for.base)).first_rung()


@dataclass(frozen=True)
class Search:
    """What is searched: the settings of stage `stage` of `task`, on `words` otherwise."""

    words: tuple[str, ...]
    spaces: tuple[Space, ...]
    base: RunConfig
    folder: Path
    """Of the report."""
    task: str
    stage: Stage
    trials: int
    factor: int
    seed: int

    @property
    def name(self) -> str:
        """Another search of the same experiment has another name; the same one finds its runs again."""
        identity = [
            list(self.words),
            [s.__dict__ for s in self.spaces],
            self.task,
            self.stage,
            self.trials,
            self.factor,
            self.seed,
        ]
        return f"{self.base.run[:40]}-search-{digest_of(identity)[:6]}"

    def named(self, drawn: Sequence[Mapping[str, str]]) -> dict[str, Mapping[str, str]]:
        """Name of a row -> key -> value, in the order in which they were drawn."""
        ends = [space.key.rpartition(".")[2] for space in self.spaces]
        short = {s.key: end if ends.count(end) == 1 else s.key for s, end in zip(self.spaces, ends, strict=True)}
        return {row_name((short[key], value) for key, value in candidate.items()): candidate for candidate in drawn}

    def rows(self, candidates: Mapping[str, Mapping[str, str]], rung: Rung, run: str) -> ComposedRun:
        """One rung: a row a candidate, the sequence up to the task, the stage as long as the rung says. Raises ConfigError."""
        settled = [*self.words, *self._up_to_the_task(), *self._as_long_as(rung), f"run={run}"]
        found = {
            name: compose_config([*settled, *(f"{key}={value}" for key, value in candidate.items())])
            for name, candidate in candidates.items()
        }
        check_rows(found)
        return ComposedRun(found)

    def _up_to_the_task(self) -> list[str]:
        order = self.base.sequence.upstream
        if self.task in order:
            return [
                f"sequence.upstream=[{','.join(order[: order.index(self.task) + 1])}]",
                "sequence.orders=[]",
                "sequence.downstream=[]",
            ]
        return ["sequence.orders=[]", f"sequence.downstream=[{self.task}]"]

    def _as_long_as(self, rung: Rung) -> list[str]:
        """The last rung is the stage as configured: its winner is the very job that a run with these settings would do."""
        budget = self.base.tasks[self.task].budgets(self.base.train)[self.stage]
        place = f"tasks.{self.task}.{self.stage.value}"
        words = []
        if rung.share < 1.0 and budget.max_steps:
            words.append(f"{place}.max_steps={max(1, round(budget.max_steps * rung.share))}")
        elif rung.share < 1.0:
            words.append(f"{place}.epochs={budget.epochs * rung.share:.6g}")
            if budget.min_steps:
                words.append(f"{place}.min_steps={round(budget.min_steps * rung.share)}")
        if self.stage is Stage.ONE:  # what comes after it does not matter here
            words += [f"tasks.{self.task}.stage2.max_steps=1", f"tasks.{self.task}.stage2.validations=1"]
        return words

    def scores(self, rung: ComposedRun) -> dict[str, float]:
        """Row -> validation score in percent of the stage's best state. Raises TrainingError: a trial has none."""
        state, _ = load_run(rung.store, rung.config.run)
        plan, found = rung.plan(), {row: list[float]() for row in rung.rows}
        for sequence in plan.sequences:
            (task,) = [t for t in (*sequence.upstream, *sequence.downstream) if t.task == self.task]
            keys = [key for key in task.stages if (s := plan.jobs[key].stage) is not None and s.stage is self.stage]
            refs = [state.job(key).committed for key in keys]
            found[sequence.variant] += [TrainResult.of(ref).score for ref in refs if ref is not None]
        if not all(found.values()):
            raise TrainingError(
                f"No score of {self.task} {self.stage.value} in run {rung.config.run}.", fix="`atlas-dist logs` has why."
            )
        return {row: sum(values) / len(values) for row, values in found.items()}


class _Searching:
    """A search under way, round by round."""

    def __init__(self, looked_for: Search, rounds: int, observer: Observer) -> None:
        self.looked_for, self.rounds, self.observer = looked_for, rounds, observer
        self.drawn = draw(looked_for.spaces, looked_for.trials, looked_for.seed)
        self._announce()

    def first_rung(self) -> Plan:
        first = Round(self.looked_for, self.looked_for.name, self.drawn)
        return self.looked_for.rows(first.candidates, first.rungs[0], first.run(0)).plan()

    def search(self) -> SearchResult:
        looked_for = self.looked_for
        tried = Round(looked_for, looked_for.name, self.drawn).learn(self.observer)
        for number in range(1, self.rounds):
            drawn = propose(looked_for.spaces, tried, looked_for.trials, looked_for.seed + number)
            drawn = drawn if len(drawn) > 1 else []
            self.observer(RoundStarted(number, tuple(looked_for.named(drawn))))
            if not drawn:
                break
            # Another version of Optuna may propose otherwise: that is another round, not another meaning of this one.
            tried += Round(looked_for, f"{looked_for.name}-{digest_of(drawn)[:4]}", drawn).learn(self.observer)
        return _conclude(looked_for, tried)

    def _announce(self) -> None:
        looked_for = self.looked_for
        self.observer(
            SearchStarted(
                name=looked_for.name,
                task=looked_for.task,
                stage=looked_for.stage.value,
                rungs=tuple(rungs(len(self.drawn), looked_for.factor)),
                rounds=self.rounds,
                candidates=tuple(looked_for.named(self.drawn)),
            )
        )


class Round:
    """Candidates from the first rung to the last.

    Args:
        name: of its runs; a number is added for each rung. drawn: key -> value of each candidate.
    """

    def __init__(self, looked_for: Search, name: str, drawn: Sequence[Mapping[str, str]]) -> None:
        self.looked_for, self.name = looked_for, name
        self.candidates = looked_for.named(drawn)
        self.rungs = rungs(len(drawn), looked_for.factor)

    def run(self, number: int) -> str:
        """Name of a rung's run."""
        return f"{self.name}-{number}"

    def learn(self, observer: Observer) -> list[Trial]:
        """Climb; how far each candidate came, in the order in which they were drawn."""
        scores: dict[str, dict[float, float]] = {name: {} for name in self.candidates}
        alive = list(self.candidates)
        for number, rung in enumerate(self.rungs):
            rows = self.looked_for.rows({name: self.candidates[name] for name in alive}, rung, self.run(number))
            learn(rows, observer)
            found = self.looked_for.scores(rows)
            for name, score in found.items():
                scores[name][rung.share] = score
            if number + 1 < len(self.rungs):
                alive = survivors(found, self.rungs[number + 1].count)
                observer(RungFinished(number, {name: found[name] for name in alive}))
        return [Trial(candidate, scores[name]) for name, candidate in self.candidates.items()]


def _asked(settings: Sequence[Settings], task: str, stage: int, trials: int, factor: int, seed: int) -> Search:
    found = [(word, space_of(word)) for word in words_of(*settings)]
    spaces = tuple(space for _, space in found if space is not None)
    words = tuple(word for word, space in found if space is None)
    if not spaces:
        raise ConfigError(
            "Nothing to search: no word is a space.", fix=f"Give one, as in tasks.NAME.stage2.lr=log(1e-4,1e-2): {KINDS}."
        )
    composed_run = compose_run(*words)
    base = composed_run.config
    names = [*base.sequence.upstream, *base.sequence.downstream]
    if task not in names:
        raise ConfigError(f"--task is {task!r}.", fix=f"The sequence has: {', '.join(names)}.")
    if stage == 1 and task == base.sequence.upstream[0]:
        raise ConfigError(f"{task} comes first: it has no stage one.", fix="Choose --stage 2, or a later task.")
    return Search(words, spaces, base, composed_run.folder, task, Stage(f"stage{stage}"), trials, factor, seed)


def _conclude(looked_for: Search, tried: Sequence[Trial]) -> SearchResult:
    names = {id(trial): name for trial in tried for name in looked_for.named([trial.candidate])}
    best_first = {names[id(trial)]: trial for trial in ranked(tried)}
    looked_for.folder.mkdir(parents=True, exist_ok=True)
    result = SearchResult(looked_for.task, looked_for.stage, best_first, looked_for.folder / f"{looked_for.name}.json")
    scores = {names[id(trial)]: list(trial.scores.values()) for trial in tried}
    shown = {"task": looked_for.task, "stage": looked_for.stage.value, "best": result.best, "scores": scores}
    result.table.write_text(json.dumps(shown, indent=1), encoding="utf-8")
    return result

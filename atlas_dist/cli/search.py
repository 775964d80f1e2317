"""`atlas-dist search`: settings of one task's stage, by rounds of successive halving; every rung is a run, every trial a fact."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table

from atlas_dist.cli.proposals import propose
from atlas_dist.cli.run import learn
from atlas_dist.cli.words import ComposedRun, compose_run, report_folder
from atlas_dist.compose import compose_config, row_name
from atlas_dist.config import RunConfig, check_rows
from atlas_dist.core.keys import digest_of
from atlas_dist.core.plan import Plan
from atlas_dist.core.search import KINDS, Rung, Space, Trial, draw, ranked, rungs, space_of, survivors
from atlas_dist.core.types import Stage
from atlas_dist.errors import ConfigError, TrainingError
from atlas_dist.packages import need_extra
from atlas_dist.runs.stores import open_run_store


@dataclass(frozen=True)
class Search:
    """What is searched: the settings of stage `stage` of `task`, on `words` otherwise."""

    words: tuple[str, ...]
    spaces: tuple[Space, ...]
    base: RunConfig
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
        if self.stage is Stage.ONE:  # what comes after it does not matter here
            words += [f"tasks.{self.task}.stage2.max_steps=1", f"tasks.{self.task}.stage2.validations=1"]
        return words

    def scores(self, rung: ComposedRun, plan: Plan) -> dict[str, float]:
        """Row -> validation score in percent of the stage's best state. Raises TrainingError: a trial has none."""
        from atlas_dist.runs.status import load_run

        state, _ = load_run(open_run_store(rung.config), rung.config.run)
        found: dict[str, list[float]] = {row: [] for row in rung.rows}
        for sequence in plan.sequences:
            (task,) = [t for t in (*sequence.upstream, *sequence.downstream) if t.task == self.task]
            keys = [key for key in task.stages if (s := plan.jobs[key].stage) is not None and s.stage is self.stage]
            refs = [state.job(key).committed for key in keys]
            found[sequence.variant] += [float(ref.metrics["score"]) for ref in refs if ref is not None]
        if not all(found.values()):
            raise TrainingError(
                f"No score of {self.task} {self.stage.value} in run {rung.config.run}.", fix="`atlas-dist logs` has why."
            )
        return {row: sum(values) / len(values) for row, values in found.items()}


def search(
    overrides: Sequence[str],
    console: Console,
    *,
    task: str,
    stage: int,
    trials: int,
    factor: int,
    rounds: int,
    seed: int,
    dry: bool,
) -> None:
    """Try, halve, and say what was best. Raises whatever ended a rung; the same command goes on from there."""
    if rounds > 1:
        need_extra("optuna", f"--rounds {rounds}", "--rounds 1")
    looked_for = _asked(overrides, task, stage, trials, factor, seed)
    drawn = draw(looked_for.spaces, trials, seed)
    _announce(looked_for, rungs(len(drawn), factor), rounds, looked_for.named(drawn), console)
    if dry:
        first = Round(looked_for, looked_for.name, drawn)
        plan = looked_for.rows(first.candidates, first.rungs[0], first.run(0)).plan()
        console.print(f"the first rung: {len(plan.jobs)} jobs, {plan.training_jobs} train")
        return
    tried = Round(looked_for, looked_for.name, drawn).learn(console)
    for number in range(1, rounds):
        drawn = propose(looked_for.spaces, tried, trials, seed + number)
        if len(drawn) < 2:
            console.print(f"round {number}: nothing new is left to try")
            break
        # Another version of Optuna may propose otherwise: that is another round, not another meaning of this one.
        this = Round(looked_for, f"{looked_for.name}-{digest_of(drawn)[:4]}", drawn)
        console.print(f"round {number}: {' '.join(this.candidates)}", markup=False, soft_wrap=True)
        tried += this.learn(console)
    _conclude(looked_for, tried, console)


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

    def learn(self, console: Console) -> list[Trial]:
        """Climb; how far each candidate came, in the order in which they were drawn."""
        scores: dict[str, dict[float, float]] = {name: {} for name in self.candidates}
        alive = list(self.candidates)
        for number, rung in enumerate(self.rungs):
            rows = self.looked_for.rows({name: self.candidates[name] for name in alive}, rung, self.run(number))
            plan = rows.plan()
            learn(rows, plan, console)
            found = self.looked_for.scores(rows, plan)
            for name, score in found.items():
                scores[name][rung.share] = score
            if number + 1 < len(self.rungs):
                alive = survivors(found, self.rungs[number + 1].count)
                console.print(f"rung {number}: {', '.join(alive)} go on", markup=False, soft_wrap=True)
        return [Trial(candidate, scores[name]) for name, candidate in self.candidates.items()]


def _asked(overrides: Sequence[str], task: str, stage: int, trials: int, factor: int, seed: int) -> Search:
    found = [(word, space_of(word)) for word in overrides]
    spaces = tuple(space for _, space in found if space is not None)
    words = tuple(word for word, space in found if space is None)
    if not spaces:
        raise ConfigError(
            "Nothing to search: no word is a space.", fix=f"Give one, as in tasks.NAME.stage2.lr=log(1e-4,1e-2): {KINDS}."
        )
    base = compose_run(words, many=False).config
    names = [*base.sequence.upstream, *base.sequence.downstream]
    if task not in names:
        raise ConfigError(f"--task is {task!r}.", fix=f"The sequence has: {', '.join(names)}.")
    if stage == 1 and task == base.sequence.upstream[0]:
        raise ConfigError(f"{task} comes first: it has no stage one.", fix="Choose --stage 2, or a later task.")
    return Search(words, spaces, base, task, Stage(f"stage{stage}"), trials, factor, seed)


def _announce(looked_for: Search, steps: Sequence[Rung], rounds: int, candidates: Mapping[str, object], console: Console) -> None:
    ladder = ", then ".join(f"{rung.count} for {rung.share:.0%}" for rung in steps)
    often = f", {rounds} rounds" if rounds > 1 else ""
    console.print(
        f"search {looked_for.name}: {looked_for.task} {looked_for.stage.value}, {ladder} of its length{often}", markup=False
    )
    console.print(f"candidates: {' '.join(candidates)}", markup=False, soft_wrap=True)


def _conclude(looked_for: Search, tried: Sequence[Trial], console: Console) -> None:
    best_first = ranked(tried)
    names = {id(trial): name for trial in tried for name in looked_for.named([trial.candidate])}
    shares = sorted({share for trial in tried for share in trial.scores})
    table = Table()
    for heading in ("candidate", *(f"after {share:.0%}" for share in shares)):
        table.add_column(heading, justify="left" if heading == "candidate" else "right")
    for trial in best_first:
        table.add_row(names[id(trial)], *(f"{trial.scores[s]:.1f}" if s in trial.scores else "" for s in shares))
    console.print(f"[bold]Validation score (%) of {looked_for.task} {looked_for.stage.value}[/bold]")
    console.print(table)
    folder = report_folder(looked_for.base)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{looked_for.name}.json"
    best = best_first[0].candidate
    scores = {names[id(trial)]: list(trial.scores.values()) for trial in tried}
    shown = {"task": looked_for.task, "stage": looked_for.stage.value, "best": best, "scores": scores}
    path.write_text(json.dumps(shown, indent=1), encoding="utf-8")
    console.print(f"best    {' '.join(f'{key}={value}' for key, value in best.items())}", markup=False, soft_wrap=True)
    console.print(f"table   {path}", markup=False, soft_wrap=True)

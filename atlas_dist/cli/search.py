"""`atlas-dist search`: settings of one task's stage, by successive halving; every rung is a run, every trial a fact."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table

from atlas_dist.cli.run import learn
from atlas_dist.cli.words import Asked, asked, open_run_store, report_folder
from atlas_dist.compose import compose_config, row_name
from atlas_dist.config import RunConfig, check_rows
from atlas_dist.core.keys import digest_of
from atlas_dist.core.plan import Plan
from atlas_dist.core.search import KINDS, Rung, Space, draw, rungs, space_of, survivors
from atlas_dist.core.types import Stage
from atlas_dist.errors import ConfigError, TrainingError


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
        asked_for = [
            list(self.words),
            [s.__dict__ for s in self.spaces],
            self.task,
            self.stage,
            self.trials,
            self.factor,
            self.seed,
        ]
        return f"{self.base.run[:40]}-search-{digest_of(asked_for)[:6]}"

    def candidates(self) -> dict[str, dict[str, str]]:
        """Name -> key -> value, in the order in which they were drawn."""
        ends = [space.key.rpartition(".")[2] for space in self.spaces]
        short = {s.key: end if ends.count(end) == 1 else s.key for s, end in zip(self.spaces, ends, strict=True)}
        drawn = draw(self.spaces, self.trials, self.seed)
        return {row_name((short[key], value) for key, value in candidate.items()): candidate for candidate in drawn}

    def rows(self, candidates: Mapping[str, Mapping[str, str]], rung: Rung, number: int) -> Asked:
        """One rung: a row a candidate, the sequence up to the task, the stage as long as the rung says. Raises ConfigError."""
        settled = [*self.words, *self._up_to_the_task(), *self._as_long_as(rung), f"run={self.name}-{number}"]
        found = {
            name: compose_config([*settled, *(f"{key}={value}" for key, value in candidate.items())])
            for name, candidate in candidates.items()
        }
        check_rows(found)
        return Asked(found)

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

    def scores(self, rung: Asked, plan: Plan) -> dict[str, float]:
        """Row -> validation score in percent of the stage's best state. Raises TrainingError: a trial has none."""
        from atlas_dist.coordinator.status import load_run

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
    overrides: Sequence[str], console: Console, *, task: str, stage: int, trials: int, factor: int, seed: int, dry: bool
) -> None:
    """Try, halve, and say what was best. Raises whatever ended a rung; the same command goes on from there."""
    looked_for = _asked(overrides, task, stage, trials, factor, seed)
    candidates = looked_for.candidates()
    steps = rungs(len(candidates), factor)
    first = looked_for.rows(candidates, steps[0], 0)
    _announce(looked_for, steps, candidates, console)
    if dry:
        plan = first.plan()
        console.print(f"the first rung: {len(plan.jobs)} jobs, {plan.training_jobs} train")
        return
    told: dict[str, list[float]] = {name: [] for name in candidates}
    alive = list(candidates)
    for number, rung in enumerate(steps):
        asked_for = looked_for.rows({name: candidates[name] for name in alive}, rung, number)
        plan = asked_for.plan()
        learn(asked_for, plan, console)
        scores = looked_for.scores(asked_for, plan)
        for name, score in scores.items():
            told[name].append(score)
        if number + 1 < len(steps):
            alive = survivors(scores, steps[number + 1].count)
            console.print(f"rung {number}: {', '.join(alive)} go on", markup=False, soft_wrap=True)
    _conclude(looked_for, steps, candidates, told, alive[0], console)


def _asked(overrides: Sequence[str], task: str, stage: int, trials: int, factor: int, seed: int) -> Search:
    found = [(word, space_of(word)) for word in overrides]
    spaces = tuple(space for _, space in found if space is not None)
    words = tuple(word for word, space in found if space is None)
    if not spaces:
        raise ConfigError(
            "Nothing to search: no word is a space.", fix=f"Give one, as in tasks.NAME.stage2.lr=log(1e-4,1e-2): {KINDS}."
        )
    base = asked(words, many=False).config
    names = [*base.sequence.upstream, *base.sequence.downstream]
    if task not in names:
        raise ConfigError(f"--task is {task!r}.", fix=f"The sequence has: {', '.join(names)}.")
    if stage == 1 and task == base.sequence.upstream[0]:
        raise ConfigError(f"{task} comes first: it has no stage one.", fix="Choose --stage 2, or a later task.")
    return Search(words, spaces, base, task, Stage(f"stage{stage}"), trials, factor, seed)


def _announce(looked_for: Search, steps: Sequence[Rung], candidates: Mapping[str, object], console: Console) -> None:
    ladder = ", then ".join(f"{rung.count} for {rung.share:.0%}" for rung in steps)
    console.print(f"search {looked_for.name}: {looked_for.task} {looked_for.stage.value}, {ladder} of its length", markup=False)
    console.print(f"candidates: {' '.join(candidates)}", markup=False, soft_wrap=True)


def _conclude(
    looked_for: Search,
    steps: Sequence[Rung],
    candidates: Mapping[str, Mapping[str, str]],
    told: Mapping[str, list[float]],
    best: str,
    console: Console,
) -> None:
    table = Table()
    for heading in ("candidate", *(f"after {rung.share:.0%}" for rung in steps)):
        table.add_column(heading, justify="left" if heading == "candidate" else "right")
    for name in sorted(told, key=lambda n: (-len(told[n]), -told[n][-1])):
        table.add_row(name, *(f"{score:.1f}" for score in told[name]), *[""] * (len(steps) - len(told[name])))
    console.print(f"[bold]Validation score (%) of {looked_for.task} {looked_for.stage.value}[/bold]")
    console.print(table)
    folder = report_folder(looked_for.base)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{looked_for.name}.json"
    shown = {"task": looked_for.task, "stage": looked_for.stage.value, "best": candidates[best], "scores": told}
    path.write_text(json.dumps(shown, indent=1), encoding="utf-8")
    console.print(
        f"best    {' '.join(f'{key}={value}' for key, value in candidates[best].items())}", markup=False, soft_wrap=True
    )
    console.print(f"table   {path}", markup=False, soft_wrap=True)

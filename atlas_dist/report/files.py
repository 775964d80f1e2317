"""The report for programs: JSON, CSV tables and TensorBoard events beside the page."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from atlas_dist.report.facts import Cell, RunFacts, SequenceFacts, StageFacts
from atlas_dist.report.speed import Speed, speeds
from atlas_dist.report.tensorboard import Scalar, event_file, scalars, write_events

ALPHA = 999_999
"""Number of the event file behind every attempt's."""


def write_tables(facts: RunFacts, folder: Path) -> None:
    """`run.json` (everything); a sequence's matrices, curves, speed and α as CSV; `jobs.csv`; `tensorboard/…`. Raises OSError."""
    tree = asdict(facts)
    for sequence in tree["sequences"]:
        sequence["breadth"] = sequence.pop("effective_rank")  # as 0.1 called it: programs read this file
        if not sequence["token_f1"]:
            sequence.pop("token_f1")
    (folder / "run.json").write_text(json.dumps(tree, indent=1, sort_keys=True), encoding="utf-8")
    for sequence in facts.sequences:
        for view, rows in sequence.matrix.items():
            _write_matrix(folder / f"{sequence.name}-{view}.csv", sequence, rows)
        stages = [(task.task, stage) for task in (*sequence.upstream, *sequence.downstream) for stage in task.stages]
        _write(folder / f"{sequence.name}-curves.csv", ("task", "stage", "split", "step", "loss", "score"), _points(stages))
        _write(folder / f"{sequence.name}-speed.csv", ("task", "stage", *Speed._fields), _speeds(stages))
        _write(folder / f"{sequence.name}-reuse.csv", ("task", "stage", "site", "adapter", "mean", "std"), _alphas(sequence))
        for task, stage in stages:
            _write_stage_events(folder / "tensorboard" / sequence.name / f"{task}-{stage.stage}", stage)
    heads = ("label", "job", "status", "score", "seconds", "attempts", "adopted_from", "failure")
    _write(folder / "jobs.csv", heads, ([job[h] for h in heads] for job in facts.jobs))


def _write(path: Path, heads: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(heads)
        writer.writerows(rows)


def _write_matrix(path: Path, sequence: SequenceFacts, rows: tuple[tuple[Cell, ...], ...]) -> None:
    names = [t.task for t in sequence.upstream]
    lines = ([name, *("" if c is None else f"{c:.4f}" for c in row)] for name, row in zip(names, rows, strict=True))
    _write(path, ("after", *names), lines)


def _points(stages: Iterable[tuple[str, StageFacts]]) -> Iterable[Sequence[Any]]:
    for task, stage in stages:
        for split, points in (("training", stage.curve), ("validation", stage.validation)):
            for p in points:
                yield task, stage.stage, split, int(p["step"]), p.get("loss", ""), p.get("score", "")


def _speeds(stages: Iterable[tuple[str, StageFacts]]) -> Iterable[Sequence[Any]]:
    return ((task, stage.stage, *speed) for task, stage in stages for speed in speeds(stage))


def _alphas(sequence: SequenceFacts) -> Iterable[Sequence[Any]]:
    for task in (*sequence.upstream, *sequence.downstream):
        for stage in task.stages:
            for site, values in stage.reuse.items():
                for number, (mean, std) in enumerate(zip(values["mean"], values["std"], strict=True)):
                    name = task.sees[number] if number < len(task.sees) else str(number)
                    yield task.task, stage.stage, site, name, mean, std


def _write_stage_events(folder: Path, stage: StageFacts) -> None:
    """The curves, where they were not written while the stage learnt; and α of each adapter (averaged over sites) at its last
    step, in a file behind those of all attempts."""
    write_events(event_file(folder, stage.attempt), scalars(stage.points) if stage.points else _curves(stage))
    if stage.reuse:
        last = stage.result.steps
        columns = enumerate(zip(*(site["mean"] for site in stage.reuse.values()), strict=True), 1)
        alphas = [Scalar(f"alpha/adapter{number}", last, sum(column) / len(column)) for number, column in columns]
        write_events(event_file(folder, ALPHA), alphas, purge=False)


def _curves(stage: StageFacts) -> Iterable[Scalar]:
    """Of a result whose attempt told nothing on its way (an older version's, an imported one)."""
    for split, points in (("train", stage.curve), ("validation", stage.validation)):
        for p in points:
            for what in ("loss", "score"):
                if what in p:
                    yield Scalar(f"{split}/{what}", int(p["step"]), float(p[what]))

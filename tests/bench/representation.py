"""How many directions the features use as tasks are learnt: effective rank on one fixed set of samples of all tasks.

    python -m tests.bench.learn_here experiment=related_real seeds=[2] run=seed2 only=[atlas] train.threads=1
    python -m tests.bench.representation experiment=related_real seeds=[2] run=seed2 only=[atlas] train.threads=1 [--plot x.png]

The set is a fixed choice of validation samples of every upstream task, at most 100 of each, the same at every point. After each
task it is read by the frozen backbone, by the task's adapter apart (as individual adapters have it), and by what the task
committed: what each one's head would read. It trains nothing and needs no Ray. Effective rank as in train/effective_rank.py.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from atlas_dist.app.composed import compose_run
from atlas_dist.app.precision import decided_by_nodes
from atlas_dist.core.results import SelectResult
from atlas_dist.core.selection import Form
from atlas_dist.core.types import StageJob, TaskKind
from atlas_dist.model.atlas import AdaptedModel
from atlas_dist.model.mixing_spec import MixingSpec, Weighting
from atlas_dist.train.context import RankContext
from atlas_dist.train.effective_rank import EffectiveRankMeter
from atlas_dist.train.engine import join_alone, prepare_process
from atlas_dist.train.module import StageModule
from atlas_dist.train.reading import head_spec
from tests.bench.forms import learnt_choices, model_of


@dataclass(frozen=True)
class Point:
    """After one task: the effective rank of each."""

    label: str
    frozen: float
    own: float
    committed: float


SAMPLES = 100
"""Of a task's validation split, at most."""


def rank_of(context: RankContext, model: AdaptedModel, task: StageJob, probed: Sequence[StageJob]) -> float:
    """Of the features of all probed tasks' samples, read by the model of `task`."""
    meter = EffectiveRankMeter()
    module = StageModule(model, head_spec(task), bf16=False).eval()
    with torch.no_grad(), meter.attached(model):
        for job in probed:
            with context.validation_stream(job, samples=SAMPLES) as stream:
                for batch in stream.validation():
                    for part in context.feeder()(batch):
                        module(part.inputs, torch.zeros_like(part.target))  # another task's classes; only features are looked at
                        meter.observe(part.index, part.target)
    return meter.effective_rank()


def points(context: RankContext, words: Sequence[str]) -> list[Point]:
    """One for each upstream task that is learnt, in order; prints each."""
    composed, _ = decided_by_nodes(compose_run(*words, "train.workers=1"))
    upstream = set(composed.config.sequence.upstream)
    learnt = [(job, refs) for job, refs in learnt_choices(context, composed.plan()) if job.task.name in upstream]
    if any(job.task.kind is not TaskKind.SINGLE for job, _ in learnt):
        raise SystemExit("Only tasks of one picture and one text a sample can be read by each other's models.")
    probed, found = [job for job, _ in learnt], []
    for number, (job, refs) in enumerate(learnt):
        committed = Form(SelectResult.of(refs[job.key]).form)
        with AdaptedModel(
            context.backbone().model, head_spec(job), MixingSpec(weighting=Weighting.PLAIN), visible=0, grows=False, seed=0
        ) as model:
            frozen = found[0].frozen if found else rank_of(context, model, job, probed)
        with model_of(context, job, Form.OWN, refs) as model:
            own = rank_of(context, model, job, probed)
        with model_of(context, job, committed, refs) as model:
            found.append(Point(job.task.name, frozen, own, rank_of(context, model, job, probed)))
        point = found[-1]
        print(
            f"| {number + 1} {point.label} | {point.frozen:.1f} | {point.own:.1f} | {point.committed:.1f} ({committed}) |",
            flush=True,
        )
    return found


def draw(found: Sequence[Point], path: Path) -> None:
    """A line for each over the tasks."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 3.2), layout="constrained")
    places = range(1, len(found) + 1)
    axes.plot(places, [point.committed for point in found], "o-", color="#0b6e99", label="ATLAS, as committed")
    axes.plot(places, [point.own for point in found], "s--", color="#b3541e", label="individual adapters")
    axes.plot(places, [point.frozen for point in found], ":", color="#666666", label="frozen backbone")
    axes.set_xticks(list(places), [point.label for point in found], rotation=30, ha="right", fontsize=8)
    axes.set_ylabel("effective rank")
    axes.set_ylim(0, 1.1 * max(max(point.own, point.committed, point.frozen) for point in found))
    axes.grid(axis="y", alpha=0.3)
    axes.legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=120)


def main() -> None:
    """Print the table, and draw it where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="+", help="as for `atlas-dist run`")
    parser.add_argument("--plot", type=Path, help="a PNG to write")
    args = parser.parse_args()
    prepare_process()
    join_alone()
    config = compose_run(*args.words, "train.workers=1").config
    context = RankContext(config, 0, 1)
    print("| after learning | frozen backbone | adapter apart | as committed |\n|---|---|---|---|")
    found = points(context, args.words)
    if args.plot:
        draw(found, args.plot)


if __name__ == "__main__":
    main()

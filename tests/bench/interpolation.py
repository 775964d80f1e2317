"""Would a task be better off between where its stage two began and what that learnt? (docs/experience.md, Eighth round)

    python -m tests.bench.learn_here experiment=related_real seeds=[0] run=seed0 only=[atlas] train.threads=1
    python -m tests.bench.interpolation experiment=related_real seeds=[0] run=seed0 only=[atlas] train.threads=1

As WiSE-FT (Wortsman et al. 2022, arXiv 2109.01903): θ(λ) = θ_start + λ (θ_learnt - θ_start), for λ in 1/4, 1/2, 3/4. The start is
stage one's result, with an adapter that is nothing; an adapter's first projection starts at random and stays as it was learnt, so
that λ is the weight of its whole output. Columns: validation loss in nats, and percent on the split that scores, which chose
nothing. `least loss` goes from λ = 1 downwards until the validation loss rises. It stores nothing and needs no Ray.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import sqrt
from statistics import mean, stdev

import torch
from torch import Tensor

from atlas_dist.app.composed import compose_run
from atlas_dist.app.precision import decided_by_nodes
from atlas_dist.core.attempts import CommittedRef
from atlas_dist.core.selection import Form
from atlas_dist.core.types import StageJob
from atlas_dist.model.atlas import AdaptedModel
from atlas_dist.train.context import RankContext
from atlas_dist.train.engine import join_alone, prepare_process
from atlas_dist.train.inputs import head_of, read_task
from atlas_dist.train.score import score_model
from tests.bench.forms import learnt_choices, model_of

WEIGHTS = (1.0, 0.75, 0.5, 0.25)
"""λ, in the order in which they are looked at."""


@dataclass(frozen=True)
class Point:
    """One λ of one task."""

    loss: float
    """Mean over validation samples, in nats."""
    score: float
    """Percent, of samples that chose nothing."""


@dataclass(frozen=True)
class Line:
    """A task from stage one's result to stage two's."""

    label: str
    points: Mapping[float, Point]

    @property
    def least_loss(self) -> float:
        """λ, from 1 downwards until the validation loss rises."""
        best = WEIGHTS[0]
        for weight in WEIGHTS[1:]:
            if self.points[weight].loss >= self.points[best].loss:
                break
            best = weight
        return best

    def gain(self, weight: float) -> float:
        """Points of λ = `weight` over λ = 1."""
        return self.points[weight].score - self.points[WEIGHTS[0]].score


def set_between(model: AdaptedModel, adapter: Mapping[str, Tensor], heads: Sequence[Mapping[str, Tensor]], weight: float) -> None:
    """Put θ(λ) into a model of stage two. `heads`: where it began and what it learnt."""
    is_first = ("down.weight", "down.bias", "lora_A.weight")
    model.load_grown({name: value if name.endswith(is_first) else weight * value for name, value in adapter.items()})
    start, learnt = heads
    model.load_head({name: torch.lerp(start[name], value, weight) for name, value in learnt.items()})


def line_of(context: RankContext, job: StageJob, refs: Mapping[str, CommittedRef]) -> Line:
    """One task. `job` is the one that chose."""
    heads = [head_of(read_task(context.store, refs[job.candidates[form]])) for form in (Form.EXPERIENCE, Form.BOTH)]
    points = {}
    with model_of(context, job, Form.BOTH, refs) as model:
        adapter = model.export_adapter()
        for weight in WEIGHTS:
            set_between(model, adapter, heads, weight)
            with context.validation_stream(job) as stream:
                loss = score_model(context, job, model, stream).loss
            with context.scoring_stream(job) as stream:
                points[weight] = Point(loss, score_model(context, job, model, stream).score)
    return Line(job.label, points)


def summary(part: str, lines: Sequence[Line]) -> str:
    """Mean gains over λ = 1, with their standard errors over tasks."""
    columns = [[line.gain(weight) for line in lines] for weight in WEIGHTS[1:]]
    columns.append([line.gain(line.least_loss) for line in lines])
    errors = (stdev(gains) / sqrt(len(gains)) if len(gains) > 1 else 0.0 for gains in columns)
    cells = (f"{mean(gains):+.2f} ± {error:.2f}" for gains, error in zip(columns, errors, strict=True))
    return f"| {part}, {len(lines)} tasks | " + " | ".join(cells) + " |"


def main() -> None:
    """Print a line a task, and the mean gains."""
    composed, _ = decided_by_nodes(compose_run(*sys.argv[1:], "train.workers=1"))
    prepare_process()
    join_alone()
    context = RankContext(composed.config, 0, 1)
    print("| task | " + " | ".join(f"λ = {weight}" for weight in WEIGHTS) + " | least loss |\n|" + "---|" * 6)
    found: dict[str, list[Line]] = {"upstream": [], "transfers": []}
    for job, refs in learnt_choices(context, composed.plan()):
        if Form.BOTH not in job.candidates:
            continue
        line = line_of(context, job, refs)
        found["upstream" if job.task.name in composed.config.sequence.upstream else "transfers"].append(line)
        cells = (f"{point.loss:.3f}, {point.score:.1f}" for point in line.points.values())
        print(f"| {line.label} | " + " | ".join(cells) + f" | {line.least_loss} |", flush=True)
    print("\n| points over λ = 1 | " + " | ".join(f"λ = {weight}" for weight in WEIGHTS[1:]) + " | least loss |\n|" + "---|" * 5)
    for part, lines in found.items():
        if lines:
            print(summary(part, lines))


if __name__ == "__main__":
    main()

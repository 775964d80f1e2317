"""Every form that a task might have committed, on samples that chose nothing: what the choice between them was worth.

    python -m tests.bench.learn_here experiment=related_real seeds=[2] run=seed2 only=[atlas] train.threads=1
    python -m tests.bench.forms experiment=related_real seeds=[2] run=seed2 only=[atlas] train.threads=1

Reads what stage one, an adapter apart and stage two on top of experience left in the store, and scores each on the split that
evaluations score. It stores nothing and needs no Ray; tasks that are not learnt yet are left out. `*` marks what was committed.
The tables below it say what each way of choosing would have given on these samples: see `WAYS`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import mean

from atlas_dist.app.composed import compose_run
from atlas_dist.app.precision import decided_by_nodes
from atlas_dist.core.attempts import CommittedRef
from atlas_dist.core.plan import Plan
from atlas_dist.core.results import SelectResult, TrainResult
from atlas_dist.core.selection import Evidence, Expand, Form, Rule, paired_bootstrap, select
from atlas_dist.core.types import JobKind, StageJob
from atlas_dist.methods.atlas import AtlasSettings
from atlas_dist.model.atlas import AdaptedModel
from atlas_dist.runs.results import read_pointers
from atlas_dist.train.build import visible_adapters
from atlas_dist.train.context import RankContext
from atlas_dist.train.engine import join_alone, prepare_process
from atlas_dist.train.inputs import read_adapters, read_task
from atlas_dist.train.reading import arranged, reading_model
from atlas_dist.train.score import score_model
from atlas_dist.train.select import evidence


@dataclass(frozen=True)
class Chosen:
    """One choice between forms: how each did on the samples that chose, and its score in percent on those that did not."""

    label: str
    committed: Form
    validation: Mapping[Form, Evidence]
    scores: Mapping[Form, float]
    samples: int
    nearest: float
    """The largest similarity of the task to one of the bank."""

    def grown(self, rule: Rule) -> Form:
        """The better form with an adapter of its own, as a task chooses it."""
        if Form.BOTH not in self.scores:
            return Form.OWN
        return Form.OWN if rule.as_good(self.validation[Form.OWN], self.validation[Form.BOTH])[0] else Form.BOTH


def always(chosen: Chosen, rule: Rule) -> Form:
    """`expand=always`."""
    return chosen.grown(rule)


def by_rule(chosen: Chosen, rule: Rule) -> Form:
    """As this version would choose, with the method's default bounds."""
    bounds = AtlasSettings()
    return select(
        chosen.validation,
        expand=Expand.EVIDENCE,
        epsilon=bounds.epsilon,
        epsilon_loss=bounds.epsilon_loss,
        confidence=rule.confidence,
        familiar=chosen.nearest >= bounds.familiar,
    ).form


def by_loss(chosen: Chosen, rule: Rule) -> Form:
    """Where the score is not sure, whichever has the smaller loss: the rule before this one."""
    grown = chosen.grown(rule)
    if Form.EXPERIENCE not in chosen.scores:
        return grown
    ours, alone = chosen.validation[grown], chosen.validation[Form.EXPERIENCE]
    ahead = paired_bootstrap(ours.scores, alone.scores, above=0.5)
    if ahead.confidence >= rule.confidence:
        return grown
    if ahead.confidence <= 1.0 - rule.confidence or alone.loss - ours.loss <= 0.02:
        return Form.EXPERIENCE
    return grown


WAYS: Mapping[str, Callable[[Chosen, Rule], Form]] = {
    "own adapter apart": lambda _, __: Form.OWN,
    "committed": lambda chosen, _: chosen.committed,
    "by today's rule": by_rule,
    "both wherever there is one": lambda chosen, _: Form.BOTH if Form.BOTH in chosen.scores else Form.OWN,
    "expand=always": always,
    "the loss alone, where the score is not sure": by_loss,
    "best on these very samples": lambda chosen, _: max(chosen.scores, key=lambda form: chosen.scores[form]),
}


def model_of(context: RankContext, job: StageJob, form: Form, refs: Mapping[str, CommittedRef]) -> AdaptedModel:
    """One form of a task, from what its training left; close it after use. `job` is the one that chose."""
    key = job.candidates[form]
    weighed = TrainResult.of(refs[key]).sees if form is not Form.OWN else ()
    own = key if form.grows else ""
    reads = (*weighed, own) if own else weighed
    parts = arranged(
        read_task(context.store, refs[key]),
        reads,
        reads,
        own,
        lambda keys: visible_adapters(context, job, refs, keys),
        lambda: read_adapters(context.store, refs, [own])[0],
    )
    return reading_model(context, job, parts)


def learnt_choices(context: RankContext, plan: Plan) -> list[tuple[StageJob, dict[str, CommittedRef]]]:
    """The jobs that chose and are done, in the plan's order, each with all that it and its forms read."""
    found = []
    for job in plan.jobs.values():
        if job.kind is not JobKind.SELECT:
            continue
        pointers = read_pointers(context.store, {job.key, *job.candidates.values(), *job.bank})
        if {job.key, *job.candidates.values()} <= pointers.keys():
            found.append((job, {key: pointer.ref for key, pointer in pointers.items()}))
    if not found:
        raise SystemExit("No task of this run is learnt yet: python -m tests.bench.learn_here with the same words.")
    return found


def test_score(context: RankContext, job: StageJob, form: Form, refs: Mapping[str, CommittedRef]) -> tuple[float, int]:
    """Percent, and samples, of one form on the split that scores."""
    with model_of(context, job, form, refs) as model, context.scoring_stream(job, 0) as stream:
        found = score_model(context, job, model, stream)
    return found.score, found.samples


def scored(context: RankContext, job: StageJob, refs: Mapping[str, CommittedRef]) -> Chosen:
    """One choice, with the scores of all its forms."""
    scores = {form: test_score(context, job, form, refs) for form in Form if form in job.candidates}
    said = evidence(context.store, {form: refs[job.candidates[form]] for form in scores})
    decided = SelectResult.of(refs[job.key])
    return Chosen(
        label=job.label,
        committed=Form(decided.form),
        validation=said,
        scores={form: score for form, (score, _) in scores.items()},
        samples=scores[Form.OWN][1],
        nearest=max(decided.similarity.values(), default=0.0),
    )


def _line(chosen: Chosen) -> str:
    cells = []
    for form in Form:
        if form not in chosen.scores:
            cells.append("–")
            continue
        said, mark = chosen.validation[form], "*" if form is chosen.committed else ""
        cells.append(f"{said.score:.1f} ({said.loss:.3f}) / {chosen.scores[form]:.1f}{mark}")
    return f"| {chosen.label} | {chosen.samples} | " + " | ".join(cells) + " |"


def main() -> None:
    """Print both tables."""
    composed, _ = decided_by_nodes(compose_run(*sys.argv[1:], "train.workers=1"))
    prepare_process()
    join_alone()
    context = RankContext(composed.config, 0, 1)
    learnt = learnt_choices(context, composed.plan())
    print("Validation score % (loss in nats) / score % of the split that scores")
    print("| task | samples | " + " | ".join(form.value for form in Form) + " |\n|---|---|---|---|---|")
    found = []
    for job, refs in learnt:
        found.append(scored(context, job, refs))
        print(_line(found[-1]), flush=True)
    selecting = context.method_of(learnt[0][0]).selecting
    assert selecting is not None
    upstream = set(composed.config.sequence.upstream)
    parts = {
        "upstream": [chosen for chosen, (job, _) in zip(found, learnt, strict=True) if job.task.name in upstream],
        "transfers": [chosen for chosen, (job, _) in zip(found, learnt, strict=True) if job.task.name not in upstream],
    }
    for part, chosen in parts.items():
        if chosen:
            _summarise(part, chosen, Rule(selecting.confidence))


def _summarise(part: str, found: Sequence[Chosen], rule: Rule) -> None:
    print(f"\n| {part}, chosen by | mean score % | declined to grow |\n|---|---|---|")
    for name, way in WAYS.items():
        forms = [way(chosen, rule) for chosen in found]
        mean_score = mean(chosen.scores[form] for chosen, form in zip(found, forms, strict=True))
        print(f"| {name} | {mean_score:.1f} | {sum(not form.grows for form in forms)} of {len(found)} |")


if __name__ == "__main__":
    main()

"""The metrics of a job's result, which RESULT and the ledger keep. Its files: `core/result_files.py`.

One class a kind of result writes and reads it. The JSON is what 0.1 wrote, under the same names. Reading is lenient, since
ledgers outlive the program that wrote them: a field that is missing, or of another type, has its default, which means "not
noted"; a field that this version does not know is kept in `other`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, ClassVar, Self

from atlas_dist.core.attempts import CommittedRef
from atlas_dist.core.keys import plain
from atlas_dist.core.records import known_fields
from atlas_dist.core.selection import Difference, Form
from atlas_dist.core.types import View


@dataclass(frozen=True)
class Metrics:
    """What results of every kind note."""

    world: int = 0
    """Workers that did the job."""
    nodes: tuple[str, ...] = ()
    """Hosts they ran on, sorted."""
    like: Mapping[str, Any] = field(default_factory=dict)
    """What the time of a sample depends on most (core/pace.py)."""
    bad_samples: tuple[Mapping[str, Any], ...] = ()
    """Samples that could not be used, of every worker: split, shard, key, reason."""
    other: Mapping[str, Any] = field(default_factory=dict)
    """Fields that this version does not know, as they were read."""

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> Self:
        """Read leniently: nothing in `raw` is an error."""
        names = {f.name for f in fields(cls)} - {"other"}
        known = known_fields(cls, {name: value for name, value in raw.items() if name in names})
        return cls(**known, other={name: value for name, value in raw.items() if name not in names})

    @classmethod
    def of(cls, ref: CommittedRef) -> Self:
        """Of a committed result."""
        return cls.from_json(ref.metrics)

    def to_json(self) -> dict[str, Any]:
        """The metrics as RESULT and the ledger have them. Those of `_LEFT_OUT` are not written while they are empty."""
        written = {f.name: plain(getattr(self, f.name)) for f in fields(self) if f.name != "other"}
        return {name: value for name, value in written.items() if value or name not in _LEFT_OUT} | dict(self.other)


_LEFT_OUT = frozenset(
    {"nodes", "like", "bad_samples", "without", "gain", "sees", "similarity", "started_from", "composition", "head_refit"}
)


@dataclass(frozen=True)
class StageSeconds:
    """Where the time of a training job went, in seconds."""

    setup: float = 0.0
    """Building model, streams and engine."""
    training: float = 0.0
    """From the first step until its files were ready; the four below are parts of it."""
    stepping: float = 0.0
    waiting: float = 0.0
    """For data."""
    validating: float = 0.0
    checkpointing: float = 0.0

    @property
    def whole(self) -> float:
        """All of it."""
        return self.setup + self.training


MEAN, NOTHING = "mean", "nothing"
"""Where coefficients may start that is no task's: equal shares of every adapter, or none of any (train/starts.py)."""


@dataclass(frozen=True)
class TrainResult(Metrics):
    """The metrics of a training job."""

    score: float = math.nan
    """Validation score in percent of the state that was kept."""
    loss: float = math.nan
    samples: int = 0
    """Validation samples behind `score`."""
    best_step: int = 0
    """Optimizer step of the state that was kept."""
    steps: int = 0
    trained_parameters: int = 0
    seconds: StageSeconds = StageSeconds()
    bytes_read: int = 0
    """From the shards' store, of rank 0."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """Versions of the libraries, the machine's kind and the device."""
    mfu: float | None = None
    """Model FLOPs utilisation, 0..1; None where the peak is not known."""
    peak_rss_mb: int = 0
    """Most memory of rank 0's process, in MiB."""
    resumed_at: int = 0
    """Step of the checkpoint that the attempt went on from; 0 = the beginning."""
    sees: tuple[str, ...] = ()
    """Where a task chooses among earlier adapters: keys of those that it reads, its own last."""
    similarity: Mapping[str, float] = field(default_factory=dict)
    """Key of an earlier task of the bank -> how similar it is to this one (core/signature.py)."""
    started_from: str = ""
    """Where stage one's coefficients started: the key of an earlier task, MEAN or NOTHING; "" = it was not chosen."""
    composition: str = ""
    """Where stage two started, in words (train/compositions.py); "" = it was not chosen."""
    head_refit: float = 0.0
    """Share of the fit in the last layer of a head that was fitted again when it was validated; 0 = as it was learnt."""

    @property
    def known_score(self) -> float | None:
        """`score`; None where it was not noted."""
        return None if math.isnan(self.score) else self.score

    @property
    def working_seconds(self) -> float:
        """Seconds that the workers spent on what grows with the samples."""
        return self.seconds.training

    def samples_done(self, global_batch: int) -> int:
        """Training samples it went through, in steps of `global_batch`."""
        return self.steps * global_batch

    def to_json(self) -> dict[str, Any]:
        """As `Metrics.to_json`; `bad_samples`, as in 0.1, also where there are none."""
        return {"bad_samples": [], **super().to_json()}


@dataclass(frozen=True)
class ViewResult:
    """A task scored in one view."""

    score: float = math.nan
    """Percent."""
    loss: float = math.nan
    samples: int = 0
    predictions_sha256: str = ""
    """Of every logit's bits in sample order."""
    effective_rank: float | None = None
    """Of the pooled outputs; None where it was not measured."""
    of: int = 0
    """Samples of the split, where only some were read; 0 = it was read whole."""
    differing: int | None = None
    """Samples that were read and not answered as in the task's first full pass, to the last bit; None = not compared so."""
    token_f1: float | None = None
    """Percent, of answers that are written; None of others."""

    def to_json(self) -> dict[str, Any]:
        """As it is stored: what came after 0.1 only where it says something."""
        unsaid = {"of": self.of == 0, "differing": self.differing is None, "token_f1": self.token_f1 is None}
        return {f.name: getattr(self, f.name) for f in fields(self) if not unsaid.get(f.name)}


@dataclass(frozen=True)
class ScoringSeconds:
    """Where the time of an evaluation went, in seconds."""

    scoring: float = 0.0

    @property
    def whole(self) -> float:
        """All of it."""
        return round(self.scoring, 2)


@dataclass(frozen=True)
class EvalResult(Metrics):
    """The metrics of an evaluation."""

    views: Mapping[View, ViewResult] = field(default_factory=dict)
    seconds: ScoringSeconds = ScoringSeconds()
    model_from: str = ""
    """Key of the learnt task that it is about; "" where an older version did not note it."""
    without: tuple[float, ...] = ()
    """The score in percent without each adapter of the task in turn, in bank order; () where it was not measured."""

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> Self:
        """As `Metrics.from_json`; views of a name that this version does not know are passed over."""
        found, known = raw.get("views"), {view.value for view in View}
        views = {
            View(name): ViewResult(**known_fields(ViewResult, view))
            for name, view in (found.items() if isinstance(found, Mapping) else ())
            if name in known
        }
        return replace(super().from_json(raw), views=views)

    def to_json(self) -> dict[str, Any]:
        """As `Metrics.to_json`."""
        return super().to_json() | {"views": {view.value: told.to_json() for view, told in self.views.items()}}

    def view(self, wanted: View) -> ViewResult | None:
        """A view's result; right after its own task the two views are the same model, scored once as the task view."""
        return self.views.get(wanted) or self.views.get(View.TASK)

    @property
    def known_score(self) -> float | None:
        """The task view's score in percent; None where it was not scored."""
        return self.views[View.TASK].score if View.TASK in self.views else None

    @property
    def working_seconds(self) -> float:
        """Seconds that the workers spent on what grows with the samples."""
        return self.seconds.scoring

    def samples_done(self, global_batch: int) -> int:
        """Validation samples it went through, in all views; `global_batch` is of training only."""
        return sum(view.samples for view in self.views.values())


@dataclass(frozen=True)
class DescribeResult(Metrics):
    """The metrics of a job that described a task's samples."""

    described: int = 0
    """Training samples that it looked at."""
    seconds: ScoringSeconds = ScoringSeconds()

    known_score: ClassVar[float | None] = None

    @property
    def working_seconds(self) -> float:
        """Seconds that the workers spent on what grows with the samples."""
        return self.seconds.scoring

    def samples_done(self, global_batch: int) -> int:
        """Samples it went through."""
        return self.described


@dataclass(frozen=True)
class ImportResult(DescribeResult):
    """The metrics of an imported adapter; `described` are the samples that its signature was made from."""

    imported: str = ""
    """Its name."""


_FORMS = {
    Form.EXPERIENCE.value: "experience alone",
    Form.OWN.value: "its own adapter alone",
    Form.BOTH.value: "experience and its own adapter",
}


@dataclass(frozen=True)
class SelectResult(TrainResult):
    """The metrics of a job that decided which form of a task is kept, on the same validation samples for each. What it shares
    with training is that of the kept form, whose files it hands on."""

    form: str = ""
    """One of `core.selection.Form`."""
    scores: Mapping[str, float] = field(default_factory=dict)
    """form -> percent on the samples that chose."""
    losses: Mapping[str, float] = field(default_factory=dict)
    """form -> mean loss in nats on the same samples: what decides where scores cannot tell."""
    candidates: Mapping[str, str] = field(default_factory=dict)
    """form -> key of the job that trained it."""
    gain: Difference | None = None
    """The best form with an adapter of its own against the earlier ones alone; None where there were none."""

    @property
    def grew(self) -> bool:
        """Whether the task has an adapter of its own."""
        return self.form != Form.EXPERIENCE

    def in_words(self) -> str:
        """What was committed, by how much and how surely, for people: `both, +3.1 points over experience (95 %: 0.4 to 5.8)`.

        Where the points leave it open, with the losses, which then decide (core/selection.py, Rule).
        """
        told = _FORMS.get(self.form, self.form)
        if self.gain is None:
            return told
        if self.grew:
            over = f"{self.gain.mean:+.1f} points over experience alone"
        else:
            over = f"an own adapter would give {self.gain.mean:+.1f} points"
        grown = [loss for form, loss in self.losses.items() if form in ((self.form,) if self.grew else (Form.OWN, Form.BOTH))]
        alone = self.losses.get(Form.EXPERIENCE)
        losses = ""
        if self.gain.low <= 0.0 <= self.gain.high and grown and alone is not None:
            losses = f"; loss {min(grown):.3f} with it, {alone:.3f} without"
        return f"{told}; {over} (95 %: {self.gain.low:+.1f} to {self.gain.high:+.1f}{losses})"

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> Self:
        """As `Metrics.from_json`."""
        found = raw.get("gain")
        known = known_fields(Difference, found)
        gain = Difference(**known) if len(known) == len(fields(Difference)) else None  # half of one says nothing
        return replace(super().from_json({name: value for name, value in raw.items() if name != "gain"}), gain=gain)


Result = TrainResult | EvalResult | DescribeResult

_TOLD_BY = {"views": EvalResult, "form": SelectResult, "imported": ImportResult, "described": DescribeResult}
"""A field that only one kind of result has -> its class."""


def result_of(ref: CommittedRef) -> Result:
    """The metrics of a committed job whose kind is not at hand."""
    kind: type[Result] = next((kind for name, kind in _TOLD_BY.items() if name in ref.metrics), TrainResult)
    return kind.of(ref)


def without_hosts(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Metrics as they may leave the run's own store: all but the names of hosts."""
    return {name: value for name, value in metrics.items() if name != "nodes"}

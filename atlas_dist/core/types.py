"""What is planned: tasks, budgets, methods, jobs. Frozen, hashable, JSON-shaped; no behaviour beyond small properties.

A *job* is a node of the plan: it trains one stage of one task, or scores one task on one bank snapshot. Its `key` names
everything it depends on (see `core/plan.py`), so its result is a fact that any run may reuse.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from enum import StrEnum
from typing import Any

NO_TOKEN = -100
"""Where an answer that is written has no token; what the losses of torch leave out."""


class Resample(StrEnum):
    """The filter that pictures are resized with, of Pillow's."""

    BICUBIC = "bicubic"
    BILINEAR = "bilinear"
    LANCZOS = "lanczos"


class TaskKind(StrEnum):
    """How a sample becomes logits (docs/method.md, Tasks)."""

    SINGLE = "single"
    """One image and one text, one pass, C classes (cross-entropy, accuracy)."""
    CHOICE = "choice"
    """K texts a sample, one pass each, one shared scalar head, softmax over the K scores."""
    PAIR = "pair"
    """Two images and one text, one pass an image, pooled outputs concatenated (d = 2D)."""
    ANSWERS = "answers"
    """Soft targets over C answers (mean BCE x C; score = target of the arg-max answer), as VQAv2."""
    GENERATE = "generate"
    """One image and one text, to which a decoder writes an answer (cross-entropy of its tokens, exact match)."""

    @property
    def generates(self) -> bool:
        """Answers are texts that the backbone writes: there is no head."""
        return self is TaskKind.GENERATE

    @property
    def labelled(self) -> bool:
        """Each sample has one class, by its number."""
        return self in (TaskKind.SINGLE, TaskKind.CHOICE, TaskKind.PAIR)

    @property
    def named(self) -> bool:
        """Answers have names that all samples share."""
        return self in (TaskKind.SINGLE, TaskKind.PAIR, TaskKind.ANSWERS)


class JobKind(StrEnum):
    """What a job does."""

    TRAIN = "train"
    EVAL = "eval"
    DESCRIBE = "describe"
    """What a task's training samples look like to the frozen backbone: its signature."""
    SELECT = "select"
    """Which of the trained forms a task commits (core/selection.py)."""
    IMPORT = "import"
    """An adapter that nobody here trained (core/imported.py). No worker makes it: `atlas-dist bank import` does."""


class Work(StrEnum):
    """What a pool of workers may take: the parts of a run, as a person would share them out."""

    UPSTREAM = "upstream"
    """Learning the tasks of a sequence: the chain that everything else waits for."""
    EVALUATION = "evaluation"
    """Scoring."""
    TRANSFER = "transfer"
    """Learning the downstream tasks."""
    REFERENCE = "reference"
    """Learning what measures of transfer compare with."""


@dataclass(frozen=True)
class WorkerGroupSpec:
    """A group of workers that takes one job at a time, all of it together.

    Example: WorkerGroupSpec("big", workers=8, min_workers=4, takes=frozenset({Work.UPSTREAM}), labels={"market": "reserved"})
    """

    name: str
    workers: int
    """Ranks when there is room for all."""
    min_workers: int = 0
    """Ranks that it goes on with when nodes are lost; 0 = all of them."""
    takes: frozenset[Work] = frozenset(Work)
    labels: Mapping[str, str] = field(default_factory=dict)
    """Ray node labels that its nodes must have: key -> `value`, `!value`, `in(a,b)` or `!in(a,b)`."""

    @property
    def required_workers(self) -> int:
        """Ranks without which it waits for room."""
        return self.min_workers or self.workers


class Stage(StrEnum):
    """Which stage of a task a training job is."""

    ONE = "stage1"
    """Experience-based learning: queries over the frozen earlier adapters, and the head."""
    TWO = "stage2"
    """Novel knowledge expansion: one new adapter with its key and query, and the head."""
    INIT = "init"
    """Only I2I: what stage one put together is distilled into the new adapter's initial weights."""


class Role(StrEnum):
    """Groups of parameters that a stage may train."""

    QUERIES = "queries"
    """Queries of the visible earlier adapters."""
    COEFFICIENTS = "coefficients"
    """What gives the coefficients α of the visible earlier adapters (model/experience.py)."""
    ADAPTER = "adapter"
    """The new adapter with, where the weighting has them, its key and its own query."""
    HEAD = "head"
    BACKBONE = "backbone"
    """The backbone, or its upper part where the method keeps the bottom (a copy of its own: the pretrained one never changes)."""
    FUSION = "fusion"
    """AdapterFusion's attention over the visible adapters, the task's own."""


class View(StrEnum):
    """How an old task is read from a later bank (docs/method.md, Evaluation)."""

    TASK = "task"
    """Its own queries and only the adapters that existed for it: bitwise equal for ever."""
    LATEST = "latest"
    """The newest queries and every adapter: where forgetting shows."""


@dataclass(frozen=True)
class TaskSpec:
    """One task of a sequence, as a job needs it.

    Example: TaskSpec(name="cifar10", kind=TaskKind.SINGLE, classes=10, max_text=8, dataset="cifar10", train="train",
    val="val", train_digest="5f…", val_digest="09…")
    """

    name: str
    kind: TaskKind
    classes: int
    """C for `single`, `pair`, `answers`; the number K of choices for `choice`; 0 for `generate`."""
    max_text: int
    """Text tokens a pass, [CLS] and [SEP] included; longer texts are cut, shorter ones padded."""
    dataset: str
    """Folder of the shard set below the shards URL; `train`, `val` and `test` name its splits."""
    train: str
    val: str
    train_digest: str
    """Digest of the split's manifest: the data's content, wherever it is stored."""
    val_digest: str
    shots: float = 0.0
    """0 = all training samples; n >= 1 = n samples a class; 0 < share < 1 = that share of the samples."""
    test: str = ""
    """The split that evaluations score, which chooses nothing; "" = `val`."""
    test_digest: str = ""
    max_new_tokens: int = 0
    """M, tokens of an answer with the one that ends it (`generate` only): longer ones are cut, and no more are written."""

    @property
    def scored(self) -> str:
        """The split that evaluations score."""
        return self.test or self.val

    @property
    def scored_digest(self) -> str:
        """Digest of its manifest."""
        return self.test_digest if self.test else self.val_digest

    @property
    def splits(self) -> dict[str, str]:
        """Every split that the task reads -> the digest of its manifest."""
        return {self.train: self.train_digest, self.val: self.val_digest, self.scored: self.scored_digest}

    def as_stored(self) -> dict[str, Any]:
        """As keys and results name it: what came later only where it has it."""
        every = {f.name: getattr(self, f.name) for f in fields(self)}
        return {name: part for name, part in every.items() if part or name not in ("test", "test_digest", "max_new_tokens")}

    @property
    def images(self) -> int:
        """Images a sample."""
        return 2 if self.kind is TaskKind.PAIR else 1

    @property
    def random_score(self) -> float:
        """Score of guessing in percent, S_R of docs/method.md, Evaluation (100/C; VQA and answers that are written 0)."""
        return 100.0 / self.classes if self.kind.labelled else 0.0


class HeadStart(StrEnum):
    """What a task's head starts from."""

    RANDOM = "random"
    RIDGE = "ridge"
    """Its last layer is fitted to the training samples before the first step (docs/method.md, The start of a head)."""
    AUTO = "auto"
    """`ridge`, but for a stage that trains an adapter for long or fast on many samples (train/head_start.py)."""


class Augment(StrEnum):
    """How training pictures are varied, anew at every step (docs/method.md, Varied pictures)."""

    NONE = "none"
    AUTO = "auto"
    """`affine` where a stage sees its samples often (train/augment.py), else `none`."""
    AFFINE = "affine"
    """Turned, sheared, scaled and shifted a little."""
    AFFINE_FLIP = "affine_flip"
    """The same, and half of them mirrored: for photos, not for letters or for left and right."""


LATER = ("head_start", "augment", "head_lr", "head_refit", "min_steps")
"""What `Budget` knows since the first results were written. What concerns heads and pictures a method may choose."""


@dataclass(frozen=True)
class Budget:
    """How long and how fast a stage learns (docs/method.md, What trains). Lengths are in optimizer steps or epochs."""

    global_batch: int = 128
    epochs: float = 20.0
    max_steps: int = 0
    """0 = as many as `epochs` gives; otherwise the stage ends after this many steps."""
    lr: float = 5e-4
    query_lr_scale: float = 100.0
    """Stage one's queries learn at `lr` times this."""
    weight_decay: float = 0.01
    beta1: float = 0.9
    beta2: float = 0.98
    eps: float = 1e-4
    warmup: float = 0.1
    """Share of the steps over which the learning rate rises linearly; it then falls linearly to 0."""
    clip: float = 0.0
    """Largest gradient norm; 0 = no clipping."""
    validations: int = 4
    """How often a stage is validated, evenly spaced, the last at its end; the best state is kept."""
    head_start: HeadStart = HeadStart.RANDOM
    """A stage that trains no adapter is validated before the first step as well, where its head does not start at random."""
    augment: Augment = Augment.NONE
    head_lr: float = 0.0
    """Rate of a head that starts fitted; 0 = `lr`."""
    head_refit: bool = False
    """The head is fitted again at every validation (train/head_end.py)."""
    min_steps: int = 0
    """The stage takes as many steps at least, where `epochs` gives fewer; 0 = no least."""

    def steps(self, steps_an_epoch: int) -> int:
        """Optimizer steps on a split that has so many of them: at least one."""
        return self.max_steps or max(1, self.min_steps, math.ceil(self.epochs * steps_an_epoch))

    def as_stored(self) -> dict[str, Any]:
        """As job keys name it: what came later than the first results only where it is used."""
        every = {f.name: getattr(self, f.name) for f in fields(self)}
        if self.head_start is HeadStart.AUTO:
            every["head_start"] = "auto 2"  # the rule behind it is the second one: results of the first are others
        off = {f.name: f.default for f in fields(self) if f.name in LATER}
        if self.max_steps:
            every["min_steps"] = off["min_steps"]  # not used
        return {name: value for name, value in every.items() if name not in off or off[name] != value}


@dataclass(frozen=True)
class StagePlan:
    """What one stage of a method sees, grows and trains: data, so that methods differ by rows of a table, not by branches."""

    stage: Stage
    sees_earlier: bool
    """Earlier adapters of the bank are visible."""
    grows: bool
    """A new adapter is added."""
    trains: tuple[Role, ...]
    needs_earlier: bool = False
    """The stage is left out when there is no earlier adapter (ATLAS: the first task has no stage one)."""


@dataclass(frozen=True)
class MethodSpec:
    """A continual-learning method as the plan sees it: its stages, its settings (all of them part of every job key), and what one
    task takes over from the others. The plan follows these declarations and knows no method by name."""

    name: str
    stages: tuple[StagePlan, ...]
    settings: Mapping[str, Any] = field(default_factory=dict)
    grows_bank: bool = True
    """The adapter that a task learns is visible to later tasks of the sequence."""
    first: tuple[StagePlan, ...] = ()
    """Stages of a task that finds the bank empty; () = `stages`."""
    shares_backbone: bool = False
    """Every task goes on from the backbone as the task before it left it."""
    recalls: bool = False
    """A task also learns from, or for, the tasks before it: their heads, a memory that each task leaves to the next."""
    joint: bool = False
    """All upstream tasks are learnt at once, in one job."""
    stored_name: str = ""
    """What job keys and stores call it; "" = its name."""
    alone: MethodSpec | None = None
    """The method that learns a task's own adapter apart from all others. With it a task's stages are candidates, and a further
    job commits the best of them: experience alone, its own adapter alone, or both."""
    goes_on_from_alone: bool = False
    """Stage two's adapter may start from the one that was learnt apart (train/compositions.py)."""

    @property
    def stored(self) -> str:
        """What job keys and stores call it."""
        return self.stored_name or self.name

    @property
    def reads(self) -> View:
        """The view of an old task that counts for this method: with one shared backbone, only the newest exists in practice."""
        return View.LATEST if self.shares_backbone else View.TASK


@dataclass(frozen=True)
class AuxiliaryTask:
    """Another task that a training job has to do with: an earlier one that it recalls, or one that it learns at the same time."""

    task: TaskSpec
    budget: Budget


@dataclass(frozen=True)
class StageJob:
    """One node of the plan. `key` is derived from all other semantic fields; labels below it are for people only.

    `parents` are the job keys whose committed results must exist first. `bank` are, in order, the keys of the jobs whose
    adapters this job sees; `queries_from` is the job whose queries stage one inherits ("" = fresh); `model_from` is the job whose
    learnt tensors (queries, head) this job continues (stage two continues stage one) or scores (evaluation). `adapter_from` is
    the job that learnt the task's adapter apart, from which stage two may go on ("" = its adapter starts at nothing).
    """

    key: str
    kind: JobKind
    task: TaskSpec
    method: str
    seed: int
    parents: tuple[str, ...]
    bank: tuple[str, ...] = ()
    model_from: str = ""
    adapter_from: str = ""
    queries_from: str = ""
    stage: StagePlan | None = None
    budget: Budget = Budget()
    views: tuple[View, ...] = ()
    """Evaluation only."""
    latest_from: str = ""
    """Evaluation only: the job that holds the newest queries (the `latest` view uses them over all of `bank`)."""
    own_bank: int = 0
    """Evaluation only: how many adapters at the start of `bank` existed for the task itself (the `task` view)."""
    samples: Mapping[View, int] = field(default_factory=dict)
    """Evaluation only: view -> on how many samples of the split it is read, a fixed choice (core/sampling.py, fixed_sample); a
    view that is not there is read on all of them."""
    split_samples: int = 0
    """Evaluation only: how many the split has, where `samples` names a view."""
    first_from: str = ""
    """Evaluation only: the full pass right after the task was learnt, which is proved here ("" = this is one)."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Of the method: with its name, all that a worker needs to build it. One run may hold several methods."""
    backbone_from: str = ""
    """The job whose backbone, and whose memory, this one goes on from ("" = the pretrained backbone, no memory)."""
    auxiliary_tasks: tuple[AuxiliaryTask, ...] = ()
    """Other tasks that this job has to do with; see `MethodSpec.recalls` and `joint`."""
    leaves: bool = False
    """The job leaves a memory to later tasks."""
    candidates: Mapping[str, str] = field(default_factory=dict)
    """Selection only: form -> the job that trained it."""
    signature_from: str = ""
    """The job that described the task's samples; "" = nobody asks."""
    bank_from: str = ""
    """The job that committed the task before: its result holds the signatures of the whole bank ("" = the bank is empty)."""
    label: str = ""
    """For people: `seq0/3 easyvqa stage2`."""
    priority: int = 0
    """Lower runs first; the upstream chain comes before evaluations and transfers."""

    @property
    def splits(self) -> dict[str, str]:
        """Every split of the shards that a run reads for this job -> the digest of its manifest."""
        return {} if self.kind is JobKind.IMPORT else self.task.splits

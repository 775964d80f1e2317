"""What is learnt, and how: backbone, methods, budgets, tasks and their order, and how the engine steps; one class a group of
settings. What one group says of another is checked in `run.py`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from enum import StrEnum
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from atlas_dist.core.types import LATER, Augment, Budget, HeadStart, Stage, TaskKind
from atlas_dist.validation import Name, Section

NEW_TOKENS = 16
"""Tokens of a written answer at most, where nobody names a number."""

BASE = Budget()
"""What a budget is where nobody names anything."""


class Precision(StrEnum):
    """Arithmetic of the matrix products; parameters, optimizer and statistics stay in float32."""

    AUTO = "auto"
    """Whichever is faster where the run begins (calibrate.py); the run then has that one for ever."""
    FP32 = "fp32"
    BF16 = "bf16"


class Isolation(StrEnum):
    """`pool`: one long-lived group of workers pulls jobs (0.1 s a job). `per_job`: a fresh group a job (20 s a job)."""

    POOL = "pool"
    PER_JOB = "per_job"


class BackboneConfig(Section):
    """The frozen backbone."""

    name: str = "tiny"
    """`tiny` (ships with the package), `random-tiny`, `random-clip`, `random-siglip` and `random-smolvlm` (tests), `vilt-b32-mlm`
    (the paper's), `clip-vit-b32`, `siglip2-b16` and `smolvlm-256m` (these four from the hub); with `source`, any name."""
    source: str = ""
    """Hub repository or folder of another checkpoint; "" = the one that belongs to `name`."""
    revision: str = ""
    """Full commit hash of a hub `source`."""
    architecture: str = ""
    """What a `source` is: `vilt`, `clip`, `siglip` (SigLIP 2 of fixed resolution too), `idefics3` (SmolVLM) or `smolvlm` (SmolVLM
    2); "" = `vilt`. A checkpoint of another kind is refused. A name without a `source` brings its own."""
    tiles: int | None = Field(default=None, ge=1, le=6)
    """n, where each picture is cut into n x n tiles of the backbone's own size, beside a small one of the whole (SmolVLM): more
    detail, for n * n + 1 times the picture tokens. 1 = the whole picture alone. Left out = what the checkpoint's
    preprocessor_config.json asks for."""


class BudgetConfig(Section):
    """How long and how fast a stage learns; every field left out is taken from the level above (stage < task < train)."""

    global_batch: int | None = Field(default=None, ge=1)
    """Samples an optimizer step, over all workers, shared as evenly as it goes; at least one a worker."""
    epochs: float | None = Field(default=None, gt=0)
    """Passes over the training split; not used where `max_steps` is set."""
    max_steps: int | None = Field(default=None, ge=0)
    """Optimizer steps; 0 = as many as `epochs` gives."""
    lr: float | None = Field(default=None, gt=0)
    """Peak learning rate of AdamW; queries of earlier adapters learn at `query_lr_scale` times this."""
    query_lr_scale: float | None = Field(default=None, gt=0)
    """Factor on `lr` for stage one's queries."""
    weight_decay: float | None = Field(default=None, ge=0)
    """Decoupled weight decay of AdamW; biases have none."""
    beta1: float | None = Field(default=None, ge=0, lt=1)
    """AdamW's decay of the mean gradient."""
    beta2: float | None = Field(default=None, ge=0, lt=1)
    """AdamW's decay of the mean squared gradient."""
    eps: float | None = Field(default=None, gt=0)
    """AdamW's epsilon; left out everywhere = the method's own."""
    warmup: float | None = Field(default=None, ge=0, le=1)
    """Share of the steps over which the learning rate rises linearly; it then falls linearly to 0."""
    clip: float | None = Field(default=None, ge=0)
    """Largest gradient norm; 0 = no clipping."""
    validations: int | None = Field(default=None, ge=1)
    """How often a stage is validated, evenly spaced, the last at its end; the best state is kept."""
    head_start: HeadStart | None = None
    """`random`, or `ridge`: the head's last layer is fitted to the training samples before the first step, where the task has
    classes and one text a sample; `auto`: `ridge` unless an adapter trains for long on many samples; left out everywhere = the
    method's own."""
    augment: Augment | None = None
    """How training pictures are varied: `none`, `affine` (turned, sheared, scaled and shifted a little), `affine_flip` (mirrored
    as well: for photos), `auto` (`affine` where a stage sees its samples eight times or more); left out everywhere = the method's
    own."""
    head_lr: float | None = Field(default=None, ge=0)
    """Learning rate of a head that starts fitted: it has less to learn than what it reads; 0 = `lr`; left out everywhere = the
    method's own."""
    head_refit: bool | None = None
    """Whether the head's last layer is fitted to training samples again at every validation: what is validated, and kept, lies
    between the fit and what was learnt, where the validation loss is smallest; left out everywhere = the method's own."""
    min_steps: int | None = Field(default=None, ge=0)
    """Optimizer steps at least, where `epochs` gives fewer: passes over few samples are few steps. Not used where `max_steps` is
    set; 0 = no least."""

    @classmethod
    def declared(cls) -> dict[str, Any]:
        """What `Budget` declares, without what is off there: the top of the levels. What a method may choose is not among it."""
        return {f.name: f.default for f in fields(Budget) if f.default and f.name not in ("eps", *LATER)}

    def over(self, base: Budget) -> Budget:
        """`base` with the fields that are set here replaced."""
        known = {k: v for k, v in self.model_dump().items() if v is not None}
        return Budget(**{**base.__dict__, **known})


class MethodConfig(Section):
    """The continual-learning method and its settings."""

    name: str = "atlas"
    """Which method learns; `atlas-dist config` lists the choices of the group `method`."""
    settings: dict[str, Any] = Field(default_factory=dict)
    """Checked by the method itself; see `configs/method/`."""
    budget: BudgetConfig = BudgetConfig()
    """Of both stages of every task as this method learns it, over all other budgets: rows of a comparison differ in rates."""
    stage1: BudgetConfig = BudgetConfig()
    """Of its stages one, over its `budget`."""
    stage2: BudgetConfig = BudgetConfig()
    """Of its stages two, over its `budget`."""
    all_steps: bool = False
    """Its stages two take as many steps as stage one, an adapter apart and both together: a row with the same total as ATLAS."""


class ReferencesConfig(Section):
    """Methods that the measures of transfer compare with (docs/method.md, Evaluation), learnt in the same run; left out = not
    asked for."""

    alone: MethodConfig | None = None
    """Learns each upstream task by itself from the pretrained backbone: T_UK and forward transfer."""
    pretrained: MethodConfig | None = None
    """Learns each downstream task from the pretrained backbone instead of from what the sequence taught: T_LS."""


class DataRef(Section):
    """Which shard set a task reads."""

    dataset: Name
    """Folder of the shard set below `shards.url`."""
    train: Name = "train"
    """Split that is learnt from."""
    val: Name = "val"
    """Split that chooses checkpoints and forms, and scores where there is no `test`; never learnt from."""
    test: Name | Literal[""] = ""
    """Split that evaluations score and that chooses nothing; "" = `val`."""

    @property
    def splits(self) -> list[str]:
        """Every split that is named."""
        return [self.train, self.val, *filter(None, [self.test])]


class RawConfig(Section):
    """How `atlas-dist shards pack` makes a task's shard set from the data set as distributed."""

    converter: str
    """See `atlas-dist shards converters`."""
    source: str = ""
    """Folder or .zip, relative to `raw_root`; "" = the converter needs none (an installed package, generated data)."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Checked by the converter itself."""
    train_options: dict[str, Any] = Field(default_factory=dict)
    """On top of `options`, for the training split only."""
    val_options: dict[str, Any] = Field(default_factory=dict)
    """On top of `options`, for the validation split and the test split only."""
    test_share: float = Field(default=0.0, ge=0, lt=1)
    """Share of the converter's validation split that becomes the split `data.test`, for data sets that have none of their own;
    0 = the converter makes it."""


class TaskConfig(Section):
    """One task: what its samples are and where they lie."""

    kind: TaskKind
    """How a sample becomes logits: `single` and `answers` take a picture and a text, `pair` two pictures, `choice` K texts;
    `generate` takes a picture and a text and writes a text."""
    data: DataRef
    """Which shard set it reads."""
    raw: RawConfig | None = None
    """How to pack the shard set; left out = somebody else packs it."""
    classes: int | None = Field(default=None, ge=1)
    """Classes (choices for `choice`); left out = what the manifest says."""
    max_text: int = Field(default=40, ge=3, le=512)
    """Text tokens a pass, [CLS] and [SEP] included; longer texts are cut."""
    max_new_tokens: int | None = Field(default=None, ge=1, le=512)
    """Tokens of an answer of a `generate` task, with the one that ends it: longer right answers are cut, and no more are written;
    left out = 16. Other kinds have none."""
    shots: float = Field(default=0.0, ge=0)
    """0 = everything; n >= 1 = n samples a class; below 1 = that share."""
    budget: BudgetConfig = BudgetConfig()
    """Of both stages of this task; over `train.budget`."""
    stage1: BudgetConfig = BudgetConfig()
    """Of its stage one, over everything else."""
    stage2: BudgetConfig = BudgetConfig()
    """Of its stage two, over everything else."""
    both: BudgetConfig = BudgetConfig()
    """Of a stage two that goes on from stage one, where a method trains an adapter apart as well; over `stage2`."""

    @model_validator(mode="after")
    def _scored_apart(self) -> TaskConfig:
        if self.raw is not None and self.raw.test_share and self.data.test in ("", self.data.train, self.data.val):
            raise ValueError(f"raw.test_share makes a split of its own, and data.test is {self.data.test!r}: set data.test=test")
        return self

    @model_validator(mode="after")
    def _writes(self) -> TaskConfig:
        if self.max_new_tokens is not None and not self.kind.generates:
            raise ValueError(
                f"max_new_tokens is {self.max_new_tokens}, but a {self.kind.value} task writes nothing; leave it out"
            )
        return self

    @property
    def new_tokens(self) -> int:
        """`max_new_tokens`, or what it is where it is left out; 0 where nothing is written."""
        return (self.max_new_tokens or NEW_TOKENS) if self.kind.generates else 0

    def budgets(self, train: TrainConfig, method: MethodConfig | None = None, base: Budget = BASE) -> dict[Stage, Budget]:
        """The budget of each stage: defaults, then `train.*`, then the task's own, then the method's; a stage's wins over the
        general one.

        Args:
            method: whose row of the run it is; None = as if it named no budget.
            base: what holds where nobody names anything.
        """
        general, method = self.budget.over(train.budget.over(base)), method or MethodConfig()
        one = method.stage1.over(method.budget.over(self.stage1.over(train.stage1.over(general))))
        two = method.stage2.over(method.budget.over(self.stage2.over(train.stage2.over(general))))
        if method.all_steps:
            stages = (one, two, self.budget_of_both(train, method, base))
            lengths = {name: sum(getattr(s, name) for s in stages) for name in ("epochs", "min_steps", "max_steps")}
            two = replace(two, **lengths)
        return {Stage.ONE: one, Stage.TWO: two}

    def budget_of_both(self, train: TrainConfig, method: MethodConfig | None = None, base: Budget = BASE) -> Budget:
        """The budget of a stage two that goes on from stage one, where an adapter apart is trained as well. Args as `budgets`."""
        general, method = self.budget.over(train.budget.over(base)), method or MethodConfig()
        two = train.both.over(self.stage2.over(train.stage2.over(general)))
        return method.stage2.over(method.budget.over(self.both.over(two)))


class SequenceConfig(Section):
    """Which tasks are learnt, in which orders."""

    upstream: list[Name] = Field(default_factory=list)
    """The tasks in order."""
    orders: list[list[Name]] = Field(default_factory=list)
    """Further orders of upstream tasks, in the same run; what they share with others is trained once."""
    downstream: list[Name] = Field(default_factory=list)
    """Tasks that start from the final bank and stay out of it."""
    experience: list[Name] = Field(default_factory=list)
    """Imported adapters that come before the first task, by the names that `bank import --as` gave them. Every task may look at
    them, as at those of earlier tasks; with a method that chooses by signature and LoRA adapters."""
    evaluate_every: int = Field(default=1, ge=1)
    """Score every task so far after every so many tasks, and after the last; a task is always scored right after it was learnt.
    With 1 the evaluations grow with the square of the tasks."""
    recheck: int = Field(default=256, ge=0)
    """Samples on which an old task is proved to answer as in its first full pass, to the last bit, and is read in the latest
    view; 0 = all. A fixed choice for each split; a split that has no more is read whole."""
    latest_in_full: bool = False
    """Read the latest view on all samples whatever `recheck` says."""

    @property
    def all_orders(self) -> list[list[str]]:
        """Every order, `upstream` first."""
        return [o for o in [self.upstream, *self.orders] if o]


class TrainConfig(Section):
    """How the engine steps."""

    workers: int = Field(default=2, ge=1)
    """Ranks of a pool: one process each."""
    min_workers: int = Field(default=0, ge=0)
    """Ranks that a pool goes on with when nodes are lost, until there is room for all again; 0 = `workers`: it waits for room."""
    micro_batch: int = Field(default=0, ge=0)
    """Samples a rank per forward pass; 0 = the rank's whole share. Smaller ones are accumulated to the same global batch."""
    precision: Precision = Precision.AUTO
    """Of the matrix products; parameters, optimizer state and statistics stay in float32. `auto`: bf16 where half a second of
    trying finds it faster on the workers' nodes, else fp32; recorded with the run, and never another one within it."""
    zero_stage: Literal[0, 1, 2, 3] = 0
    """DeepSpeed ZeRO stage. Adapters are small: 0 unless the backbone does not fit."""
    activation_checkpointing: bool = False
    """Compute each layer of the backbone again in backward instead of remembering it: about a third more arithmetic, memory for
    one layer's activations instead of all. The same numbers."""
    tf32: bool = False
    """On GPUs, multiply float32 matrices with TensorFloat-32: faster, 10 bits of mantissa instead of 23. The results are facts of
    their own then, as with `compile`."""
    deterministic: bool = False
    """On GPUs, use only operations that give the same bits twice; slower, and an error where there is none. What holds
    without it: docs/reliability.md, Equal bits."""
    compile: bool = False
    """Run the backbone's layers through torch.compile while training: the first steps take minutes, results may differ in the
    last bits (they are facts of their own then, never mixed with those of a run without it)."""
    isolation: Isolation = Isolation.POOL
    """`pool`: one long-lived group of workers pulls jobs. `per_job`: a fresh group a job, 20 s each."""
    checkpoint_every: int = Field(default=200, ge=0)
    """Optimizer steps between mid-stage checkpoints; 0 = none."""
    log_every: int = Field(default=10, ge=1)
    """Optimizer steps between progress reports and stop checks."""
    eval_batch: int = Field(default=64, ge=1)
    """Samples a rank per forward pass of an evaluation. Fixed, so that predictions do not depend on the number of workers."""
    leave_one_out: bool = True
    """Score a task that was just learnt once more without each of its adapters."""
    threads: int = Field(default=1, ge=1)
    """CPU threads a worker computes with."""
    budget: BudgetConfig = BudgetConfig(**BudgetConfig.declared())
    """Of both stages of every task; a task's own budgets go over it."""
    stage1: BudgetConfig = BudgetConfig()
    """Of every stage one, over `train.budget`."""
    stage2: BudgetConfig = BudgetConfig()
    """Of every stage two, over `train.budget`."""
    both: BudgetConfig = BudgetConfig()
    """Of every stage two that goes on from stage one, where a method trains an adapter apart as well; over `train.stage2`."""

    @field_validator("budget", mode="before")
    @classmethod
    def _over_the_declared(cls, given: object) -> object:
        """A ledger names every value of the run's budget, given or declared (coordinator/expand.py, specification)."""
        return {**BudgetConfig.declared(), **given} if isinstance(given, Mapping) else given

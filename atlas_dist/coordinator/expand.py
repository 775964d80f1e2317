"""From a configuration to a plan: read the manifests, name the backbone, lay out the orders. Everything that can be wrong is
found here, before any worker starts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from functools import cache, partial
from typing import Any

from atlas_dist.config import MethodConfig, Precision, RunConfig, TaskConfig, TrainConfig
from atlas_dist.coordinator.generating import check_generating
from atlas_dist.coordinator.imported import check_experience, look_up
from atlas_dist.core.imported import ImportedAdapter
from atlas_dist.core.manifest import ShardManifest
from atlas_dist.core.plan import Plan, References, SequenceSpec, make_plan
from atlas_dist.core.task_jobs import Common, PlannedTask
from atlas_dist.core.types import LATER, Budget, MethodSpec, TaskSpec
from atlas_dist.data.manifest import read_manifest
from atlas_dist.errors import ConfigError, DataError
from atlas_dist.methods import make_method, stored_name
from atlas_dist.methods.adapters import AdapterSettings
from atlas_dist.model.backbone_facts import BackboneFacts
from atlas_dist.runs.stores import open_run_store, open_shards
from atlas_dist.train.configured import configured_backbone, configured_facts

NUMERICS_VERSION = 1
"""Raised whenever equal settings may give another result than before: results of older versions are then not reused."""


def expand(config: RunConfig, backbone: BackboneFacts | None = None) -> Plan:
    """The plan of a run. `backbone`: as `expand_rows`.

    Raises:
        ConfigError: a setting does not fit the method, the backbone or the data.
        DataError: a shard set is missing or damaged.
    """
    return expand_rows({"": config}, backbone)


def expand_rows(rows: Mapping[str, RunConfig], backbone: BackboneFacts | None = None) -> Plan:
    """One plan for every row of a sweep: jobs with equal keys merge, so what rows have in common is trained once.

    Args:
        rows: name of the row ("" for the only one) -> its configuration; they passed `config.check_rows`.
        backbone: what is known of theirs; None = it is asked for.

    Raises:
        As `expand`.
    """
    base = next(iter(rows.values()))
    backbone, read = backbone or configured_facts(base), cache(partial(read_manifest, open_shards(base)))
    for config in rows.values():
        _check_texts(config, backbone)
        _check_image_types(config, backbone)
        check_generating(config, used_tasks(config), backbone)
        check_experience(config)
    _check_targets(rows.values())
    specs = {row: {name: packed_task(config, name, read) for name in used_tasks(config)} for row, config in rows.items()}
    scored = [(task.dataset, task.scored) for known in specs.values() for task in known.values()]
    sizes = {manifest.digest: manifest.samples for manifest in (read(*split) for split in scored)}
    names = dict.fromkeys(name for config in rows.values() for name in config.sequence.experience)
    experience = look_up(open_run_store(base), names, backbone.digest) if names else {}
    return lay_out(rows, specs, backbone.digest, sizes, experience)


def used_tasks(config: RunConfig) -> list[str]:
    """Names of the tasks that the run learns, sorted."""
    return sorted({t for order in config.sequence.all_orders for t in order} | set(config.sequence.downstream))


def lay_out(
    rows: Mapping[str, RunConfig],
    specs: Mapping[str, Mapping[str, TaskSpec]],
    backbone_digest: str,
    sizes: Mapping[str, int],
    experience: Mapping[str, ImportedAdapter] | None = None,
) -> Plan:
    """The plan of rows on data and a backbone that are known by their digests.

    Args:
        specs: row -> name of each task that it uses -> what the task is.
        sizes: digest of a split that scores -> its samples. Splits that are not there are read whole every time.
        experience: what the names in `sequence.experience` stand for.

    Raises:
        ConfigError: as `expand`.
    """
    common = Common(backbone_digest, numerics=numerics_of(next(iter(rows.values())).train))
    known = experience or {}
    laid_out = (spec for row, config in rows.items() for spec in _sequences(row, config, specs[row], sizes, known))
    return make_plan(laid_out, common)


def _sequences(
    row: str,
    config: RunConfig,
    specs: Mapping[str, TaskSpec],
    sizes: Mapping[str, int],
    experience: Mapping[str, ImportedAdapter],
) -> Iterator[SequenceSpec]:
    methods = {name: _method(config, variant) for name, variant in config.variants.items()}
    references = References(
        **{what: _method(config, requested) for what, requested in config.references if requested is not None}
    )
    for variant, method in methods.items():
        asked = config.variants[variant]
        base = make_method(asked.name, asked.settings).budget
        tasks = {
            name: replace(
                _planned(spec, config.tasks[name], config.train, asked, base), scored_samples=sizes.get(spec.scored_digest, 0)
            )
            for name, spec in specs.items()
        }
        variant_name = "-".join(part for part in (row, variant if config.compare else "") if part)
        for seed in config.seeds:
            for number, order in enumerate(config.sequence.all_orders):
                yield SequenceSpec(
                    name=f"{variant_name}-order{number}-seed{seed}".removeprefix("-"),
                    method=method,
                    seed=seed,
                    upstream=tuple(tasks[t] for t in order),
                    downstream=tuple(tasks[t] for t in config.sequence.downstream),
                    references=references,
                    variant=variant_name or variant,
                    evaluate_every=config.sequence.evaluate_every,
                    recheck=config.sequence.recheck,
                    latest_in_full=config.sequence.latest_in_full,
                    experience=tuple(experience[name] for name in config.sequence.experience),
                )


def _planned(spec: TaskSpec, task: TaskConfig, train: TrainConfig, method: MethodConfig, base: Budget) -> PlannedTask:
    return PlannedTask(spec, task.budgets(train, method, base), task.budget_of_both(train, method, base))


def numerics_of(train: TrainConfig) -> dict[str, Any]:
    """What of `train` may change a result at equal budgets. What is off is not named: older results stay facts."""
    numerics: dict[str, Any] = {"version": NUMERICS_VERSION, "precision": _decided(train)}
    if train.precision is Precision.BF16:
        # Scores of attention are rounded alike whether or not a batch happens to have padding; once they were not.
        numerics["bf16"] = 2
    return numerics | {name: True for name in ("compile", "tf32") if getattr(train, name)}


def _decided(train: TrainConfig) -> str:
    """Raises ConfigError: nobody has decided yet, and neither a key nor a record may depend on the machine that asks."""
    if train.precision is Precision.AUTO:
        raise ConfigError("train.precision=auto is not decided yet.", fix="Set train.precision=fp32 or bf16.")
    return train.precision.value


def specification(
    config: RunConfig,
    sizes: Mapping[str, int] | None = None,
    experience: Mapping[str, ImportedAdapter] | None = None,
    tiles: int = 1,
) -> dict[str, Any]:
    """What makes a run this run, for the ledger's first entry: where it lies and how many workers it has may change between
    submissions.

    Args:
        sizes: digest of a split that the plan does not read whole every time -> its samples: with them the plan can be laid out
            again where the data are out of reach.
        experience: what the names in `sequence.experience` stand for.
        tiles: of the backbone (`BackboneFacts.tiles`), where the settings leave it to the checkpoint.
    """
    tree = config.model_dump(mode="json")
    rows = [tree["method"], *tree["compare"].values(), *filter(None, tree["references"].values())]
    for row in rows:
        _as_stored(row)
    lasting = {name: tree[name] for name in ("seeds", "backbone", "method", "tasks", "sequence")}
    if not lasting["backbone"]["architecture"]:
        lasting["backbone"].pop("architecture")
    # A checkpoint's own choice is recorded as a number, so that a record means the same without the checkpoint.
    if (cut := lasting["backbone"].pop("tiles") or tiles) > 1:
        lasting["backbone"]["tiles"] = cut
    lasting["train"] = {name: tree["train"][name] for name in ("precision", "budget", "stage1", "stage2", "both")}
    lasting["train"]["precision"] = _decided(config.train)
    for holder in (*rows, *lasting["tasks"].values(), lasting["train"]):
        _without_later(holder)
    _without_unset(lasting["train"], "both")
    lasting["train"] |= {name: True for name in ("compile", "tf32") if tree["train"][name]}
    for task in lasting["tasks"].values():
        task.pop("raw")
        if task["max_new_tokens"] is None:
            task.pop("max_new_tokens")
        _without_unset(task, "both")
        if not task["data"]["test"]:
            task["data"].pop("test")
    # 0.1 recorded an epsilon always, and all its methods had the released one.
    own = {make_method(row.name, row.settings).budget.eps for row in config.variants.values()}
    if lasting["train"]["budget"]["eps"] is None and own == {Budget.eps}:
        lasting["train"]["budget"]["eps"] = Budget.eps
    # What a run may be asked for in addition is named where it is: older runs keep the specification that they began with.
    if config.sequence.evaluate_every == 1:
        lasting["sequence"].pop("evaluate_every")
    # What concerns only splits that are read in part says nothing where there is none, and 0.1 read them all whole.
    if sizes:
        lasting["split_samples"] = dict(sizes)
    else:
        lasting["sequence"].pop("recheck")
    if not sizes or not config.sequence.latest_in_full:
        lasting["sequence"].pop("latest_in_full")
    if not config.sequence.experience:
        lasting["sequence"].pop("experience")
    elif experience is not None:
        lasting["experience"] = {name: experience[name].as_specified() for name in config.sequence.experience}
    references = {name: row for name, row in tree["references"].items() if row is not None}
    requested = {"compare": tree["compare"], "only": tree["only"], "references": references}
    lasting |= {name: value for name, value in requested.items() if value}
    return lasting


def _as_stored(row: dict[str, Any]) -> None:
    """A method as stores name it, without what it leaves at its default and 0.1 did not know."""
    fields = AdapterSettings.model_fields
    row["settings"] = {n: v for n, v in row["settings"].items() if n not in fields or v not in (fields[n].default, [])}
    row["name"] = stored_name(row["name"])
    for name in ("budget", "stage1", "stage2"):
        _without_unset(row, name)
    if not row["all_steps"]:
        row.pop("all_steps")


def _without_later(tree: dict[str, Any]) -> None:
    """Leave out of every budget what 0.1 did not know and nobody names."""
    for budget in (tree[name] for name in ("budget", "stage1", "stage2", "both") if name in tree):
        for name in LATER:
            if budget[name] is None:
                budget.pop(name)


def _without_unset(tree: dict[str, Any], name: str) -> None:
    """Leave out a budget that says nothing."""
    if not any(value is not None for value in tree[name].values()):
        tree.pop(name)


def specification_of_rows(rows: Mapping[str, RunConfig], plan: Plan, tiles: int = 1) -> dict[str, Any]:
    """The same of a sweep: that of every row, and what readers of any run look for at the top. `tiles`: as `specification`."""
    sizes = {job.task.scored_digest: job.split_samples for job in plan.jobs.values() if job.samples}
    if list(rows) == [""]:
        return specification(rows[""], sizes, plan.imported, tiles)
    each = {row: specification(config, sizes, plan.imported, tiles) for row, config in rows.items()}
    first = next(iter(each.values()))
    return {"rows": each, "backbone": first["backbone"], "train": {"precision": first["train"]["precision"]}}


def _method(config: RunConfig, requested: MethodConfig) -> MethodSpec:
    """The plan's view of a method. Raises ConfigError for settings that do not fit it, or the engine."""
    spec = make_method(requested.name, requested.settings).spec
    if config.train.zero_stage == 3 and spec.shares_backbone:
        raise ConfigError(
            f"{requested.name} trains the backbone, which train.zero_stage=3 takes apart for every job.",
            fix="Set train.zero_stage to 0.",
        )
    return spec


def _check_image_types(config: RunConfig, backbone: BackboneFacts) -> None:
    """A setting that the backbone cannot follow is refused, not passed over."""
    for requested in config.methods:
        wanted = make_method(requested.name, requested.settings).second_image_type
        if wanted > backbone.image_types:
            raise ConfigError(
                f"{requested.name}: second_image_type is {wanted}, "
                f"but {backbone.architecture} backbones know {backbone.image_types}.",
                fix="Leave method.settings.second_image_type at 1.",
            )


def _check_targets(rows: Iterable[RunConfig]) -> None:
    """Raises ConfigError where LoRA adapters are meant for layers that the backbone, one for all rows, does not have. Only they
    need the model."""
    configs = list(rows)
    methods = (make_method(named.name, named.settings) for config in configs for named in config.methods)
    wanted = dict.fromkeys(method.mixing.lora.targets for method in methods if method.mixing.lora is not None)
    if wanted:
        from atlas_dist.model.targets import target_paths

        model = configured_backbone(configs[0]).model
        for targets in wanted:
            target_paths(model, targets)


Read = Callable[[str, str], ShardManifest]
"""(data set, split) -> its manifest."""


def packed_task(config: RunConfig, name: str, read: Read) -> TaskSpec:
    """A task as its packed data define it. Raises ConfigError, DataError: they are missing, or not what the task says."""
    task = config.tasks[name]
    train = _manifest(read, name, task, task.data.train)
    val = _manifest(read, name, task, task.data.val)
    test = _manifest(read, name, task, task.data.test) if task.data.test else val
    return TaskSpec(
        name=name,
        kind=task.kind,
        classes=_classes(name, task, train, val, test),
        max_text=task.max_text,
        dataset=task.data.dataset,
        train=task.data.train,
        val=task.data.val,
        train_digest=train.digest,
        val_digest=val.digest,
        shots=task.shots,
        test=task.data.test,
        test_digest=test.digest if task.data.test else "",
        max_new_tokens=task.new_tokens,
    )


def _manifest(read: Read, name: str, task: TaskConfig, split: str) -> ShardManifest:
    try:
        manifest = read(task.data.dataset, split)
    except DataError as error:
        raise DataError(
            f"Task {name}: {error.message}", fix=error.fix or "Pack it: atlas-dist shards pack experiment=…"
        ) from error
    if manifest.kind is not task.kind:
        raise ConfigError(
            f"tasks.{name}.kind is {task.kind.value}, but {task.data.dataset}/{split} was packed as {manifest.kind.value}.",
            fix=f"Set tasks.{name}.kind={manifest.kind.value}, or pack the data set again.",
        )
    return manifest


def _classes(name: str, task: TaskConfig, train: ShardManifest, *others: ShardManifest) -> int:
    for other in others:
        if train.classes != other.classes:
            raise DataError(
                f"Task {name}: the splits {train.split} and {other.split} of {train.dataset} do not have the same classes "
                f"({len(train.classes)} and {len(other.classes)}).",
                fix="Pack both splits from the same data set.",
            )
    if task.classes not in (None, len(train.classes)):
        raise ConfigError(
            f"tasks.{name}.classes is {task.classes}, the shards have {len(train.classes)}.",
            fix=f"Leave tasks.{name}.classes out: the manifest knows it.",
        )
    return len(train.classes)


def _check_texts(config: RunConfig, backbone: BackboneFacts) -> None:
    limit, n = backbone.text_tokens, backbone.tiles
    beside, fewer = (f" beside {n} x {n} tiles of a picture", f", or backbone.tiles below {n}") if n > 1 else ("", "")
    for name, task in config.tasks.items():
        if task.max_text + task.new_tokens > limit:
            written = f", and {task.new_tokens} are written" if task.new_tokens else ""
            raise ConfigError(
                f"tasks.{name}.max_text is {task.max_text}{written}; {config.backbone.name} reads at most {limit} text tokens"
                f"{beside}.",
                fix=f"Set tasks.{name}.max_text={max(3, limit - task.new_tokens)} or less{fewer}.",
            )

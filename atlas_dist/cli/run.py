"""`atlas-dist run`, `plan`, `status`, `report` and the requests: a configuration in, the house at work, lines out."""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Sequence
from dataclasses import replace

import yaml
from rich.console import Console

from atlas_dist.choices import groups
from atlas_dist.cli.words import ComposedRun, compose_run, hush, no_such_run, report_folder, spoken
from atlas_dist.compose import compose_config
from atlas_dist.config import ReferencesConfig, RunConfig
from atlas_dist.core.ledger import RunState
from atlas_dist.core.plan import Plan
from atlas_dist.logs import LogFormat, log_fields
from atlas_dist.redact import redact_json
from atlas_dist.report.facts import RunFacts, gather, of_row
from atlas_dist.runs.stores import open_run_store

log = logging.getLogger(__name__)


def run_experiment(overrides: Sequence[str], console: Console, *, quiet: bool = False, many: bool = False) -> None:
    """Plan, run, report. Raises whatever ended the run."""
    began = time.monotonic()
    composed_run = compose_run(overrides, many=many)
    hush()
    config = composed_run.config
    recorded = config.log.format is LogFormat.JSON
    console = spoken(config, console)
    plan = composed_run.plan()
    learnt = learn(composed_run, plan, console, quiet=quiet)
    facts = _report(composed_run, plan, Console(quiet=True) if recorded else console)
    if recorded:  # a log of records has no place for tables
        log.info("the report is written", extra=log_fields(report=str(report_folder(config)), bank=config.store.url))
    if learnt:
        _say_where_time_went(facts, time.monotonic() - began, console)


def learn(composed_run: ComposedRun, plan: Plan, console: Console, *, quiet: bool = False) -> bool:
    """Run a plan to its end; False when there was nothing left to do. Raises whatever ended the run."""
    hush()
    console = spoken(composed_run.config, console)
    from atlas_dist.cli.live import watcher
    from atlas_dist.cli.track import make_tracker_sync
    from atlas_dist.coordinator.preflight import check_before_cluster, slow_products
    from atlas_dist.coordinator.ray_env import before_ray
    from atlas_dist.report.tracking import BackgroundSync
    from atlas_dist.runs.status import load_run

    config = composed_run.config
    state, _ = load_run(open_run_store(config), config.run)
    if _finished(composed_run, plan, state):
        console.print(f"run {config.run} is complete; nothing to do")
        return False
    tracker_sync = make_tracker_sync(config, plan, lambda text: console.print(text, markup=False, soft_wrap=True))
    check_before_cluster(config, plan)
    if not quiet:
        workers = " + ".join(str(group.workers) for group in config.worker_groups)
        rows = f"{len(composed_run.rows)} rows, " if composed_run.swept else ""
        console.print(
            f"run {config.run}: {rows}{len(plan.jobs)} jobs ({plan.training_jobs} train) on {workers} workers, "
            f"store {config.store.url}"
        )
        console.print(f"curves: tensorboard --logdir {report_folder(config) / 'tensorboard'}", markup=False, soft_wrap=True)
    if hint := slow_products(config):
        console.print(hint, markup=False, soft_wrap=True)
    if config.train.zero_stage and config.train.checkpoint_every:
        console.print(f"ZeRO stage {config.train.zero_stage}: no checkpoints within a stage; an interrupted stage starts over.")
    if not state.next_seq:
        _foresee(config, plan, state)
    before_ray(config.cluster)
    from atlas_dist.coordinator.drive import drive
    from atlas_dist.coordinator.service import Snapshot
    from atlas_dist.runs.status import CoordinatorRole

    console = spoken(config, console)  # again: Ray has brought a handler of its own
    with BackgroundSync(tracker_sync, config.track.every_s), watcher(plan, console, config.log.format, quiet=quiet) as view:

        def see(snapshot: Snapshot) -> None:
            view(snapshot)
            tracker_sync.leads = snapshot.status is not None and snapshot.status.role is CoordinatorRole.LEADER

        drive(config, plan, composed_run.specification(), see)
    return True


def _foresee(config: RunConfig, plan: Plan, state: RunState) -> None:
    """Where a run begins, keep what is foreseen, for its report."""
    from atlas_dist.cli.plan import forecast_run
    from atlas_dist.report.forecast import keep
    from atlas_dist.runs import layout

    store = open_run_store(config)
    keep(store, layout.forecast(config.run), forecast_run(config, plan, state, store))


def write_run_report(overrides: Sequence[str], console: Console, *, many: bool = False) -> None:
    """Gather and show a run's results again. Raises ConfigError: there is no such run."""
    from atlas_dist.runs.status import load_run

    composed_run = compose_run(overrides, many=many)
    hush()
    plan = composed_run.plan()
    state, _ = load_run(open_run_store(composed_run.config), composed_run.config.run)
    if not state.next_seq:
        raise no_such_run(composed_run.config)
    _report(composed_run, plan, console)


def send_request(overrides: Sequence[str], kind: str, reason: str, console: Console, *, many: bool = False) -> None:
    """Leave a request in the run's inbox. Raises ConfigError: there is no such run (a request would wait for one to come)."""
    from atlas_dist.clock import SystemClock
    from atlas_dist.runs.requests import RequestKind, ask
    from atlas_dist.runs.status import load_run

    config = compose_run(overrides, many=many).config
    store = open_run_store(config)
    if not load_run(store, config.run)[0].next_seq:
        raise no_such_run(config)
    ask(store, config.run, RequestKind(kind), reason, clock=SystemClock(), new_id=lambda: uuid.uuid4().hex)
    console.print(f"asked run {config.run} to {kind}")


def show_config(overrides: Sequence[str], console: Console) -> None:
    """Print the configuration as YAML, then the groups."""
    config = compose_config(overrides)
    console.print(yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False), markup=False)
    for name, choices in groups().items():
        console.print(f"[bold]{name}[/bold]: {', '.join(choices)}")


def check_store(url: str, endpoint_url: str, console: Console) -> None:
    """Race writers against the store. Raises StoreError when it can't be trusted."""
    from atlas_dist.store import StoreOptions, open_store
    from atlas_dist.store.doctor import require_fit

    report = require_fit(open_store(url, options=StoreOptions(endpoint_url=endpoint_url)), new_id=lambda: uuid.uuid4().hex)
    console.print(str(report), markup=False)


def _finished(composed_run: ComposedRun, plan: Plan, state: RunState) -> bool:
    """Whether the ledger says that exactly this run is complete: then no cluster needs to be started. Nor for one that would be
    refused: raises ConfigError where the name is another run's."""
    from atlas_dist.coordinator.coordinator import check_same_run, meaning

    spec = composed_run.specification()
    if state.finished and state.spec == spec:
        return True
    if state.next_seq:
        check_same_run(state, meaning(plan, spec), redact_json(spec))
    return False


def _report(composed_run: ComposedRun, plan: Plan, console: Console) -> RunFacts:
    """Everything that is known, as a page, tables and lines; of a sweep also a page a row."""
    from atlas_dist.report.comparison import show_comparison, write_comparison
    from atlas_dist.report.console import show
    from atlas_dist.report.forecast import compared, recall
    from atlas_dist.report.measures import compare, measure, notes
    from atlas_dist.report.page import write_report
    from atlas_dist.runs import layout
    from atlas_dist.runs.status import load_run

    config = composed_run.config
    store = open_run_store(config)
    state, entries = load_run(store, config.run)
    foreseen = recall(store, layout.forecast(config.run))
    facts = replace(
        gather(plan, state, store, entries),
        compared=compared(plan, state, foreseen),
        worker_hour=config.cluster.worker_hour,
    )
    folder = report_folder(config)
    about = notes(plan, state)
    page = write_report(facts, folder, about)
    places = [("bank  ", store.url), ("report", str(page))]
    rows = compare(measure(plan, state))
    if composed_run.swept:
        for row in composed_run.rows:
            write_report(of_row(facts, plan, row), folder / row)
    if composed_run.swept or config.compare:
        places.append(("table ", str(write_comparison(rows, folder))))
        show_comparison(rows, console, title="Rows of the sweep" if composed_run.swept else "Methods on the same tasks")
        show(replace(facts, sequences=()), console, places)
        return facts
    show(facts, console, places)
    if about or config.references != ReferencesConfig():
        show_comparison(rows, console)
    for note in about:
        console.print(note, markup=False, soft_wrap=True)
    return facts


def _say_where_time_went(facts: RunFacts, wall: float, console: Console) -> None:
    """Wall time, and the share of it that was real training steps."""
    stages = [s for q in facts.sequences for t in (*q.upstream, *q.downstream) for s in t.stages]
    seconds = {key: sum(s.metrics["seconds"].get(key, 0.0) for s in stages) for key in ("stepping", "waiting", "setup")}
    later = sorted(s.metrics["seconds"].get("setup", 0.0) for s in stages)[:-1]
    setup = f", set-up of a further stage {later[len(later) // 2]:.2f} s" if later else ""
    console.print(
        f"wall {wall:.0f} s, {seconds['stepping'] / wall:.0%} of it training steps, "
        f"{seconds['waiting'] / wall:.1%} waiting for data{setup}"
    )

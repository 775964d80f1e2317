"""Deterministic simulation of the real protocol code: `python -m tests.chaos.sim --seeds 50000`, replay one with `--seed N`.

Two runs of the same plan share a store, several coordinators work for one run, and people press pause now and then. Trainers
upload through the real artifact code and outlive their coordinator at times (zombies). In some seeds somebody collects garbage
all the time. Every seed draws its own weather.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from unittest import mock

from atlas_dist.coordinator.collect import collect
from atlas_dist.coordinator.coordinator import Coordinator
from atlas_dist.coordinator.dispatch import AttemptProgress, Event, Failed, Finished, Lost
from atlas_dist.coordinator.settings import CoordinatorSettings
from atlas_dist.core.attempts import Assignment, Failure, FailureKind
from atlas_dist.core.keys import sha256_hex
from atlas_dist.core.plan import Plan
from atlas_dist.core.schedule import Capacity, Pool, RetryRules
from atlas_dist.core.types import JobKind, StageJob
from atlas_dist.errors import AtlasError, DataError, FencedError, StoreError
from atlas_dist.runs.requests import RequestKind, ask
from atlas_dist.runs.status import Phase
from atlas_dist.store import log
from atlas_dist.store.artifacts import load, publish, read_checkpoint, save_checkpoint
from atlas_dist.store.settle import Patience
from tests.chaos.checker import Checker, Violation
from tests.chaos.fakes import adapter_bytes
from tests.chaos.plans import FORMS, small_plan
from tests.chaos.world import Actor, Crash, SimStore, Weather, World, ended

RULES = RetryRules(first_wait_s=0.5, longest_wait_s=5.0)
TIME_LIMIT_S = 4000.0


@dataclass(frozen=True)
class Scenario:
    """What one seed is about."""

    plan: Plan
    weather: Weather
    storm_s: float
    coordinators: tuple[str, ...]
    """The run that each coordinator process works for."""
    deterministic: bool
    """Whether two attempts at a job give the same bytes."""
    meddling: bool
    misjudged: float
    """How often a trainer that goes on is taken for dead."""
    pack: int
    """Entries in a pack of the ledger."""
    patience: Patience
    """The impatient give up on the store, and their processes end, all the time."""
    tidying: bool
    """Whether somebody collects garbage all the time, as `bank gc --yes` does."""
    stalled: float = 0.0
    """How often a trainer stands still, and its group is ended."""
    small_devices: bool = False
    """Whether devices break, and are too small for some jobs until their micro batch was halved once or twice."""


def scenario(seed: int) -> Scenario:
    """Draw a scenario."""
    rng = random.Random(f"scenario {seed}")
    bad = rng.choice([0.0, 0.01, 0.03, 0.08])

    def some(scale: float) -> float:
        return bad * scale * rng.choice([0.0, 1.0, 2.0])

    weather = Weather(
        lost=some(1.0),
        unanswered=some(1.0),
        late=some(1.0),
        doubled=some(1.0),
        unreadable=some(0.5),
        damaged=some(0.7),
        killed=rng.choice([0.0, 0.001, 0.004]),
        stopped=rng.choice([0.0, 0.001, 0.004]),
    )
    plans = (_PLANS["tiny"], _PLANS["small"], _PLANS["wide"], _PLANS["forms"])
    return Scenario(
        plan=rng.choice(plans),
        weather=weather,
        storm_s=rng.choice([30.0, 80.0, 160.0]),
        coordinators=rng.choice([("a",), ("a", "a"), ("a", "a", "b"), ("a", "b"), ("a", "a", "a")]),
        deterministic=rng.random() < 0.5,
        meddling=rng.random() < 0.2,
        misjudged=rng.choice([0.0, 0.0, 0.01, 0.05]),
        pack=rng.choice([3, 7, 500]),
        patience=Patience(first_s=0.2, longest_s=5.0, total_s=rng.choice([0.5, 60.0, 60.0])),
        tidying=rng.random() < 0.3,
        stalled=rng.choice([0.0, 0.01, 0.05]),
        small_devices=seed % 5 == 3,
    )


_PLANS = {"tiny": small_plan(1), "small": small_plan(2), "wide": small_plan(2, sequences=2), "forms": small_plan(2, method=FORMS)}


class SimDispatcher:
    """Starts trainers as actors of the world; two at a time."""

    def __init__(self, world: World, scenario: Scenario, run: str) -> None:
        self.world = world
        self.scenario = scenario
        self.run = run
        self.events: list[Event] = []
        self.active: dict[str, Actor] = {}

    def capacity(self) -> Capacity:
        return Capacity((Pool("main", free=2 - len(self.active), total=2),))

    def start(self, assignment: Assignment) -> None:
        trainer = Trainer(self, assignment)
        self.active[assignment.attempt] = self.world.spawn(f"trainer {assignment.attempt}", trainer.run)

    def poll(self) -> list[Event]:
        for attempt, actor in list(self.active.items()):
            if actor.done:
                del self.active[attempt]
                if actor.killed:
                    self.events.append(Lost(attempt))
            elif self.world.stormy and self.world.rng.random() < self.scenario.misjudged:
                # Taken for dead (a partition), but going on: its RESULT may come when nobody expects it any more.
                del self.active[attempt]
                self.world.happened["misjudged"] += 1
                self.events.append(Lost(attempt))
            elif self.world.stormy and self.world.rng.random() < self.scenario.stalled:
                self._end_of_a_stall(attempt, actor)
        events, self.events = self.events, []
        if events and self.world.stormy and self.world.rng.random() < 0.1:
            events += events[:1]
        return events

    def _end_of_a_stall(self, attempt: str, actor: Actor) -> None:
        """Its failure is told before its processes are ended, and now and then one is overlooked and goes on."""
        del self.active[attempt]
        self.world.happened["stalled"] += 1
        actor.killed = self.world.rng.random() < 0.8
        step = max((e.step for e in self.events if isinstance(e, AttemptProgress) and e.attempt == attempt), default=0)
        self.events.append(Failed(attempt, Failure(FailureKind.STALLED, "no rank got further", step)))

    def cancel(self, attempt: str) -> None:
        if attempt in self.active:
            self.active[attempt].killed = True

    def abandon_all(self) -> None:
        """The coordinator's process died: its workers die with it, or go on for a while as zombies."""
        for actor in self.active.values():
            if self.world.rng.random() < 0.5:
                actor.killed = True
            else:
                self.world.happened["zombies"] += 1


class Trainer:
    """One attempt, through the real artifact code."""

    def __init__(self, dispatcher: SimDispatcher, assignment: Assignment) -> None:
        self.dispatcher = dispatcher
        self.assignment = assignment
        self.world = dispatcher.world

    def run(self, actor: Actor) -> None:
        store = SimStore(self.world, actor)
        try:
            event = self._train(store, actor)
        except StoreError as error:
            event = self._failed(FailureKind.STORE, str(error), 0)
        except DataError as error:
            event = self._failed(FailureKind.POISON, str(error), 0)
        self.dispatcher.events.append(event)

    def _train(self, store: SimStore, actor: Actor) -> Event:
        job, rng = self.assignment.job, self.world.rng
        if set(self.assignment.inputs) != set(job.parents):
            raise Violation(f"a job begins with every parent's result: {job.label}")
        seen = []
        for parent, ref in sorted(self.assignment.inputs.items()):
            name = ref.blobs[0].name
            digest = sha256_hex(load(store, ref, name))
            self.world.checker.used(self.dispatcher.run, parent, digest)
            seen.append(digest)
        step = 0
        if self.assignment.resume_from:
            step = read_checkpoint(store, self.assignment.resume_from, self.assignment.resume_digest).step
            self.world.happened["resumed"] += 1
        while step < 4:
            actor.sleep(rng.uniform(0.2, 2.0))
            step += 1
            self.dispatcher.events.append(AttemptProgress(self.assignment.attempt, step, 4))
            small = self.dispatcher.scenario.small_devices
            if small and self.assignment.halvings < int(job.key[:2], 16) % 3:
                self.world.happened["too large"] += 1
                return self._failed(FailureKind.MEMORY, "a training step does not fit", step)
            if self.world.stormy and rng.random() < 0.02:
                self.world.happened["failed"] += 1
                kind = rng.choice([FailureKind.NONFINITE, FailureKind.POISON, FailureKind.PREEMPTED])
                if small and kind is FailureKind.PREEMPTED:
                    kind = FailureKind.DEVICE
                return self._failed(kind, "bad luck", step)
            if step == 2:
                state = {"state.bin": f"{job.key} at {step}".encode()}
                save_checkpoint(
                    store, self.assignment.prefix, step, state, clock=actor, patience=self.dispatcher.scenario.patience
                )
        salt = [] if self.dispatcher.scenario.deterministic else [actor.name, str(self.world.now)]
        trace = json.dumps({"by": actor.name, "at": self.world.now}).encode()
        files = {**self._learnt(job, seen, salt), "trace.json": trace}
        attempt, prefix = self.assignment.attempt, self.assignment.prefix
        publish(
            store,
            prefix,
            job=job.key,
            attempt=attempt,
            files=files,
            metrics={},
            clock=actor,
            patience=self.dispatcher.scenario.patience,
        )
        return Finished(attempt)

    def _learnt(self, job: StageJob, seen: list[str], salt: list[str]) -> dict[str, bytes]:
        """What a job of this kind leaves: an adapter, scores, a signature; a choice has an adapter or, where the task declines to
        grow, none."""
        told = json.dumps(seen + salt).encode()
        match job.kind:
            case JobKind.EVAL:
                return {"scores.json": told}
            case JobKind.DESCRIBE:
                return {"signature.safetensors": adapter_bytes(job.key, salt)}
            case JobKind.SELECT:
                grows = int(job.key[:2], 16) % 2 == 0
                self.world.happened["grown" if grows else "declined to grow"] += 1
                chosen = next(iter(job.candidates.values()))
                return {"choice.json": told} | ({"adapter.safetensors": adapter_bytes(chosen, salt)} if grows else {})
            case JobKind.TRAIN:
                return {"adapter.safetensors": adapter_bytes(job.key, [*seen, *salt])}

    def _failed(self, kind: FailureKind, reason: str, step: int) -> Failed:
        return Failed(self.assignment.attempt, Failure(kind, reason, step))


class Process:
    """A coordinator process with a supervisor that starts it again whatever it dies of."""

    def __init__(self, world: World, scenario: Scenario, name: str, run: str, new_id: Callable[[], str]) -> None:
        self.world, self.scenario, self.name, self.run, self.new_id = world, scenario, name, run, new_id

    def launch(self, delay: float = 0.0) -> None:
        actor = self.world.spawn(self.name, self._live)
        actor.wake_at = self.world.now + delay

    def _live(self, actor: Actor) -> None:
        while True:
            dispatcher = SimDispatcher(self.world, self.scenario, self.run)
            try:
                if self._lead(actor, dispatcher):
                    return
            except Crash:
                dispatcher.abandon_all()
                if not self.world.failure and self.world.now < TIME_LIMIT_S:
                    self.launch(self.world.rng.uniform(0.0, 30.0))
                raise
            except FencedError:
                self.world.happened["fenced"] += 1
                dispatcher.abandon_all()
            except StoreError:
                self.world.happened["gave up on the store"] += 1
                dispatcher.abandon_all()
            actor.sleep(self.world.rng.uniform(1.0, 20.0))

    def _lead(self, actor: Actor, dispatcher: SimDispatcher) -> bool:
        """Whether the run is complete and this process may leave."""
        store = SimStore(self.world, actor)
        identity = self.new_id()

        def hear(event: str, fields: object) -> None:
            self.world.checker.heard(identity, self.run, event, fields)  # type: ignore[arg-type]

        settings = CoordinatorSettings(rules=RULES, patience=self.scenario.patience)
        coordinator = Coordinator(
            self.run, self.scenario.plan, store, dispatcher, ids=self.new_id, clock=actor, log_sink=hear, settings=settings
        )
        status = coordinator.open()
        while not status.done:
            status = coordinator.tick()
            actor.sleep(0.5)
        coordinator.close()
        if status.phase in (Phase.HALTED, Phase.FAILED):
            ask(store, self.run, RequestKind.RESUME, "go on", clock=actor, new_id=self.new_id)
        return status.phase is Phase.COMPLETE


def meddle(world: World, new_id: Callable[[], str]) -> Callable[[Actor], None]:
    """Somebody who presses pause and resume."""

    def body(actor: Actor) -> None:
        for _ in range(2):
            actor.sleep(world.rng.uniform(1.0, 30.0))
            kind = world.rng.choice([RequestKind.PAUSE, RequestKind.RESUME])
            try:
                ask(SimStore(world, actor), "a", kind, "meddling", clock=actor, new_id=new_id)
            except AtlasError:
                continue

    return body


class Tidying:
    """Somebody who collects the garbage of run a now and then, and starts again when the process is killed."""

    def __init__(self, world: World, scenario: Scenario, new_id: Callable[[], str]) -> None:
        self.world, self.scenario, self.new_id = world, scenario, new_id
        self.rounds = 6

    def launch(self) -> None:
        self.world.spawn("tidying", self._live)

    def _live(self, actor: Actor) -> None:
        try:
            while self.rounds:
                self.rounds -= 1
                actor.sleep(self.world.rng.uniform(1.0, 40.0))
                self._collect(actor)
        except Crash:
            if self.rounds and self.world.now < TIME_LIMIT_S:
                self.launch()
            raise

    def _collect(self, actor: Actor) -> None:
        def freed(_: object) -> None:
            self.world.happened["garbage freed"] += 1

        store = SimStore(self.world, actor)
        try:
            collect(store, "a", actor, self.new_id, tell=freed, patience=self.scenario.patience, read_many=map)
        except FencedError:
            self.world.happened["collector fenced"] += 1
        except AtlasError:
            self.world.happened["collector gave up"] += 1


def simulate(seed: int, prepare: Callable[[World], None] = lambda _: None) -> Counter[str]:
    """Live through one seed. Raises Violation. Returns what happened, by kind."""
    story = scenario(seed)
    world = World(seed, story.weather, story.storm_s, Checker())
    prepare(world)
    numbers = iter(range(1 << 60))

    def new_id() -> str:
        return f"id{next(numbers)}"

    with ended(world), mock.patch.object(log, "PACK", story.pack):
        for i, run in enumerate(story.coordinators):
            Process(world, story, f"coordinator {run}{i}", run, new_id).launch(world.rng.uniform(0.0, 5.0))
        if story.meddling:
            world.spawn("people", meddle(world, new_id))
        if story.tidying:
            Tidying(world, story, new_id).launch()
        world.run(until=TIME_LIMIT_S)
        if world.failure is not None:
            raise world.failure
        world.checker.finished(world.objects, dict.fromkeys(story.coordinators, len(story.plan.jobs)))
    world.happened["entries"] += sum(view.next for view in world.checker.runs.values())
    world.happened["elections"] += sum(view.epoch for view in world.checker.runs.values())
    return world.happened


def main() -> int:
    """Run many seeds, or replay one."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=2000)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--seed", type=int, help="replay this one only")
    options = parser.parse_args()
    seeds = [options.seed] if options.seed is not None else range(options.first, options.first + options.seeds)
    total: Counter[str] = Counter()
    began = time.monotonic()
    violations = 0
    for done, seed in enumerate(seeds, 1):
        if done % 1000 == 0:
            print(f"… {done} seeds, {violations} violations", flush=True)
        try:
            total += simulate(seed)
        except (Violation, AtlasError) as error:
            violations += 1
            print(f"seed {seed}: {type(error).__name__}: {error}", flush=True)
    seconds = time.monotonic() - began
    print(f"{len(seeds)} seeds, {violations} violations, {seconds:.1f} s ({1000 * seconds / len(seeds):.1f} ms a seed)")
    print(", ".join(f"{kind}: {count}" for kind, count in sorted(total.items())))
    return 1 if violations else 0


if __name__ == "__main__":
    sys.exit(main())

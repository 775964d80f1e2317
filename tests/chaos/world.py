"""A world in which one random seed decides everything: who runs next, what the network does, who dies.

Actors (coordinators, trainers, people) are fibers that hand one baton around, so the *real*, ordinary, blocking code runs
unchanged, yet exactly one actor runs at a time and every interleaving is a function of the seed. Each store operation is a place
where the baton may move, the actor may be killed (before or after the operation took effect) or put to sleep for a while.
"""

from __future__ import annotations

import contextlib
import random
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from atlas_dist.errors import AlreadyExists, MissingObject, PreconditionFailed, StoreError, UnknownOutcome
from atlas_dist.store.objects import ObjectInfo
from tests.chaos.checker import Checker
from tests.chaos.fibers import Fiber


class Crash(BaseException):
    """This actor was killed. Not an Exception: no handler of the protocol may swallow it."""


@dataclass(frozen=True)
class Weather:
    """How bad a seed is."""

    lost: float = 0.0
    """Requests that never arrive."""
    unanswered: float = 0.0
    """Requests that are applied, but whose answer is lost."""
    late: float = 0.0
    """Requests that are applied much later, after their sender has given up on them."""
    doubled: float = 0.0
    """Requests that are applied now and, by some stuttering proxy, once more much later."""
    unreadable: float = 0.0
    damaged: float = 0.0
    """Files of attempts, and packs of entries, that are stored with a flipped bit."""
    killed: float = 0.0
    stopped: float = 0.0
    """SIGSTOP for a while, longer than anybody's patience."""


class Actor:
    """One process or thread of the world."""

    def __init__(self, world: World, name: str, body: Callable[[Actor], None], killable: bool) -> None:
        self.world = world
        self.name = name
        self.killable = killable
        self.killed = False
        self.done = False
        self.wake_at = world.now
        self.fiber = Fiber(lambda: self._main(body), world.main)

    def _main(self, body: Callable[[Actor], None]) -> None:
        try:
            if not self.killed:
                body(self)
        except Crash:
            pass
        except BaseException as error:
            self.world.failure = error
        self.done = True
        self.fiber.end_in(self.world.successor())

    def wall(self) -> float:
        return self.world.now

    def monotonic(self) -> float:
        return self.world.now

    def sleep(self, seconds: float) -> None:
        self.wake_at = self.world.now + seconds
        self.give_way()

    def give_way(self) -> None:
        """Hand the baton on and wait until it comes back; often it comes back at once."""
        successor = self.world.successor()
        if successor is not self.fiber:
            self.fiber.pass_to(successor)
        if self.killed:
            raise Crash(self.name)

    def step(self) -> None:
        """A place where anything may happen to this actor."""
        world = self.world
        if self.killed:
            raise Crash(self.name)
        world.now += 0.02
        luck = world.rng.random()
        if world.stormy and self.killable:
            if luck < world.weather.killed:
                self.kill()
                raise Crash(self.name)
            if luck < world.weather.killed + world.weather.stopped:
                world.happened["stopped"] += 1
                return self.sleep(world.rng.uniform(5.0, 60.0))
        if luck > 0.7:
            self.give_way()
        return None

    def kill(self) -> None:
        self.killed = True
        self.world.happened["killed"] += 1


class World:
    """Objects, actors, weather and the checker that watches every change."""

    def __init__(self, seed: int, weather: Weather, storm_s: float, checker: Checker) -> None:
        self.rng = random.Random(seed)
        self.weather = weather
        self.storm_s = storm_s
        self.checker = checker
        self.now = 1000.0
        self.objects: dict[str, bytes] = {}
        self.versions: dict[str, int] = {}
        self.late: list[tuple[str, str, bytes]] = []
        self.actors: list[Actor] = []
        self.happened: Counter[str] = Counter()
        self.main = Fiber(None, None)
        self.failure: BaseException | None = None
        self.non_atomic = False
        self.until = float("inf")
        self.over = False

    @property
    def stormy(self) -> bool:
        """Faults stop after a while: then the run must complete."""
        return self.now < 1000.0 + self.storm_s

    def spawn(self, name: str, body: Callable[[Actor], None], *, killable: bool = True) -> Actor:
        actor = Actor(self, name, body, killable)
        self.actors.append(actor)
        return actor

    def run(self, *, until: float) -> None:
        """Let the baton go round until everybody is done, or time is up."""
        self.until = until
        successor = self.successor()
        if successor is not self.main:
            self.main.pass_to(successor)
        while self.late:
            self.apply(*self.late.pop(), tardy=True)

    def successor(self) -> Fiber:
        """Whoever holds the baton asks who is next; the main program when the play is over."""
        chosen = self._choose()
        return chosen.fiber if chosen is not None else self.main

    def _choose(self) -> Actor | None:
        if self.over:
            return None
        self.actors = [a for a in self.actors if not a.done]
        while self.failure is None and self.actors and self.now <= self.until:
            try:
                if self.late and (not self.stormy or self.rng.random() < 0.02):
                    self.apply(*self.late.pop(self.rng.randrange(len(self.late))), tardy=True)
            except BaseException as error:
                self.failure = error
                break
            ready = [a for a in self.actors if a.killed or a.wake_at <= self.now]
            if ready:
                return self.rng.choice(ready)
            self.now = min(a.wake_at for a in self.actors)
        self.over = True
        return None

    def end(self) -> None:
        """Let every actor end."""
        self.over = True
        for actor in self.actors:
            actor.killed = True
            while not actor.done:
                self.main.pass_to(actor.fiber)

    def apply(self, method: str, key: str, data: bytes, *, tardy: bool = False) -> None:
        """The operation takes effect. A tardy one has nobody left to hear about errors."""
        before = self.objects.get(key)
        if method == "create" and before is not None and not self.non_atomic:
            if tardy:
                return
            raise AlreadyExists(f"{key} exists.")
        if method == "delete":
            self.objects.pop(key, None)
        else:
            self.objects[key] = data
            self.versions[key] = self.versions.get(key, 0) + 1
        self.checker.changed(method, key, before, self.objects.get(key), self.objects)


class SimStore:
    """One actor's connection to the world's objects: an ObjectStore whose every call may go wrong."""

    def __init__(self, world: World, actor: Actor) -> None:
        self.world = world
        self.actor = actor

    @property
    def url(self) -> str:
        return "memory://world"

    def create(self, key: str, data: bytes) -> None:
        if self.world.non_atomic:
            self.actor.step()
            if key in self.world.objects:
                raise AlreadyExists(f"{key} exists.")
        self._write("create", key, data)

    def put(self, key: str, data: bytes) -> None:
        self._write("put", key, data)

    def put_file(self, key: str, path: Path) -> ObjectInfo:
        raise NotImplementedError

    def delete(self, key: str) -> None:
        self._write("delete", key, b"")

    def get(self, key: str, *, limit: int = 1 << 31) -> bytes:
        return self._read(key)

    def stat(self, key: str) -> ObjectInfo:
        data = self._read(key)
        return ObjectInfo(key, len(data), str(self.world.versions[key]))

    def read_range(self, key: str, start: int, out: memoryview, *, if_match: str = "") -> int:
        data = self._read(key)
        if if_match and str(self.world.versions[key]) != if_match:
            raise PreconditionFailed(f"{key} changed.")
        part = data[start : start + len(out)]
        if len(part) > 1 and self._luck("unreadable"):
            part = part[: len(part) // 2]
        out[: len(part)] = part
        return len(part)

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        self.actor.step()
        self._answer("unreadable")
        found = sorted(k for k in self.world.objects if k.startswith(prefix))
        return iter([ObjectInfo(k, len(self.world.objects[k]), str(self.world.versions[k])) for k in found])

    def _read(self, key: str) -> bytes:
        self.actor.step()
        self._answer("unreadable")
        if key not in self.world.objects:
            raise MissingObject(f"There is no {key}.")
        return self.world.objects[key]

    def _write(self, method: str, key: str, data: bytes) -> None:
        self.actor.step()
        if self._luck("lost"):
            raise UnknownOutcome(f"{method} {key}: no answer.")
        if self._luck("late"):
            self.world.late.append((method, key, data))
            raise UnknownOutcome(f"{method} {key}: no answer.")
        self.world.apply(method, key, self._stored(method, key, data))
        if self._luck("doubled"):
            self.world.late.append((method, key, data))
        if self._luck("unanswered"):
            raise UnknownOutcome(f"{method} {key}: no answer.")
        self.actor.step()

    def _stored(self, method: str, key: str, data: bytes) -> bytes:
        """What lands on the disk. On the wire uploads carry checksums that the server compares; a disk may still flip a bit."""
        hashed = "/attempts/" in key or "-packs/" in key
        if method != "put" or not hashed or not self._luck("damaged"):
            return data
        flipped = bytearray(data)
        flipped[self.world.rng.randrange(len(flipped))] ^= 1 << self.world.rng.randrange(8)
        return bytes(flipped)

    def _answer(self, kind: str) -> None:
        if self._luck(kind):
            raise StoreError("503 SlowDown")

    def _luck(self, kind: str) -> bool:
        hit = self.world.stormy and self.world.rng.random() < getattr(self.world.weather, kind)
        if hit:
            self.world.happened[kind] += 1
        return hit


@contextlib.contextmanager
def ended(world: World) -> Iterator[World]:
    """End the world's actors whatever happens."""
    try:
        yield world
    finally:
        world.end()

"""The judge: watches every change of the world's objects, and believes none of the code under test.

It parses the ledger's raw JSON itself. Each violation names the invariant that it breaks.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any


class Violation(AssertionError):
    """An invariant is broken."""


class RunView:
    """What the judge knows of one run's ledger."""

    def __init__(self) -> None:
        self.head = "0" * 64
        self.next = 0
        self.epoch = 0
        self.writer = ""
        self.commits: dict[str, dict[str, str]] = {}
        """job -> {blob key: sha256}"""
        self.dispatched: set[str] = set()
        self.voices: dict[int, str] = {}
        """epoch -> the process that spoke in it"""


class Checker:
    """All invariants that can be judged change by change, and those at the end."""

    def __init__(self) -> None:
        self.runs: dict[str, RunView] = {}
        self.frozen: dict[str, str] = {}
        """committed blob key -> sha256"""
        self.acknowledged: list[tuple[str, str, str]] = []
        self.adapters: dict[tuple[str, str], str] = {}

    def changed(self, method: str, key: str, before: bytes | None, after: bytes | None, objects: Mapping[str, bytes]) -> None:
        """One object was written or deleted."""
        parts = key.split("/")
        if parts[0] == "runs" and parts[2] == "ledger":
            if before is not None and before != after:
                raise Violation(f"ledger unchanged: {method} altered {key}")
            if before is None and after is not None:
                self._appended(parts[1], int(parts[3]), after, objects)
        if key in self.frozen and (after is None or hashlib.sha256(after).hexdigest() != self.frozen[key]):
            raise Violation(f"committed blobs present with their hash: {method} altered {key}")
        if parts[0] == "results":
            self._pointed(method, key, before, after)

    def _pointed(self, method: str, key: str, before: bytes | None, after: bytes | None) -> None:
        if after is None or (before is not None and before != after):
            raise Violation(f"facts never change: {method} altered {key}")
        pointer = json.loads(after)
        blobs = {f"{pointer['ref']['prefix']}/{b['name']}": b["sha256"] for b in pointer["ref"]["blobs"]}
        if pointer["run"] not in self.runs or self.runs[pointer["run"]].commits.get(pointer["ref"]["job"]) != blobs:
            raise Violation(f"a shared fact is a committed one: {key}")

    def _appended(self, run: str, seq: int, data: bytes, objects: Mapping[str, bytes]) -> None:
        view = self.runs.setdefault(run, RunView())
        entry: dict[str, Any] = json.loads(data)
        if seq != view.next:
            raise Violation(f"ledger gapless: entry {seq} written when {view.next} was next")
        if entry["prev"] != view.head or entry["seq"] != seq:
            raise Violation(f"ledger chained: entry {seq} does not follow entry {seq - 1}")
        if entry["type"] == "elect":
            if entry["epoch"] != view.epoch + 1:
                raise Violation(f"one leader an epoch: epoch {entry['epoch']} elected after {view.epoch}")
            view.epoch, view.writer = entry["epoch"], entry["writer"]
        elif entry["type"] != "begin" and (entry["epoch"], entry["writer"]) != (view.epoch, view.writer):
            raise Violation(f"a deposed leader is silent: entry {seq} of {entry['writer']} (epoch {entry['epoch']})")
        view.next, view.head = seq + 1, hashlib.sha256(data).hexdigest()
        body = entry["body"]
        if entry["type"] == "dispatch":
            if body["attempt"] in view.dispatched:
                raise Violation(f"one dispatch an attempt: {body['attempt']}")
            view.dispatched.add(body["attempt"])
        if entry["type"] in ("commit", "adopt"):
            self._committed(run, view, body, objects)

    def _committed(self, run: str, view: RunView, body: dict[str, Any], objects: Mapping[str, bytes]) -> None:
        if body["job"] in view.commits:
            raise Violation(f"at most one commit a job: {body['job']}")
        blobs = {f"{body['prefix']}/{b['name']}": b["sha256"] for b in body["blobs"]}
        if not blobs:
            raise Violation(f"a commit names its files: {body['job']}")
        for key, digest in blobs.items():
            if key not in objects or hashlib.sha256(objects[key]).hexdigest() != digest:
                raise Violation(f"committed blobs present with their hash: {key} at its commit")
        view.commits[body["job"]] = blobs
        self.frozen.update(blobs)

    def heard(self, actor: str, run: str, event: str, fields: Mapping[str, Any]) -> None:
        """What a coordinator says aloud: a commit that it acknowledges is a promise."""
        if event in ("commit", "adopt"):
            self.acknowledged.append((run, fields["job"], actor))
        epoch = fields.get("epoch", 0)
        if epoch:
            first = self.runs[run].voices.setdefault(epoch, actor)
            if first != actor:
                raise Violation(f"one voice an epoch: {event} by {actor} in epoch {epoch} of {first}")

    def used(self, run: str, job: str, digest: str) -> None:
        """A trainer read an earlier adapter: the same bytes as everybody who ever read it in this run."""
        if self.adapters.setdefault((run, job), digest) != digest:
            raise Violation(f"earlier adapters bit-identical: {job} in {run}")

    def finished(self, objects: Mapping[str, bytes], runs: Mapping[str, int]) -> None:
        """The end: promises kept, everything complete. `runs`: run -> jobs that it has."""
        for run, job, actor in self.acknowledged:
            if job not in self.runs[run].commits:
                raise Violation(f"acknowledged commits survive: {job} of {run}, promised by {actor}")
        for key, digest in self.frozen.items():
            if key not in objects or hashlib.sha256(objects[key]).hexdigest() != digest:
                raise Violation(f"committed blobs present with their hash: {key} at the end")
        for run, jobs in runs.items():
            done = len(self.runs[run].commits) if run in self.runs else 0
            if done != jobs:
                raise Violation(f"completes once faults stop: {run} has {done} of {jobs} jobs")

"""The roles may do all that a run asks of its store, need every statement they have, and can't do what would lose a run."""

from __future__ import annotations

import copy
import functools
import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from atlas_dist.coordinator.coordinator import Coordinator
from atlas_dist.coordinator.preflight_cluster import token
from atlas_dist.core.attempts import Assignment, Failure, FailureKind
from atlas_dist.data.manifest import read_manifest
from atlas_dist.data.pack import run_pack
from atlas_dist.report.forecast import keep
from atlas_dist.report.outlook import Outlook
from atlas_dist.runs.requests import RequestKind, ask
from atlas_dist.store.artifacts import fetch_checkpoint, save_checkpoint
from atlas_dist.store.attempt_logs import driver_log, kept_log, rank_log
from atlas_dist.store.doctor import examine
from atlas_dist.store.objects import MemoryStore
from tests.chaos.fakes import FakeClock, FakeDispatcher, counted_ids
from tests.chaos.plans import small_plan
from tests.unit.cluster.iam import RecordingStore, Request, allowed

FOLDER = Path(__file__).parents[3] / "cluster/iam"
COORDINATOR, WORKER, PACKER = "atlas-dist-coordinator", "atlas-dist-worker", "atlas-dist-packer"
ENTRY, RESULT = "atlas/runs/r/ledger/0000000000000001", "atlas/results/0123"
ADMIN = {"Statement": [{"Effect": "Allow", "Action": "s3:*", "Resource": "*"}]}


def policy(name: str) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((FOLDER / f"{name}-policy.json").read_text())
    return loaded


POLICIES = {role: policy(role.removeprefix("atlas-dist-")) for role in (COORDINATOR, WORKER, PACKER)}
BUCKET_POLICY = policy("bucket")


def may(
    role: str, action: str, key: str, *, create: bool = False, secure: bool = True, identity: dict[str, Any] | None = None
) -> bool:
    request = Request(f"s3:{action}", key, create=create)
    return allowed(request, role, identity or POLICIES[role], BUCKET_POLICY, secure=secure)


@functools.cache
def asked() -> dict[str, frozenset[Request]]:
    """What each role asked of the bucket in a run with a preemption, a resume, a pause, a long ledger and a preflight."""
    shared, data = MemoryStore("runs"), MemoryStore("shards")
    head, worker = RecordingStore(shared, "atlas/"), RecordingStore(shared, "atlas/")
    packing, reading = RecordingStore(data, "shards/"), RecordingStore(data, "shards/")
    run_pack("toy", None, packing, "toy_kin", "train", options={"task": "kin", "samples": 8, "side": 32}, image_size=64)
    for reader in (head, worker):
        reading.requests = {Request("s3:ListBucket", prefix="shards/")}
        read_manifest(reading, "toy_kin", "train")
        reader.requests |= reading.requests

    def outcome(assignment: Assignment) -> Failure | None:
        if assignment.resume_from:
            with TemporaryDirectory() as folder:
                fetch_checkpoint(worker, assignment.resume_from, assignment.resume_digest, Path(folder))
        if not assignment.attempt.endswith("-1"):
            return None
        save_checkpoint(worker, assignment.prefix, 2, {"state": b"x"})
        with kept_log(worker, rank_log("r", assignment.attempt, 0), lambda: "the node went away", 1e3, quiet=False):
            pass
        return Failure(FailureKind.PREEMPTED, "the node went away", 2)

    examine(head, new_id=lambda: "d", writers=2, keys=2)
    with token(head) as seen:
        worker.stat(seen)
    keep(head, "r", Outlook({}))
    with kept_log(head, driver_log("r", "20261129T000000Z-h-1"), lambda: "run r", 1e3, quiet=False):
        pass
    clock = FakeClock()
    ask(head, "r", RequestKind.RESUME, "asked", clock=clock, new_id=counted_ids("ask"))
    coordinator = Coordinator(
        "r",
        small_plan(16),
        head,
        FakeDispatcher(worker, outcome=outcome),
        ids=counted_ids("c"),
        clock=clock,
        log_sink=lambda *_: None,
    )
    status = coordinator.open()
    for _ in range(2000):
        if status.done:
            break
        status = coordinator.tick()
        clock.sleep(1.0)
    coordinator.close()
    assert status.done
    assert not status.error()
    return {COORDINATOR: frozenset(head.requests), WORKER: frozenset(worker.requests), PACKER: frozenset(packing.requests)}


@pytest.mark.parametrize("role", POLICIES)
def test_a_role_may_do_all_that_a_run_asks(role: str) -> None:
    refused = [r for r in asked()[role] if not allowed(r, role, POLICIES[role], BUCKET_POLICY)]
    assert not refused, refused[:5]


def grants(role: str) -> list[tuple[int, str, str]]:
    """Every (statement, field, value) that a role's policy could do without, were it not needed."""
    found = []
    for number, statement in enumerate(POLICIES[role]["Statement"]):
        for name in ("Action", "Resource"):
            values = statement[name] if isinstance(statement[name], list) else [statement[name]]
            found += [(number, name, value) for value in values]
    return found


@pytest.mark.parametrize("role", POLICIES)
def test_a_role_needs_everything_it_has(role: str) -> None:
    for number, name, value in grants(role):
        less = copy.deepcopy(POLICIES[role])
        values = less["Statement"][number][name]
        less["Statement"][number][name] = [v for v in (values if isinstance(values, list) else [values]) if v != value]
        refused = [r for r in asked()[role] if not allowed(r, role, less, BUCKET_POLICY)]
        assert refused, f"{less['Statement'][number]['Sid']}: nothing that a run asks needs {value}"


def test_a_worker_cannot_touch_the_ledger() -> None:
    for key in (ENTRY, RESULT, "atlas/runs/r/ledger-packs/0000000000000000", "atlas/runs/r/beat/1", "atlas/runs/r/inbox/x"):
        assert not may(WORKER, "PutObject", key)
        assert not may(WORKER, "PutObject", key, create=True)
        assert not may(WORKER, "DeleteObject", key)


def test_a_worker_cannot_delete_anything() -> None:
    assert not may(WORKER, "DeleteObject", "atlas/runs/r/attempts/a/adapter.safetensors")
    assert not may(WORKER, "DeleteObject", "shards/d/train/000000.tar")


@pytest.mark.parametrize("key", [ENTRY, RESULT])
def test_facts_are_created_once_and_never_deleted(key: str) -> None:
    assert may(COORDINATOR, "PutObject", key, create=True)
    assert not may(COORDINATOR, "PutObject", key)
    assert not may(COORDINATOR, "DeleteObject", key)
    assert not may("somebody-with-every-right", "PutObject", key, identity=ADMIN)
    assert not may("somebody-with-every-right", "DeleteObject", key, identity=ADMIN)
    assert not may("somebody-with-every-right", "DeleteObjectVersion", key, identity=ADMIN)
    assert may("atlas-dist-break-glass", "DeleteObject", key, identity=ADMIN)


def test_a_result_and_a_done_file_are_created_once() -> None:
    for name in ("RESULT", "checkpoints/00000002/DONE"):
        assert may(WORKER, "PutObject", f"atlas/runs/r/attempts/a/{name}", create=True)
        assert not may(WORKER, "PutObject", f"atlas/runs/r/attempts/a/{name}")


def test_nothing_goes_over_a_plain_connection() -> None:
    assert may(COORDINATOR, "GetObject", ENTRY)
    assert not may(COORDINATOR, "GetObject", ENTRY, secure=False)


@pytest.mark.parametrize("role", [COORDINATOR, WORKER])
def test_a_missing_key_is_missing_and_not_forbidden(role: str) -> None:
    """A coordinator asks for objects that are not there yet, a worker for shards that somebody has deleted: 404 is an answer, 403
    looks like wrong credentials."""
    assert Request("s3:ListBucket") in asked()[COORDINATOR]
    assert allowed(Request("s3:ListBucket"), role, POLICIES[role], BUCKET_POLICY)
    narrow = copy.deepcopy(POLICIES[role])
    condition = narrow["Statement"][0]["Condition"]
    condition["StringLike"] = condition.pop("StringLikeIfExists")
    assert not allowed(Request("s3:ListBucket"), role, narrow, BUCKET_POLICY)
    assert not allowed(Request("s3:ListBucket", prefix="payroll/"), role, POLICIES[role], BUCKET_POLICY)


def test_logs_of_drivers_are_not_the_workers_and_expire() -> None:
    assert not may(COORDINATOR, "PutObject", "atlas/logs/r/a1/rank-0000.log")
    rules = json.loads((FOLDER / "lifecycle.json").read_text())["Rules"]
    assert [r["Filter"]["Prefix"] for r in rules if "Expiration" in r] == ["atlas/logs/"], "nothing else is ever deleted by age"


def test_nobody_reads_what_is_not_atlas_dists() -> None:
    for role in POLICIES:
        assert not may(role, "GetObject", "payroll/2026.csv")


@pytest.mark.parametrize("sid", [s["Sid"] for s in BUCKET_POLICY["Statement"]])
def test_the_checks_notice_a_bucket_policy_that_lacks_a_statement(sid: str) -> None:
    """The role's own policy already forbids what WorkersDoNotTouchTheLedger does: that one is for the day somebody widens it."""
    less = {"Statement": [s for s in BUCKET_POLICY["Statement"] if s["Sid"] != sid]}
    probes = {
        "FactsAreNeverDeleted": (Request("s3:DeleteObject", ENTRY), "anybody", True),
        "FactsAreCreatedOnce": (Request("s3:PutObject", ENTRY), "anybody", True),
        "WorkersDoNotTouchTheLedger": (Request("s3:PutObject", ENTRY, create=True), WORKER, True),
        "OnlyEncryptedConnections": (Request("s3:GetObject", ENTRY), "anybody", False),
    }
    request, role, secure = probes[sid]
    assert not allowed(request, role, ADMIN, BUCKET_POLICY, secure=secure)
    assert allowed(request, role, ADMIN, less, secure=secure)

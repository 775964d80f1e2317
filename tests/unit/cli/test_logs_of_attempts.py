"""`atlas-dist logs --attempt` and `--driver`: what processes said that are gone with their pods."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from atlas_dist.app import driver_log as kept
from atlas_dist.compose import compose_config
from atlas_dist.core.attempts import Assignment, FailureKind
from atlas_dist.errors import DataError
from atlas_dist.logs import LogFormat, set_up
from atlas_dist.output_tail import STDOUT, OutputTail
from atlas_dist.store.attempt_logs import driver_log, names, rank_log
from atlas_dist.store.local import LocalStore
from atlas_dist.store.objects import MemoryStore
from tests.kits.bank import copied, toys
from tests.kits.shell import Shell
from tests.kits.stage import Bench, pack_toys, toy_config


@pytest.fixture
def run(tmp_path: Path) -> Iterator[tuple[str, ...]]:
    """A learnt run with the logs of an attempt that is gone, and of two drivers."""
    words = copied(toys(), tmp_path)
    store = LocalStore(tmp_path / "toys/store")
    for info in list(store.list("logs/")):
        store.delete(info.key)
    store.put(rank_log("toy", "e9a7-e1-1", 0), b"begins\nends without a result: CUDA out of memory\n")
    store.put(rank_log("toy", "e9a7-e1-1", 1), b"another worker of the group went away\n")
    store.put(driver_log("toy", "20261129T000000Z-h-1"), b"ConfigError: no GPU\n")
    store.put(driver_log("toy", "20261129T010000Z-h-1"), b"dispatch\nfail\n")
    yield words


def test_an_attempt_is_found_by_the_beginning_of_its_id(run: tuple[str, ...], shell: Shell) -> None:
    code, text = shell("logs", "--attempt", "e9a7", *run)
    assert code == 0
    assert text.splitlines() == [
        "== e9a7-e1-1 rank-0000",
        "begins",
        "ends without a result: CUDA out of memory",
        "== e9a7-e1-1 rank-0001",
        "another worker of the group went away",
    ]
    assert "begins" not in shell("logs", "--attempt", "e9a7", "-n", "1", *run)[1]


def test_programs_get_an_object_a_process(run: tuple[str, ...], shell: Shell) -> None:
    first, second = (json.loads(line) for line in shell("logs", "--driver", "--json", *run)[1].splitlines())
    assert (first["name"], first["lines"]) == ("20261129T000000Z-h-1", ["ConfigError: no GPU"])
    assert second["lines"] == ["dispatch", "fail"]


def test_an_attempt_that_nobody_knows_is_refused_with_those_that_are_there(run: tuple[str, ...], shell: Shell) -> None:
    code, text = shell("logs", "--attempt", "ffff", *run)
    assert code == 2
    assert "no log of ffff" in text
    assert "e9a7-e1-1" in text


def test_an_attempt_is_found_by_a_word_of_its_jobs_label(shell: Shell, tmp_path: Path) -> None:
    words = copied(toys(), tmp_path)
    ref = next(ref for ref in toys().bench.done.values() if toys().bench.plan.jobs[ref.job].label.endswith("toy_pair stage2"))
    store = LocalStore(tmp_path / "toys/store")
    for info in list(store.list("logs/")):  # the bench's own, where an earlier test has set up logging
        store.delete(info.key)
    store.put(rank_log("toy", ref.attempt, 0), b"is done and published\n")
    code, text = shell("logs", "--attempt", "toy_pair", *words)
    assert code == 0, text
    head, *lines = text.splitlines()
    assert head.startswith(f"== {ref.attempt} ")
    assert head.endswith("toy_pair stage2 rank-0000")
    assert lines == ["is done and published"]


@pytest.fixture
def worker_logs() -> Iterator[None]:
    """This process logs as a worker does: to its standard error, which pytest has put into a file."""
    handlers = list(logging.root.handlers)
    set_up(LogFormat.TEXT, process="worker")
    yield
    logging.root.handlers[:] = handlers


def test_the_ledger_names_the_attempt_of_a_failure(tmp_path: Path) -> None:
    from atlas_dist.cli.logs import line
    from atlas_dist.core.ledger import Entry
    from atlas_dist.core.records import Fail

    entry = Entry(seq=1, epoch=1, at=0.0, writer="w", nonce="n", prev="", record=Fail("j", "j-e1-1", FailureKind.POISON, "x", 3))
    assert "attempt j-e1-1" in line(entry, {})


@pytest.mark.usefixtures("worker_logs")
def test_a_failed_attempt_leaves_its_last_words(tmp_path: Path) -> None:
    """Also in the place where `bank gc` and the leader delete what an attempt has written."""
    config = toy_config(tmp_path)
    pack_toys(config, samples=32)
    bench = Bench(config)
    job = next(iter(bench.plan.jobs.values()))
    assignment: Assignment = bench.assignment(job)

    def fails(_progress: object) -> bool:
        raise DataError("the shard is damaged")

    outcome = bench.run(assignment, fails)
    assert outcome.failure is not None
    kept_log = bench.context.store.get(rank_log(config.run, assignment.attempt, 0)).decode()
    assert "ends without a result: DataError: the shard is damaged" in kept_log


# ------------------------------------------------------------------------------------------------------------------ drivers


def test_a_driver_on_a_cluster_keeps_its_output_and_its_error(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    config = compose_config(["experiment=toy", f"store.url={tmp_path}", "cluster=ray"])
    assert OutputTail(STDOUT).from_file, "pytest puts a file there, as Ray's job server does"
    with pytest.raises(DataError), kept.kept_driver_log(config):
        os.write(1, b"run toy: 14 jobs\n")
        raise DataError("no shards", fix="Pack them.")
    store = LocalStore(tmp_path)
    ((owner, name),) = names(store, "toy")
    assert owner == "driver"
    assert store.get(driver_log("toy", name)) == b"run toy: 14 jobs\nDataError: no shards Pack them.\n"


def test_a_driver_on_this_machine_keeps_nothing(tmp_path: Path) -> None:
    with kept.kept_driver_log(compose_config(["experiment=toy", f"store.url={tmp_path}"])):
        pass
    assert names(LocalStore(tmp_path), "toy") == []
    assert names(MemoryStore(), "toy") == []

"""The main job as a user runs it: Ray, two DeepSpeed workers, shards, ledger and bank; through S3, through Ctrl-C and kill -9.

Invariants defended here: a run completes once faults stop; what is committed is trained once; the bank an interrupted run leaves
is bit for bit the bank of an undisturbed one; old tasks' predictions never change.
"""

from __future__ import annotations

import os
import pty
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from atlas_dist.app.child import Part, kill
from atlas_dist.core.records import Commit, Dispatch, Fail
from tests.kits.run import TIMEOUT_S, Left, Running, left_by
from tests.kits.servers import CREDENTIALS, SECRET, credentials, moto
from tests.kits.stage import RELEASED, pack_toys, toy_config

pytestmark = [pytest.mark.ray, pytest.mark.timeout(7200)]

SHORT = [
    "experiment=toy",
    RELEASED,
    "sequence.upstream=[toy_shape,toy_kin]",
    "train.budget.max_steps=12",
    "train.checkpoint_every=2",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("run")
    pack_toys(toy_config(path), samples=96)
    return path


def words(folder: Path, store: str, *more: str) -> list[str]:
    return [*SHORT, f"store.url={folder}/{store}", f"shards.url={folder}/shards", f"report={folder}/report-{store}", *more]


@pytest.fixture(scope="module")
def undisturbed(folder: Path) -> Left:
    """One run that nothing happens to, started by the demo's own command line."""
    mine = words(folder, "undisturbed")
    run = Running(mine, folder / "undisturbed.txt")
    run.ends_with(0)
    assert "bitwise equal after every later task" in run.text()
    assert re.search(r"wall \d+ s, \d+% of it training steps", run.text())
    assert (folder / "report-undisturbed/index.html").exists()
    return left_by(mine)


def test_a_run_ends_with_every_job_committed_once(undisturbed: Left) -> None:
    committed = [e.record.job for e in undisturbed.entries if isinstance(e.record, Commit)]
    assert sorted(committed) == sorted(undisturbed.plan.jobs)
    assert not [e for e in undisturbed.entries if isinstance(e.record, Fail)]


def test_old_predictions_are_bitwise_equal_after_every_later_task(undisturbed: Left) -> None:
    (sequence,) = undisturbed.facts.sequences
    assert len(sequence.fingerprints["toy_shape"]) == 2
    assert sequence.changed_predictions() == []
    assert sequence.complete


def test_two_workers_did_it_below_two_gigabytes(undisturbed: Left) -> None:
    trained = [undisturbed.state.job(k).committed for k, j in undisturbed.plan.jobs.items() if j.stage]
    assert {ref.metrics["world"] for ref in trained if ref} == {2}
    assert max(ref.metrics["peak_rss_mb"] for ref in trained if ref) < 2000


def test_the_same_command_again_does_nothing_twice(folder: Path, undisturbed: Left) -> None:
    again = Running(words(folder, "undisturbed"), folder / "again.txt")
    again.ends_with(0)
    assert "complete; nothing to do" in again.text()
    assert left_by(words(folder, "undisturbed")).entries == undisturbed.entries


def test_another_run_takes_over_what_is_known(folder: Path, undisturbed: Left) -> None:
    other = words(folder, "undisturbed", "run=other")
    run = Running(other, folder / "other.txt")
    run.ends_with(0)
    assert " 0% of it training steps" in run.text(), "what another run has trained is not this one's time"
    left = left_by(other)
    assert not [e for e in left.entries if isinstance(e.record, Dispatch)], "every result was there: nothing is trained"
    assert left.hashes() == undisturbed.hashes()


def test_the_same_name_with_other_settings_is_refused(folder: Path, undisturbed: Left) -> None:
    run = Running(words(folder, "undisturbed", "train.budget.lr=0.1"), folder / "refused.txt")
    run.ends_with(2)
    assert "means something else" in run.text()
    assert "train.budget.lr: 0.0005 -> 0.1" in run.text()


def test_ctrl_c_and_kill_9_of_a_worker_leave_the_same_bank(folder: Path, undisturbed: Left) -> None:
    mine = words(folder, "disturbed")
    first = Running(mine, folder / "first.txt")
    first.wait_for("dispatch order0-seed0/2 toy_kin stage1")
    first.interrupt()
    first.ends_with(8)
    assert "The same command goes on from there" in first.text()

    second = Running(mine, folder / "second.txt")
    second.wait_for("dispatch order0-seed0/2 toy_kin")
    kill(second.parts(Part.WORKER)[-1])
    second.ends_with(0)

    left = left_by(mine)
    assert left.hashes() == undisturbed.hashes()
    commits = [e.record.job for e in left.entries if isinstance(e.record, Commit)]
    assert sorted(commits) == sorted(left.plan.jobs), "at most one commit a job, and all of them"


def to_the_driver(run: Running, number: signal.Signals) -> None:
    os.kill(run.process.pid, number)


def to_its_group(run: Running, number: signal.Signals) -> None:
    os.killpg(run.process.pid, number)


@pytest.mark.slow
@pytest.mark.parametrize("send", [to_the_driver, to_its_group])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT])
def test_a_signal_stops_in_order_and_the_next_run_ends_with_the_same_bank(
    folder: Path, undisturbed: Left, number: signal.Signals, send: Callable[[Running, signal.Signals], None]
) -> None:
    """Also when Ray's processes are told with the whole group: it is the driver that stops them."""
    mine = words(folder, f"{number.name}-{send.__name__}")
    first = Running(mine, folder / "signal.txt")
    first.wait_for("dispatch order0-seed0/2 toy_kin stage1")
    send(first, number)
    first.stops_alone_with(8)
    assert first.text().count("dispatch order0-seed0/2 toy_kin stage1") == 1, "no decision is told twice"
    Running(mine, folder / "again.txt").ends_with(0)
    assert left_by(mine).hashes() == undisturbed.hashes()


@pytest.mark.slow
def test_a_closed_terminal_stops_in_order(folder: Path, undisturbed: Left) -> None:
    mine = words(folder, "terminal")
    seen = folder / "terminal.txt"
    pid, terminal = pty.fork()
    if not pid:
        os.execv(sys.executable, [sys.executable, "-m", "atlas_dist", "run", *mine])
    with seen.open("wb") as file:
        until = time.monotonic() + TIMEOUT_S
        while b"dispatch order0-seed0/2 toy_kin stage1" not in seen.read_bytes():
            assert time.monotonic() < until, seen.read_bytes()[-2000:]
            file.write(os.read(terminal, 1 << 16))
            file.flush()
    os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 8
    Running(mine, folder / "again.txt").ends_with(0)
    assert left_by(mine).hashes() == undisturbed.hashes()


@pytest.mark.slow
def test_a_minute_of_sigstop_changes_nothing(folder: Path, undisturbed: Left) -> None:
    mine = words(folder, "sleeping")
    run = Running(mine, folder / "sleeping.txt")
    run.wait_for("dispatch order0-seed0/2 toy_kin stage1")
    to_the_driver(run, signal.SIGSTOP)
    time.sleep(60)
    to_the_driver(run, signal.SIGCONT)
    run.ends_with(0)
    assert left_by(mine).hashes() == undisturbed.hashes()


@pytest.mark.slow
def test_below_a_long_tmpdir_a_run_runs(folder: Path, undisturbed: Left) -> None:
    long = folder / ("very-long-folder-name-" * 5)
    long.mkdir()
    mine = words(folder, "long")
    Running(mine, folder / "long.txt", env={"TMPDIR": str(long)}).ends_with(0)
    assert left_by(mine).hashes() == undisturbed.hashes()


@pytest.mark.slow
def test_a_run_on_a_terminal_that_is_not_utf8_ends_well(folder: Path, undisturbed: Left) -> None:
    mine = words(folder, "latin")
    run = Running(mine, folder / "latin.txt", env={"PYTHONIOENCODING": "latin-1"})
    run.ends_with(0)
    assert "mean alpha of each adapter" in run.text()


def test_two_pools_work_at_the_same_time_and_learn_the_same(folder: Path, undisturbed: Left) -> None:
    mine = words(folder, "two-pools", "cluster.pools=2")
    Running(mine, folder / "two-pools.txt").ends_with(0)
    left = left_by(mine)
    assert left.hashes() == undisturbed.hashes()
    running, most = set[str](), 0
    for entry in left.entries:
        if isinstance(entry.record, Dispatch):
            running.add(entry.record.job)
        elif isinstance(entry.record, Commit):
            running.discard(entry.record.job)
        most = max(most, len(running))
    assert most == 2, "an evaluation or transfer runs beside the chain"


@pytest.mark.slow
@pytest.mark.parametrize("part", list(Part))
def test_kill_9_of_any_part_leaves_the_same_bank(folder: Path, undisturbed: Left, part: Part) -> None:
    mine = words(folder, f"without-{part.name.lower()}")
    first = Running(mine, folder / "killed.txt")
    first.wait_for("dispatch order0-seed0/2 toy_kin stage1")
    kill(first.parts(part)[0])
    if first.finish(TIMEOUT_S) != 0:
        assert part in (Part.DRIVER, Part.COORDINATOR), "everything else is started again by the run itself"
        assert part is Part.DRIVER or ("died" in first.text() and "should not have happened" not in first.text())
        second = Running(mine, folder / "again-after-kill.txt")
        second.ends_with(0)
    assert left_by(mine).hashes() == undisturbed.hashes()


@pytest.mark.slow
def test_a_fresh_trainer_for_every_job_learns_the_same(folder: Path, undisturbed: Left) -> None:
    mine = words(folder, "apart", "train.isolation=per_job", "sequence.upstream=[toy_shape]", "sequence.downstream=[]")
    Running(mine, folder / "apart.txt").ends_with(0)
    apart = left_by(mine).hashes()
    assert apart == {key: undisturbed.hashes()[key] for key in apart}
    assert len(apart) == 2


@pytest.fixture(scope="module")
def s3(folder: Path) -> Iterator[list[str]]:
    with credentials(), moto() as server:
        places = [f"store.url={server.url('store')}", f"shards.url={server.url('shards')}"]
        places += [f"{part}.endpoint_url={server.endpoint}" for part in ("store", "shards")]
        places += [f"{part}.region=us-east-1" for part in ("store", "shards")]
        pack_toys(toy_config(folder, *places), samples=96)
        yield places


def test_the_same_run_goes_through_s3(folder: Path, s3: list[str], undisturbed: Left) -> None:
    mine = [*SHORT, *s3, f"report={folder}/report-s3"]
    run = Running(mine, folder / "s3.txt", env=CREDENTIALS)
    run.ends_with(0)
    assert left_by(mine).hashes() == undisturbed.hashes(), "where things lie changes nothing that is learnt"
    written = [run.text().encode(), *(p.read_bytes() for p in (folder / "report-s3").rglob("*") if p.is_file())]
    assert not [text for text in written if SECRET.encode() in text], "neither what is printed nor the report tells the secret"


@pytest.mark.parametrize(
    ("word", "code", "cause"),
    [
        ("train.workrs=3", 2, "did you mean workers"),
        ("shards.url=/nowhere", 3, "not packed"),
        ("backbone.name=bert", 2, "Unknown backbone 'bert'"),
        ("store.url=gs://bucket", 2, "Unknown store URL"),
        ("cluster.gpus_per_worker=1", 2, "2 workers need 2 GPU, the cluster has 0"),
    ],
)
def test_a_wrong_option_ends_in_a_few_lines(folder: Path, word: str, code: int, cause: str) -> None:
    run = Running(words(folder, "wrong", word), folder / "wrong.txt")
    run.ends_with(code)
    assert cause in run.text()
    assert "Traceback" not in run.text()
    assert len(run.text().splitlines()) < 10

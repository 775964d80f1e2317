"""What the processes of an attempt said is in the store after they are gone: also of one that was killed, of a library that
writes without Python's logging, and of an attempt whose own files were deleted; and a store in trouble harms nobody."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from atlas_dist.errors import StoreError
from atlas_dist.logs import LogFormat, set_up
from atlas_dist.output_tail import LEFT_OUT, OutputTail
from atlas_dist.store.attempt_logs import TailKeeper, driver_log, kept_log, names, rank_log, read_tails
from atlas_dist.store.objects import MemoryStore

KEY = rank_log("r", "a1", 3)
NEVER_S = 1000.0


def test_keys_lie_outside_the_attempts_own_prefix() -> None:
    """What is below `runs/r/attempts/a1/` is deleted when the attempt is given up."""
    assert (KEY, driver_log("r", "20261129T000000Z-h-1")) == ("logs/r/a1/rank-0003.log", "logs/r/driver/20261129T000000Z-h-1.log")


def test_the_last_word_is_kept_when_the_block_raises() -> None:
    store, said = MemoryStore(), ["begins\n"]
    with pytest.raises(ValueError, match="boom"), kept_log(store, KEY, lambda: "".join(said), NEVER_S, quiet=True):
        said.append("CUDA error\n")
        raise ValueError("boom")
    assert store.get(KEY) == b"begins\nCUDA error\n"


@pytest.mark.parametrize("quiet", [True, False])
def test_of_many_ranks_that_end_well_one_tells(quiet: bool) -> None:
    store = MemoryStore()
    with kept_log(store, KEY, lambda: "fine\n", NEVER_S, quiet=quiet):
        pass
    assert names(store, "r") == ([] if quiet else [("a1", "rank-0003")])


def test_it_is_written_while_the_work_goes_on() -> None:
    """A process that is killed cannot write any more."""
    store, written = MemoryStore(), []

    class Noting(MemoryStore):
        def put(self, key: str, data: bytes) -> None:
            store.put(key, data)
            written.append(data)
            done.set()

    from threading import Event

    done = Event()
    keeper = TailKeeper(Noting(), KEY, lambda: "step 3\n", 0.01)
    assert done.wait(30.0)
    keeper.close(write=False)
    assert written == [b"step 3\n"], "what has not changed is not written again"


def test_a_store_in_trouble_is_passed_over_and_tried_again() -> None:
    class Broken(MemoryStore):
        broken = True

        def put(self, key: str, data: bytes) -> None:
            if self.broken:
                raise StoreError("503")
            super().put(key, data)

    store = Broken()
    keeper = TailKeeper(store, KEY, lambda: "x\n", NEVER_S)
    keeper.write()
    assert not keeper.wrote
    store.broken = False
    keeper.close(write=True)
    assert store.get(KEY) == b"x\n"


def test_tails_are_read_by_owner_and_name() -> None:
    store = MemoryStore()
    for key in (rank_log("r", "a2", 0), KEY, rank_log("other", "a1", 0), driver_log("r", "d")):
        store.put(key, key.encode())
    assert names(store, "r") == [("a1", "rank-0003"), ("a2", "rank-0000"), ("driver", "d")]
    (tail,) = read_tails(store, "r", [("a1", "rank-0003"), ("a9", "rank-0000")])
    assert (tail.owner, tail.name, tail.text) == ("a1", "rank-0003", KEY)


# --------------------------------------------------------------------------------------------------- what a process has said

CHILD = """
import os, sys
from atlas_dist.output_tail import OutputTail
os.write(2, b"before\\n")
with OutputTail(limit=int(sys.argv[1])) as tail:
    assert tail.from_file
    os.write(2, b"NCCL WARN from C++\\n")
    print("from Python", file=sys.stderr, flush=True)
    sys.stdout.write(tail.text())
"""


def said_by_a_child(folder: Path, limit: int) -> str:
    with (folder / "worker.err").open("ab") as err:
        environment = {**os.environ, "MY_SECRET_TOKEN": "from Python"}
        command = [sys.executable, "-c", CHILD, str(limit)]
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=err, env=environment, text=True, check=True)
    return done.stdout


def test_everything_that_went_to_the_file_counts_and_nothing_from_before(tmp_path: Path) -> None:
    (tmp_path / "worker.err").write_text("of another attempt\n")
    assert said_by_a_child(tmp_path, 1000) == "NCCL WARN from C++\n[redacted]\n"


def test_a_long_output_is_cut_at_a_line(tmp_path: Path) -> None:
    assert said_by_a_child(tmp_path, 20) == LEFT_OUT + "[redacted]\n"


def test_without_a_file_the_records_of_logging_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    read, write = os.pipe()
    handlers = list(logging.root.handlers)
    try:
        set_up(LogFormat.TEXT, run="r", process="worker", rank=1)
        with OutputTail(write, limit=400) as tail:
            assert not tail.from_file
            logging.getLogger("atlas_dist.train").info("step %d", 1)
            logging.getLogger("boto3").info("chatter")
            first = tail.text()
            for step in range(20):
                logging.getLogger("atlas_dist.train").info("step %d", step)
        assert "run=r process=worker rank=1" in first
        assert "step 1" in first
        assert "chatter" not in first
        assert tail.text().startswith(LEFT_OUT)
        assert len(tail.text()) < 600
    finally:
        logging.root.handlers[:] = handlers
        os.close(read)
        os.close(write)

"""`ray job submit` as a user types it, against a real cluster: `ray start --head` on loopback, and in namespaces of their own two
nodes with their own addresses.

Invariants defended here: the working directory that travels is enough to run; preflight refuses in words; `ray job stop` saves a
checkpoint and exits 8; submitting again resumes; what comes out is the bank of an undisturbed run, bit for bit, also when a node
is lost on the way.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from atlas_dist.core.records import Commit, Fail
from atlas_dist.store.attempt_logs import names, read_tails
from atlas_dist.store.local import LocalStore
from tests.kits.hosts import ip
from tests.kits.run import left_by
from tests.kits.stage import RELEASED, pack_toys, toy_config

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
TAG = "ATLAS_CLUSTER_TAG"
WAIT_S = 420.0
SHORT = [
    "experiment=toy",
    RELEASED,
    "sequence.upstream=[toy_shape,toy_kin]",
    "sequence.downstream=[]",
    "train.budget.max_steps=60",
]
SHORT += ["train.checkpoint_every=2", "train.log_every=1"]
pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(1500)]


ASK = """
import json, sys
from ray.job_submission import JobSubmissionClient
info = JobSubmissionClient(sys.argv[1]).get_job_info(sys.argv[2])
print(json.dumps({"status": info.status.value, "code": info.driver_exit_code}))
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class Cluster:
    """Nodes of Ray that this test started, and only those; found again by a tag in their environment."""

    folder: Path
    gcs: str
    dashboard: str
    inside: tuple[str, ...] = ()
    """What a command has to be prefixed with to run on the head's host."""
    more: dict[str, str] = field(default_factory=dict)
    """Further environment of its nodes."""
    tag: str = field(default_factory=lambda: uuid.uuid4().hex)
    token: str = field(default_factory=lambda: secrets.token_hex(32))

    @property
    def environment(self) -> dict[str, str]:
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "ATLAS_"))}
        ours = {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": self.token,
            "RAY_JOB_STOP_WAIT_TIME_S": "90",
            **self.more,
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
            "RAY_DISABLE_MEMORY_MONITOR": "1",
            "OMP_NUM_THREADS": "1",
            "DS_ACCELERATOR": "cpu",
            "PATH": f"{BIN}:{kept.get('PATH', '')}",
            TAG: self.tag,
        }
        return kept | ours

    def ray(self, *words: str, timeout: float = 240.0, inside: Sequence[str] | None = None, check: bool = True) -> str:
        """Run Ray's own command line; what it printed."""
        command = [*(self.inside if inside is None else inside), str(BIN / "ray"), *words]
        done = subprocess.run(
            command, cwd=ROOT, env=self.environment, capture_output=True, text=True, timeout=timeout, check=False
        )
        assert not check or done.returncode == 0, f"{' '.join(command)}:\n{done.stdout}\n{done.stderr}"
        return done.stdout + done.stderr

    def start(self, *words: str, inside: Sequence[str] | None = None) -> None:
        self.ray("start", "--object-store-memory=100000000", "--num-gpus=0", "--disable-usage-stats", *words, inside=inside)

    def submit(self, words: Sequence[str], **variables: str) -> str:
        """Hand a run in, without waiting, with variables of its own; its id."""
        name = f"run-{uuid.uuid4().hex[:8]}"
        job = ["job", "submit", "--address", self.dashboard, "--no-wait", "--submission-id", name, "--working-dir", "."]
        job += ["--runtime-env-json", json.dumps({"env_vars": variables})] if variables else []
        self.ray(*job, "--", "python", "-m", "atlas_dist", "run", *words)
        return name

    def logs(self, job: str) -> str:
        """What the driver has printed, from Ray's own file: asking with a command takes seconds in which a stage may end."""
        file = self.folder / f"session_latest/logs/job-driver-{job}.log"
        return file.read_text(errors="replace") if file.exists() else ""

    def state(self, job: str) -> dict[str, object]:
        """Ray's own record of the job."""
        command = [*self.inside, sys.executable, "-c", ASK, self.dashboard, job]
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=120, check=True)
        found: dict[str, object] = json.loads(done.stdout.splitlines()[-1])
        return found

    def wait_for(self, job: str, text: str) -> None:
        """Until the job's log holds `text`."""
        until = time.monotonic() + WAIT_S
        while text not in (log := self.logs(job)):
            assert "Fix" not in log, log
            assert time.monotonic() < until, f"no {text!r} in:\n{log}"
            time.sleep(0.2)

    def ended(self, job: str) -> dict[str, object]:
        """Wait for its end."""
        until = time.monotonic() + WAIT_S
        while (state := self.state(job))["status"] in ("PENDING", "RUNNING"):
            assert time.monotonic() < until, self.logs(job)
            time.sleep(1.0)
        return state

    def kill_driver(self, word: str) -> None:
        """SIGKILL to the one process that runs `atlas_dist run` with `word`."""
        commands: dict[int, list[str]] = {}
        for pid in self.family():
            with contextlib.suppress(OSError):  # it has just ended
                commands[pid] = Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")
        (driver,) = [pid for pid, command in commands.items() if "atlas_dist" in command and word in command]
        os.kill(driver, signal.SIGKILL)

    def family(self) -> list[int]:
        """Every process that carries the tag."""
        mark, found = f"{TAG}={self.tag}".encode(), []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and int(entry.name) != os.getpid():
                with contextlib.suppress(OSError):
                    if mark in (entry / "environ").read_bytes():
                        found.append(int(entry.name))
        return found

    def sweep(self) -> None:
        """End them all."""
        for pid in self.family():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("submit")
    pack_toys(toy_config(path), samples=96)
    return path


@pytest.fixture(scope="module")
def cluster(folder: Path) -> Iterator[Cluster]:
    """One node on loopback with three CPUs: two for workers, one to spare."""
    gcs, dashboard = free_port(), free_port()
    # Ray's sockets have short paths; its folder is not below pytest's.
    short = Path("/tmp") / f"atlas-{uuid.uuid4().hex[:6]}"
    made = Cluster(short, f"127.0.0.1:{gcs}", f"http://127.0.0.1:{dashboard}")
    try:
        made.start(
            "--head",
            "--node-ip-address=127.0.0.1",
            f"--port={gcs}",
            "--dashboard-host=127.0.0.1",
            f"--dashboard-port={dashboard}",
            f"--dashboard-agent-listen-port={free_port()}",
            f"--ray-client-server-port={free_port()}",
            "--num-cpus=3",
            f"--temp-dir={short}",
        )
        yield made
    finally:
        made.sweep()
        shutil.rmtree(short, ignore_errors=True)


def words(folder: Path, store: str, *more: str) -> list[str]:
    places = [f"store.url={folder}/{store}", f"shards.url={folder}/shards", f"report={folder}/report-{store}"]
    return [*SHORT, *places, "cluster=ray", "cluster.cpus_per_worker=1", "cluster.gpus_per_worker=0", "train.workers=2", *more]


@pytest.fixture(scope="module")
def undisturbed(folder: Path, cluster: Cluster) -> dict[str, dict[str, str]]:
    """The bank of a submitted run that nothing happens to."""
    mine = words(folder, "undisturbed")
    job = cluster.submit(mine)
    assert cluster.ended(job) == {"status": "SUCCEEDED", "code": 0}, cluster.logs(job)
    log = cluster.ray("job", "logs", "--address", cluster.dashboard, job)
    assert "dispatch order0-seed0/1 toy_shape stage2" in log
    assert "commit order0-seed0/2 toy_kin stage2" in log
    return left_by(mine).hashes()


def test_stop_pauses_and_submitting_again_resumes(folder: Path, cluster: Cluster, undisturbed: dict[str, dict[str, str]]) -> None:
    mine = words(folder, "stopped")
    first = cluster.submit(mine)
    cluster.wait_for(first, "dispatch order0-seed0/1 toy_shape stage2")
    cluster.ray("job", "stop", "--address", cluster.dashboard, first)
    assert cluster.ended(first)["status"] == "STOPPED"
    assert "The same command goes on from there" in cluster.logs(first), "it must have had the time to say so"
    before = left_by(mine)
    assert before.state.committed < len(before.plan.jobs)
    assert not before.state.running, "the ledger knows that the attempt ended"

    second = cluster.submit(mine)
    assert cluster.ended(second) == {"status": "SUCCEEDED", "code": 0}, cluster.logs(second)
    after = left_by(mine)
    assert after.hashes() == undisturbed
    commits = [e.record.job for e in after.entries if isinstance(e.record, Commit)]
    assert sorted(commits) == sorted(after.plan.jobs), "at most one commit a job, and all of them"


@pytest.mark.parametrize(
    ("word", "code", "cause"),
    [
        ("cluster.gpus_per_worker=1", 2, "2 workers need 2 GPU, the cluster has 0"),
        ("store.url=demo-run/store", 2, "deletes after it"),
        ("shards.url=demo-run/shards", 2, "where no shards are"),
        ("shards.url=/nowhere", 3, "not packed"),
    ],
)
def test_preflight_refuses_in_words(folder: Path, cluster: Cluster, word: str, code: int, cause: str) -> None:
    job = cluster.submit(words(folder, "refused", word))
    assert cluster.ended(job) == {"status": "FAILED", "code": code}
    log = cluster.logs(job)
    assert cause in log
    assert "Fix" in log
    assert "Traceback" not in log


def test_what_another_try_cannot_help_ends_as_stopped_where_kuberay_watches(folder: Path, cluster: Cluster) -> None:
    """A FAILED job would be started again on a new cluster, as often as backoffLimit says. The driver's output is kept."""
    job = cluster.submit(words(folder, "watched", "cluster.gpus_per_worker=1"), ATLAS_RETRIED_BY="kuberay")
    assert cluster.ended(job)["status"] == "STOPPED"
    assert "2 workers need 2 GPU, the cluster has 0" in cluster.logs(job)
    ((owner, name),) = names(LocalStore(folder / "watched"), "toy")
    (kept,) = read_tails(LocalStore(folder / "watched"), "toy", [(owner, name)])
    assert owner == "driver"
    assert "2 workers need 2 GPU" in kept.text


def test_a_job_that_sets_our_variables_runs_all_the_same(folder: Path, cluster: Cluster) -> None:
    """Ray refuses a driver that sets what its job has set."""
    job = cluster.submit(
        words(folder, "theirs", "cluster.gpus_per_worker=1"), TOKENIZERS_PARALLELISM="true", DS_ACCELERATOR="cpu"
    )
    assert cluster.ended(job) == {"status": "FAILED", "code": 2}
    assert "2 workers need 2 GPU" in cluster.logs(job), "it got as far as the cluster's room"


def test_a_stranger_without_the_token_is_refused(cluster: Cluster) -> None:
    stranger = Cluster(cluster.folder, cluster.gcs, cluster.dashboard, tag=cluster.tag, token=secrets.token_hex(32))
    said = stranger.ray("job", "list", "--address", cluster.dashboard, check=False)
    assert "401" in said or "403" in said or "nvalid" in said, said


HEAD, OTHER, LINK = "10.77.0.1", "10.77.0.2", "atlas0"


@pytest.fixture
def two_hosts() -> Iterator[tuple[str, str]]:
    """Two network namespaces joined by a cable: names to run commands in."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("network namespaces need root and iproute2")
    mark = uuid.uuid4().hex[:6]
    head, other = f"atlas{mark}a", f"atlas{mark}b"
    try:
        try:
            ip("netns", "add", head)
        except subprocess.CalledProcessError as error:
            pytest.skip(f"network namespaces are not allowed here: {error.stderr.decode().strip()}")
        ip("netns", "add", other)
        ip("link", "add", LINK, "netns", head, "type", "veth", "peer", "name", LINK, "netns", other)
        for name, address in ((head, HEAD), (other, OTHER)):
            ip("-n", name, "address", "add", f"{address}/24", "dev", LINK)
            ip("-n", name, "link", "set", "lo", "up")
            ip("-n", name, "link", "set", LINK, "up")
        yield head, other
    finally:
        for name in (head, other):
            with contextlib.suppress(subprocess.CalledProcessError):
                ip("netns", "delete", name)


def kill_all_in(namespace: str) -> None:
    """The machine is gone: every process in it, at once."""
    done = subprocess.run(["ip", "netns", "pids", namespace], check=True, capture_output=True, text=True)
    for pid in done.stdout.split():
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(pid), signal.SIGKILL)


@dataclass
class TwoHosts:
    """A cluster of two nodes with one worker each, in namespaces that a cable joins."""

    cluster: Cluster
    names: tuple[str, str]

    def join(self) -> None:
        """Start the second host's node."""
        words = ("--address", f"{HEAD}:6379", f"--node-ip-address={OTHER}", "--num-cpus=1")
        self.cluster.start(*words, inside=("ip", "netns", "exec", self.names[1]))

    def begun(self, mine: Sequence[str]) -> str:
        """Submit a run; its id, once it is in the middle of a stage."""
        job = self.cluster.submit(mine)
        self.cluster.wait_for(job, "dispatch order0-seed0/1 toy_shape stage2")
        return job


@pytest.fixture
def joined(two_hosts: tuple[str, str]) -> Iterator[TwoHosts]:
    """Both nodes are up."""
    short = Path("/tmp") / f"atlas-{uuid.uuid4().hex[:6]}"
    made = Cluster(short, f"{HEAD}:6379", f"http://{HEAD}:8265", inside=("ip", "netns", "exec", two_hosts[0]))
    # The host's name means 127.0.0.1 in both: gloo has to be told where the others are.
    made.more["GLOO_SOCKET_IFNAME"] = LINK
    both = TwoHosts(made, two_hosts)
    try:
        address = (f"--node-ip-address={HEAD}", f"--dashboard-host={HEAD}")
        made.start("--head", *address, "--port=6379", "--dashboard-port=8265", "--num-cpus=1", f"--temp-dir={short}")
        both.join()
        yield both
    finally:
        made.sweep()
        shutil.rmtree(short, ignore_errors=True)


def ended_well(both: TwoHosts, job: str, mine: list[str], undisturbed: dict[str, dict[str, str]]) -> list[Fail]:
    """The run is complete with the bank of the undisturbed one. Returns the attempts that it lost."""
    assert both.cluster.ended(job) == {"status": "SUCCEEDED", "code": 0}, both.cluster.logs(job)
    left = left_by(mine)
    assert left.hashes() == undisturbed
    commits = [e.record.job for e in left.entries if isinstance(e.record, Commit)]
    assert sorted(commits) == sorted(left.plan.jobs), "at most one commit a job, and all of them"
    return [e.record for e in left.entries if isinstance(e.record, Fail)]


def test_two_hosts_survive_the_loss_of_one(folder: Path, joined: TwoHosts, undisturbed: dict[str, dict[str, str]]) -> None:
    """The second host vanishes in the middle of a stage and comes back; the bank is that of the undisturbed run."""
    mine = words(folder, "two-hosts")
    job = joined.begun(mine)
    kill_all_in(joined.names[1])
    joined.join()
    lost = ended_well(joined, job, mine, undisturbed)
    assert len(lost) <= 2, lost


def test_two_hosts_survive_the_loss_of_the_driver(folder: Path, joined: TwoHosts, undisturbed: dict[str, dict[str, str]]) -> None:
    """The driver on the head is killed in the middle of a stage: its job fails, the same job submitted again goes on."""
    mine = words(folder, "two-hosts-driver")
    job = joined.begun(mine)
    joined.cluster.kill_driver(f"store.url={folder}/two-hosts-driver")
    assert joined.cluster.ended(job)["status"] == "FAILED"
    before = left_by(mine)
    assert before.state.committed < len(before.plan.jobs)
    lost = ended_well(joined, joined.cluster.submit(mine), mine, undisturbed)
    assert len(lost) <= 2, lost


CUT_S = 6.0


def test_two_hosts_survive_a_cable_that_is_pulled_for_seconds(
    folder: Path, joined: TwoHosts, undisturbed: dict[str, dict[str, str]]
) -> None:
    """Shorter than Ray's patience with a node: the collective waits, and goes on."""
    mine = words(folder, "two-hosts-cut")
    job = joined.begun(mine)
    ip("-n", joined.names[1], "link", "set", LINK, "down")
    time.sleep(CUT_S)
    ip("-n", joined.names[1], "link", "set", LINK, "up")
    lost = ended_well(joined, job, mine, undisturbed)
    assert len(lost) <= 2, lost


def test_two_hosts_work_on_over_a_slow_cable(folder: Path, joined: TwoHosts, undisturbed: dict[str, dict[str, str]]) -> None:
    """Eight megabits a second, in both directions, from the middle of a stage on."""
    mine = words(folder, "two-hosts-slow")
    job = joined.begun(mine)
    for name in joined.names:
        limit = ["rate", "8mbit", "burst", "32kbit", "latency", "400ms"]
        subprocess.run(["tc", "-n", name, "qdisc", "add", "dev", LINK, "root", "tbf", *limit], check=True, capture_output=True)
    assert ended_well(joined, job, mine, undisturbed) == [], "slow is not broken"

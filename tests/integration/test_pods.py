"""Head, workers and submitter as pods of the built image, each in namespaces of its own, started by KubeRay's own commands from
the RayJob that `atlas-dist manifest` writes, with a token and with SeaweedFS as the bucket. (`make image-here` first.)

Invariants defended here: a run ends with its report; without the token nobody gets in; a pod that is stopped costs no step,
whether a worker's or the head's; a node that is lost costs the steps since the last checkpoint; and the bank is the same, bit
for bit.
"""

from __future__ import annotations

import os
import re
import shutil
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from atlas_dist.app.manifest import Place, write_manifest
from atlas_dist.compose import compose_config
from atlas_dist.core.records import Commit, Fail, FailureKind
from cluster.image.container import Container, Image
from cluster.image.here import sources
from tests.kits import kuberay
from tests.kits.hosts import Switch, inside, why_not
from tests.kits.pods import HEAD, WAIT_S, Pod, RayCluster
from tests.kits.run import Left, left_by
from tests.kits.servers import CREDENTIALS, Server, client, seaweedfs
from tests.kits.stage import RELEASED, pack_toys

ROOT = Path(__file__).parents[2]
BUILT = Path(os.environ.get("ATLAS_IMAGE_FOLDER", ROOT / "build" / "image"))
WORKERS = 2
STAGE = "order0-seed0/1 toy_shape stage2"
LONG = ("experiment=toy", RELEASED, "sequence.upstream=[toy_shape]", "sequence.downstream=[]", "train.budget.max_steps=800")
LONG += ("train.checkpoint_every=25", "train.log_every=5", f"train.workers={WORKERS}")
PODS = ("cluster=ray", "cluster.cpus_per_worker=1", "cluster.gpus_per_worker=0", "store=s3", "shards=s3", "run=smoke")
pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(5400)]


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Image:
    """What `make image-here` built of this very checkout."""
    if missing := why_not():
        pytest.skip(missing)
    if shutil.which("runc") is None:
        pytest.skip("runc is not installed (Debian's package runc)")
    if not (BUILT / "image.json").exists():
        pytest.skip(f"no image in {BUILT}: make image-here")
    image = Image.of(BUILT)
    if image.sources != sources():
        pytest.skip(f"the image in {BUILT} is not of this state of the checkout: make image-here")
    probe = Container(image, f"atlas-probe-{uuid.uuid4().hex[:6]}", tmp_path_factory.mktemp("probe"))
    try:
        said, _ = probe.start(["true"]).communicate(timeout=60)
    finally:
        probe.remove()
    if said.strip():
        pytest.skip(f"runc cannot start a container here: {said.decode(errors='replace')[-300:]}")
    return image


@dataclass(frozen=True)
class Site:
    """Where the pods of all tests here live: one switch with a bucket on it."""

    image: Image
    folder: Path
    switch: Switch
    bucket: Server

    def words(self, case: str) -> list[str]:
        """A run of a store of its own."""
        urls = [f"store.url={self.bucket.url(case)}", f"shards.url={self.bucket.url('shards')}"]
        return [*LONG, *PODS, *urls, f"store.endpoint_url={self.bucket.endpoint}"]

    def cluster(self, case: str) -> RayCluster:
        """As the operator makes it: the head, then the workers."""
        written = write_manifest(*self.words(case), place=Place(image="localhost/atlas-dist:here"))
        made = RayCluster(self.image, self.folder, self.switch, yaml.safe_load(written.text), CREDENTIALS)
        try:
            made.start_head()
            for _ in range(WORKERS):
                made.start_worker()
        except BaseException:
            made.delete()
            raise
        return made

    def left(self, case: str) -> Left:
        """What the run has left in the bucket."""
        with inside(self.switch.namespace):
            return left_by(self.words(case))

    def saved(self, case: str) -> bool:
        """Whether there is a checkpoint in the middle of a stage."""
        with inside(self.switch.namespace):
            pages = client(self.bucket).get_paginator("list_objects_v2")  # type: ignore[attr-defined]
            found = [
                o["Key"] for page in pages.paginate(Bucket="bucket", Prefix=f"{case}/runs/") for o in page.get("Contents", [])
            ]
        return any(re.search(r"/checkpoints/.*/DONE$", key) for key in found)


@pytest.fixture(scope="module")
def place(image: Image, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder, switch = tmp_path_factory.mktemp("pods"), Switch()
    try:
        switch.open()
        with inside(switch.namespace), seaweedfs(tmp_path_factory.mktemp("weed"), switch.address) as bucket:
            made = Site(image, folder, switch, bucket)
            pack_toys(compose_config(made.words("shards")), samples=96)
            yield made
    finally:
        switch.close()


@dataclass
class Going:
    """A run that was handed in."""

    place: Site
    case: str
    cluster: RayCluster
    job: str
    submitter: Pod

    def until_in_the_middle(self) -> None:
        """The stage trains and has a checkpoint."""
        self.cluster.wait_for(self.submitter, f"dispatch {STAGE}")
        until = time.monotonic() + WAIT_S
        while not self.place.saved(self.case):
            assert self.submitter.process.poll() is None and time.monotonic() < until, self.submitter.said()
            time.sleep(0.5)

    def ends_well(self) -> Left:
        """The run's end: what it left."""
        state = self.cluster.ended(self.job, self.submitter)
        said = self.submitter.said()
        assert (state["status"], state["driver_exit_code"]) == ("SUCCEEDED", 0), said
        left = self.place.left(self.case)
        commits = [entry.record.job for entry in left.entries if isinstance(entry.record, Commit)]
        assert sorted(commits) == sorted(left.plan.jobs), "one commit a job, and all of them"
        return left

    @property
    def worker(self) -> Pod:
        return next(pod for pod in self.cluster.pods.values() if "worker" in pod.container.name)

    @property
    def head(self) -> Pod:
        return next(pod for pod in self.cluster.pods.values() if "-head-" in pod.container.name)


def submitted(place: Site, cluster: RayCluster, case: str) -> Going:
    job = f"smoke-{uuid.uuid4().hex[:5]}"
    written = yaml.safe_load(write_manifest(*place.words(case), place=Place(image="localhost/atlas-dist:here")).text)
    return Going(place, case, cluster, job, cluster.submit(job, written["spec"]["entrypoint"]))


def failures(left: Left) -> list[Fail]:
    return [entry.record for entry in left.entries if isinstance(entry.record, Fail)]


def resumed_at(left: Left, failed: Fail) -> int:
    """The step at which the attempt began that committed the job of a failed one."""
    committed = left.state.job(failed.job).committed
    assert committed is not None
    return int(committed.metrics["resumed_at"])


@pytest.fixture(scope="module")
def cluster(place: Site) -> Iterator[RayCluster]:
    """One that the tests share; one that has stopped its head starts another."""
    made = place.cluster("calm")
    yield made
    made.delete()


@pytest.fixture(scope="module")
def calm(place: Site, cluster: RayCluster) -> dict[str, dict[str, str]]:
    """The bank of a run that nothing happens to."""
    run = submitted(place, cluster, "calm")
    left = run.ends_well()
    assert failures(left) == []
    (report,) = re.findall(r"^report\s+(\S+)$", run.submitter.said(), re.MULTILINE)
    page = run.head.container.run(["cat", report])
    assert "<html" in page.stdout, f"{report}: {page.stderr}"
    cluster.remove(run.submitter)
    return left.hashes()


def test_the_run_ends_with_its_report(calm: dict[str, dict[str, str]]) -> None:
    assert calm


def test_the_jobs_api_is_closed_to_whoever_has_no_token(cluster: RayCluster) -> None:
    jobs = f"http://{HEAD}:{kuberay.DASHBOARD}/api/jobs/"
    assert cluster.get(jobs)[0] == 401
    assert cluster.get(jobs, "0" * 64)[0] in (401, 403)
    assert cluster.get(jobs, cluster.token)[0] == 200


def test_a_pod_can_write_nothing_but_its_volumes_and_has_no_rights(cluster: RayCluster) -> None:
    """As the manifest says."""
    for pod in cluster.pods.values():
        script = (
            "id -u; grep -h ^Cap /proc/self/status | sort -u -k2; touch /opt/atlas/x || touch /x; touch /tmp/x ~/x && echo wrote"
        )
        said = pod.container.run(["bash", "-c", script])
        lines = said.stdout.split("\n")
        assert lines[0] == "1000"
        assert [line.split()[1] for line in lines if line.startswith("Cap")] == ["0000000000000000"]
        assert said.stderr.count("Read-only file system") == 2
        assert "wrote" in lines


def test_a_worker_that_is_stopped_costs_no_step(place: Site, cluster: RayCluster, calm: dict[str, dict[str, str]]) -> None:
    """`kubectl delete pod`, a drained node: the hook tells Ray, the group saves and leaves, another pod takes its place."""
    run = submitted(place, cluster, "drained")
    run.until_in_the_middle()
    stopped = run.worker
    hook = cluster.hook(stopped)
    print(f"the worker's preStop took {hook:.1f} s")
    cluster.end(stopped, hook)
    cluster.start_worker()
    left = run.ends_well()
    (failed,) = failures(left)
    assert failed.kind is FailureKind.PREEMPTED
    assert resumed_at(left, failed) == failed.step > 0, "not one step was lost"
    assert left.hashes() == calm
    cluster.remove(run.submitter)


def test_a_node_that_is_lost_costs_the_steps_since_the_last_checkpoint(
    place: Site, cluster: RayCluster, calm: dict[str, dict[str, str]]
) -> None:
    run = submitted(place, cluster, "lost")
    run.until_in_the_middle()
    cluster.lose(run.worker)
    cluster.start_worker()
    left = run.ends_well()
    lost = failures(left)
    assert 1 <= len(lost) <= 2
    assert resumed_at(left, lost[-1]) > 0
    assert left.hashes() == calm
    cluster.remove(run.submitter)


def test_a_head_that_is_stopped_costs_no_step(place: Site, cluster: RayCluster, calm: dict[str, dict[str, str]]) -> None:
    """Its hook asks the driver for a checkpoint. Then the cluster is gone; KubeRay's next try is a new one, with a new token."""
    run = submitted(place, cluster, "head")
    run.until_in_the_middle()
    hook = cluster.hook(run.head)
    print(f"the head's preStop took {hook:.1f} s")
    state = cluster.state(run.job)
    assert (state["status"], state["driver_exit_code"]) == ("FAILED", 8), "STOPPED would not be tried again"
    assert "The same command goes on from there" in run.submitter.said()
    cluster.end(run.head, hook)
    cluster.delete()
    before = place.left("head")
    assert not before.state.running, "the ledger knows that the attempt ended"

    again = place.cluster("head")
    try:
        left = submitted(place, again, "head").ends_well()
    finally:
        again.delete()
    (paused,) = failures(left)
    assert resumed_at(left, paused) == paused.step > 0, "not one step was lost"
    assert left.hashes() == calm

"""What a container of the built image may do (cluster/image/container.py), and what is started in it (tests/kits/kuberay.py)."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from cluster.image.container import Container, Image, folder_of_the_host, tmpfs
from tests.kits import kuberay

IMAGE = Image("/rootfs", ("PATH=/opt/atlas/bin:/bin", "A=image"), "/home/atlas", "0" * 64, 1)
JOB = yaml.safe_load((Path(__file__).parents[3] / "cluster/kuberay/job/rayjob.yaml").read_text())
CLUSTER = JOB["spec"]["rayClusterSpec"]
HEAD, (WORKER,) = CLUSTER["headGroupSpec"], CLUSTER["workerGroupSpecs"]
SERVICE = kuberay.service("smoke", "atlas-dist")


def test_a_container_is_as_closed_as_the_manifests_ask(tmp_path: Path) -> None:
    config = Container(IMAGE, "one", tmp_path, memory=2**30).config(["true"])
    process = config["process"]
    assert config["root"] == {"path": "/rootfs", "readonly": True}
    assert process["user"] == {"uid": 1000, "gid": 1000}
    assert process["capabilities"] == {}
    assert process["noNewPrivileges"]
    assert {each["type"] for each in config["linux"]["namespaces"]} == {"pid", "ipc", "uts", "mount", "network"}
    assert config["linux"]["resources"]["memory"] == {"limit": 2**30}
    assert [m["destination"] for m in config["mounts"] if "rw" in m.get("options", ())] == []


def test_a_container_gets_what_it_was_given(tmp_path: Path) -> None:
    mounts = (tmpfs("/tmp", 64), folder_of_the_host(tmp_path, "/data", writable=True))
    given = Container(IMAGE, "one", tmp_path, environment={"A": "mine"}, mounts=mounts, network="/run/netns/x")
    config = given.config(["a", "b"])
    assert config["process"]["env"] == ["PATH=/opt/atlas/bin:/bin", "A=mine"]
    assert config["process"]["args"] == ["a", "b"]
    assert {"type": "network", "path": "/run/netns/x"} in config["linux"]["namespaces"]
    assert config["mounts"][-2:] == list(mounts)
    assert "memory" not in config["linux"]["resources"]


@pytest.mark.parametrize(("text", "size"), [("4Gi", 4 << 30), ("512Mi", 512 << 20), ("268435456", 268435456)])
def test_kubernetes_sizes(text: str, size: int) -> None:
    assert kuberay.quantity(text) == size


def test_the_head_starts_as_kuberay_starts_it() -> None:
    shell, option, _, script = kuberay.head_command(HEAD)
    assert (shell, option) == ("/bin/bash", "-c")
    start = "ray start --head --block --dashboard-agent-listen-port=52365 --dashboard-host=0.0.0.0 --memory=4294967296"
    assert script.endswith(f"{start} --metrics-export-port=8080 --num-cpus=0 --num-gpus=0 --object-store-memory=268435456")


def test_a_worker_knows_the_head_by_its_service() -> None:
    script = kuberay.worker_command(WORKER, SERVICE)[-1]
    assert "ray start --address=smoke-head-svc.atlas-dist.svc.cluster.local:6379 --block" in script
    assert "--num-cpus=4" in script


def test_everybody_gets_the_token_and_the_manifests_variables() -> None:
    for role, pod in (
        ("head", HEAD["template"]),
        ("worker", WORKER["template"]),
        ("submitter", JOB["spec"]["submitterPodTemplate"]),
    ):
        found = kuberay.environment(pod, role, SERVICE, "secret")
        assert (found["RAY_AUTH_MODE"], found["RAY_AUTH_TOKEN"], found["HOME"]) == ("token", "secret", "/home/atlas")
    assert kuberay.environment(HEAD["template"], "head", SERVICE, "x")["ATLAS_RETRIED_BY"] == "kuberay"


def test_the_submitter_hands_in_once_and_follows() -> None:
    script = kuberay.submit_command(JOB["spec"], SERVICE, "job-1")[-1]
    assert "if ! ray job status --address http://smoke-head-svc.atlas-dist.svc.cluster.local:8265 job-1" in script
    assert "--no-wait --submission-id job-1 -- python -m atlas_dist run" in script
    assert script.endswith("ray job logs --address http://smoke-head-svc.atlas-dist.svc.cluster.local:8265 --follow job-1")

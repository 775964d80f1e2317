"""Pods of a RayJob as a node would run them, without Kubernetes: the image that `make image-here` built, each pod a container of
runc on a host of its own, with the volumes, limits, probes and hooks of the manifest and the commands of KubeRay."""

from __future__ import annotations

import contextlib
import json
import secrets
import shutil
import subprocess
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cluster.image.container import Container, Image, tmpfs
from tests.kits import kuberay
from tests.kits.hosts import Switch, inside

WAIT_S = 1200.0
"""Only so that what hangs ends: on shared cores a start of seconds may take many minutes."""
HEAD = "10.77.0.10"


@dataclass
class Pod:
    """One of them."""

    name: str
    address: str
    template: Mapping[str, Any]
    container: Container
    process: subprocess.Popen[bytes]
    log: Path

    def said(self) -> str:
        """What its first process has printed."""
        return self.log.read_text(errors="replace")


@dataclass
class RayCluster:
    """The pods of one try: KubeRay makes a new cluster, with a new token, for each."""

    image: Image
    folder: Path
    switch: Switch
    job: Mapping[str, Any]
    """The RayJob, as YAML has it."""
    more: Mapping[str, str] = field(default_factory=dict)
    """Further environment of head and workers: what a role would give them."""
    name: str = field(default_factory=lambda: f"smoke-{uuid.uuid4().hex[:5]}")
    token: str = field(default_factory=lambda: secrets.token_hex(32))
    pods: dict[str, Pod] = field(default_factory=dict)
    started: int = 0

    @property
    def spec(self) -> Mapping[str, Any]:
        found: Mapping[str, Any] = self.job["spec"]["rayClusterSpec"]
        return found

    @property
    def service(self) -> str:
        return kuberay.service(self.name, self.job["metadata"]["namespace"])

    def start_head(self) -> Pod:
        group = self.spec["headGroupSpec"]
        return self.ready(self.start("head", group["template"], kuberay.head_command(group), HEAD))

    def start_worker(self) -> Pod:
        """One more; it comes when KubeRay's init container has found the head."""
        (group,) = self.spec["workerGroupSpecs"]
        waits = self.start("worker", group["template"], kuberay.wait_for_head(self.service), memory=256 * 2**20)
        assert waits.process.wait(WAIT_S) == 0, waits.said()
        self.remove(waits)
        return self.ready(self.start("worker", group["template"], kuberay.worker_command(group, self.service)))

    def submit(self, job: str, entrypoint: str) -> Pod:
        """The submitter's pod, with a job of this id."""
        spec = {**self.job["spec"], "entrypoint": entrypoint}
        command = kuberay.submit_command(spec, self.service, job)
        return self.start("submitter", spec["submitterPodTemplate"], command)

    def start(self, role: str, template: Mapping[str, Any], command: list[str], address: str = "", memory: int = 0) -> Pod:
        """A pod of a new name on a new host."""
        self.started += 1
        name, address = f"{self.name}-{role}-{self.started}", address or f"10.77.0.{20 + self.started}"
        host = f"{role[0]}{uuid.uuid4().hex[:4]}"
        one = kuberay.container(template)
        volumes = {each["name"]: each["emptyDir"] for each in template["spec"]["volumes"]}
        sizes = {m["mountPath"]: kuberay.quantity(volumes[m["name"]]["sizeLimit"]) for m in one["volumeMounts"]}
        more = {} if role == "submitter" else self.more
        asked = one["securityContext"]
        assert asked["readOnlyRootFilesystem"] and asked["capabilities"] == {"drop": ["ALL"]}
        container = Container(
            self.image,
            name,
            self.folder / name,
            environment={**more, **kuberay.environment(template, role, self.service, self.token)},
            mounts=tuple(tmpfs(where, size >> 20) for where, size in sizes.items()),
            hosts={self.service: HEAD, name: address},
            network=str(self.switch.add(host, address)),
            memory=memory or kuberay.quantity(one["resources"]["limits"]["memory"]),
        )
        log = self.folder / f"{name}.log"
        with log.open("wb") as output:
            process = container.start(command, output)
        pod = self.pods[name] = Pod(host, address, template, container, process, log)
        return pod

    def ready(self, pod: Pod) -> Pod:
        """Until the probe of the manifest says so, asked from outside as a node's agent does."""
        probe = kuberay.container(pod.template)["readinessProbe"]["httpGet"]
        until = time.monotonic() + WAIT_S
        while True:
            assert pod.process.poll() is None, pod.said()
            assert time.monotonic() < until, pod.said()
            with contextlib.suppress(OSError):
                if self.get(f"http://{pod.address}:{probe['port']}{probe['path']}")[0] == 200:
                    return pod
            time.sleep(1.0)

    def hook(self, pod: Pod) -> float:
        """Its preStop, with which Kubernetes begins to stop a pod. Returns the seconds that it took."""
        begun = time.monotonic()
        done = pod.container.run(kuberay.pre_stop(pod.template), timeout=WAIT_S)
        assert done.returncode == 0, done.stdout + done.stderr
        return time.monotonic() - begun

    def end(self, pod: Pod, hook: float) -> None:
        """What comes after a hook of so many seconds: SIGTERM, and SIGKILL at the end of its grace."""
        pod.container.signal("TERM")
        with contextlib.suppress(subprocess.TimeoutExpired):
            pod.process.wait(max(pod.template["spec"]["terminationGracePeriodSeconds"] - hook, 1.0))
        self.remove(pod)

    def lose(self, pod: Pod) -> None:
        """Its node is gone: nobody hears a word from it any more."""
        self.switch.cut(pod.name)
        self.remove(pod)

    def remove(self, pod: Pod) -> None:
        """At once, with its host."""
        pod.container.remove()
        pod.process.wait(60)
        self.switch.remove(pod.name)
        shutil.rmtree(pod.container.home, ignore_errors=True)
        self.pods.pop(pod.container.name, None)

    def delete(self) -> None:
        """All of it."""
        for pod in list(self.pods.values()):
            self.remove(pod)

    def get(self, url: str, token: str = "") -> tuple[int, str]:
        """A GET from the switch: status and body. Raises OSError where nobody answers."""
        request = urllib.request.Request(url, headers={"Authorization": f"Bearer {token}"} if token else {})
        with inside(self.switch.namespace):
            try:
                with urllib.request.urlopen(request, timeout=10) as answer:
                    return answer.status, answer.read().decode()
            except urllib.error.HTTPError as error:
                return error.code, error.read().decode(errors="replace")

    def state(self, job: str) -> dict[str, Any]:
        """What KubeRay's operator asks the head about the job."""
        code, body = self.get(f"http://{HEAD}:{kuberay.DASHBOARD}/api/jobs/{job}", self.token)
        assert code == 200, body
        found: dict[str, Any] = json.loads(body)
        return found

    def wait_for(self, submitter: Pod, text: str) -> None:
        """Until the job's log, as the submitter follows it, holds `text`."""
        until = time.monotonic() + WAIT_S
        while text not in submitter.said():
            assert submitter.process.poll() is None and time.monotonic() < until, f"no {text!r} in:\n{submitter.said()}"
            time.sleep(0.2)

    def ended(self, job: str, submitter: Pod) -> dict[str, Any]:
        """Its record, once it has ended."""
        submitter.process.wait(WAIT_S)
        until = time.monotonic() + 60
        while (state := self.state(job))["status"] in ("PENDING", "RUNNING"):
            assert time.monotonic() < until, submitter.said()
            time.sleep(1.0)
        return state

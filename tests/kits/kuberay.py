"""What KubeRay 1.7 makes of a RayJob: the commands and the environment of its containers (read in its source: common/pod.go and
common/job.go), in words of our own."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

DOMAIN = "svc.cluster.local"
GCS, DASHBOARD = 6379, 8265
_UNITS = {"": 1, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30}


def quantity(text: object) -> int:
    """Bytes of `4Gi`."""
    number, unit = re.fullmatch(r"(\d+)([KMG]i)?", str(text)).groups(default="")  # type: ignore[union-attr]
    return int(number) * _UNITS[unit]


def container(pod: Mapping[str, Any]) -> dict[str, Any]:
    """The one that Ray runs in."""
    found: dict[str, Any] = pod["spec"]["containers"][0]
    return found


def variables(pod: Mapping[str, Any]) -> dict[str, str]:
    """What the manifest sets."""
    return {each["name"]: each["value"] for each in container(pod).get("env", [])}


def service(cluster: str, namespace: str) -> str:
    """The name by which everybody finds the head."""
    return f"{cluster}-head-svc.{namespace}.{DOMAIN}"


def _ray_start(head: bool, params: Mapping[str, str], pod: Mapping[str, Any]) -> str:
    limits = container(pod)["resources"]["limits"]
    own = {"block": "true", "metrics-export-port": "8080", "dashboard-agent-listen-port": "52365"}
    sizes = {"num-cpus": str(limits["cpu"]), "memory": str(quantity(limits["memory"]))}
    every = {**sizes, **own, **params}
    words = (f"--{name}" if value == "true" else f"--{name}={value}" for name, value in sorted(every.items()))
    return f"ray start {'--head ' if head else ''}{' '.join(words)}"


def head_command(group: Mapping[str, Any]) -> list[str]:
    """The head's first process."""
    start = _ray_start(True, group["rayStartParams"], group["template"])
    return ["/bin/bash", "-c", "--", f"ulimit -n ${{RAY_START_ULIMIT_OPEN_FILES:-65536}}; {start}"]


def worker_command(group: Mapping[str, Any], head: str) -> list[str]:
    """A worker's first process."""
    start = _ray_start(False, {"address": f"{head}:{GCS}", **group["rayStartParams"]}, group["template"])
    return ["/bin/bash", "-c", "--", f"ulimit -n ${{RAY_START_ULIMIT_OPEN_FILES:-65536}}; {start}"]


def wait_for_head(head: str) -> list[str]:
    """The worker's init container, which KubeRay gives 256 MiB."""
    return ["/bin/bash", "-c", "--", f"until ray health-check --address {head}:{GCS} >/dev/null 2>&1; do sleep 1; done"]


def submit_command(spec: Mapping[str, Any], head: str, job: str) -> list[str]:
    """The submitter's process in K8sJobMode: waits for the dashboard, hands in what is not there yet, follows the log."""
    at = f"--address http://{head}:{DASHBOARD}"
    look = f"import urllib.request; r=urllib.request.urlopen('http://{head}:{DASHBOARD}/api/gcs_healthz', timeout=10)"
    healthy = f"python -c \"{look}; exit(0 if b'success' in r.read() else 1)\" >/dev/null 2>&1"
    script = (
        f"until {healthy} ; do sleep 2 ; done ; if ! ray job status {at} {job} >/dev/null 2>&1 ; then "
        f"ray job submit {at} --no-wait --submission-id {job} -- {spec['entrypoint'].strip()} ; fi ; "
        f"ray job logs {at} --follow {job}"
    )
    return ["/bin/bash", "-ce", "--", script]


def environment(pod: Mapping[str, Any], role: str, head: str, token: str) -> dict[str, str]:
    """The manifest's variables and those that KubeRay adds. `role`: head, worker, submitter."""
    auth = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token}
    if role == "submitter":
        return {"PYTHONUNBUFFERED": "1", "RAY_DASHBOARD_ADDRESS": f"{head}:{DASHBOARD}", **auth, **variables(pod)}
    address = "127.0.0.1" if role == "head" else head
    ray = {"RAY_ADDRESS": f"{address}:{GCS}", "RAY_PORT": str(GCS), "RAY_USAGE_STATS_KUBERAY_IN_USE": "1"}
    where = {} if role == "head" else {"FQ_RAY_IP": head, "RAY_IP": head.partition(".")[0]}
    tags = {"RAY_USAGE_STATS_EXTRA_TAGS": "kuberay_version=v1.7.0;kuberay_crd=RayJob"} if role == "head" else {}
    return {**ray, **where, **tags, "RAY_CLUSTER_NAME": head.partition("-head-svc")[0], **auth, **variables(pod)}


def pre_stop(pod: Mapping[str, Any]) -> list[str]:
    """The hook that the manifest has."""
    command: list[str] = container(pod)["lifecycle"]["preStop"]["exec"]["command"]
    return command

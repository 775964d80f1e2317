"""The RayJob (or, with a schedule, the RayCronJob) of a run, so that nobody edits YAML by hand.

It is cluster/kuberay/job/rayjob.yaml with the image, the words and the sizes of this run. What else a cluster needs (the
namespace, identities, network policies, queues) is its administrator's and is applied once: cluster/kuberay/admin.
"""

from __future__ import annotations

import json
import math
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from atlas_dist import __version__
from atlas_dist.app.composed import Settings, compose_run, words_of
from atlas_dist.config import RunConfig
from atlas_dist.core.types import WorkerGroupSpec
from atlas_dist.errors import ConfigError

LONGEST_NAME = 47
"""KubeRay makes names of pods from a RayJob's name; a longer one is refused."""
GPU_NODE = 8
"""GPUs that a node has unless it is said."""
MEMORY_CPU, MEMORY_GPU = 4, 32
"""GiB for a worker that computes on CPUs, and on a GPU."""
_PLAIN_LABEL = re.compile(r"[\w.-]+")
_NEEDS_GPUS = {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}


@dataclass(frozen=True)
class Place:
    """What the settings of a run do not say about the pods that it is to run in."""

    image: str
    namespace: str = "atlas-dist"
    name: str = ""
    """Of the object; "" = the run's."""
    per_pod: int = 0
    """Workers a pod; 0 = as many as make full nodes of eight GPUs, one where they compute on CPUs."""
    memory: int = 0
    """GiB a worker; 0 = 4 on CPUs, 32 with a GPU."""
    parts: tuple[str, ...] = ()
    """Components of cluster/kuberay/components that change the RayJob."""
    queue: str = ""
    """Of Kueue or Volcano; "" = none."""
    pull_secret: str = ""
    schedule: str = ""
    """In cron's form; "" = one run, now."""


@dataclass(frozen=True)
class WrittenManifest:
    """What Kubernetes is given."""

    text: str
    """For `kubectl apply -f -`."""
    image: str
    stands_for_another: bool
    """No image was named; `image` is an example."""


def write_manifest(*settings: Settings, place: Place, many: bool = False) -> WrittenManifest:
    """The RayJob of a run. Raises ConfigError: settings that no cluster can run, a name or a component that there is not."""
    words = words_of(*settings)
    config = compose_run(*words, many=many).config
    if config.cluster.address == "local":
        words.append("cluster=ray")
        config = compose_run(*words, many=many).config
    image = place.image or f"registry.example.com/atlas-dist:{__version__}-{'cuda' if config.cluster.gpus else 'cpu'}"
    manifest = manifest_of(config, words, replace(place, image=image), many=many)
    return WrittenManifest(as_yaml(manifest), image, stands_for_another=not place.image)


def manifest_of(config: RunConfig, words: Sequence[str], place: Place, *, many: bool = False) -> dict[str, Any]:
    """The object as Kubernetes reads it. `words`: what follows `atlas-dist run`. Raises ConfigError."""
    _check(config)
    parts = ["autoscaler", *place.parts] if config.cluster.grows and "autoscaler" not in place.parts else list(place.parts)
    job = json.loads(json.dumps(yaml.safe_load((kuberay_dir() / "job/rayjob.yaml").read_text())))  # without shared parts
    for part in parts:
        _apply(job, part)
    spec = job["spec"]
    cluster = spec["rayClusterSpec"]
    template = cluster["workerGroupSpecs"].pop()
    cluster["workerGroupSpecs"] = [_group(template, group, config, place) for group in config.worker_groups]
    for pod in _pods(spec):
        for container in pod["containers"]:
            container["image"] = place.image if container["image"] == "atlas-dist" else container["image"]
        if place.pull_secret:
            pod["imagePullSecrets"] = [{"name": place.pull_secret}]
    name = _name(place.name or config.run)
    spec["entrypoint"] = _entrypoint(words, many=many, dated=config.run if place.schedule else "")
    labels = {"app.kubernetes.io/part-of": "atlas-dist"}
    if place.queue:
        labels |= {"kueue.x-k8s.io/queue-name": place.queue, "volcano.sh/queue-name": place.queue}
    meta = {"name": name, "namespace": place.namespace, "labels": labels}
    if place.schedule:
        cron = {"schedule": place.schedule, "jobTemplate": spec}
        return {"apiVersion": "ray.io/v1", "kind": "RayCronJob", "metadata": meta, "spec": cron}
    return {"apiVersion": "ray.io/v1", "kind": "RayJob", "metadata": meta, "spec": spec}


def as_yaml(manifest: Mapping[str, Any]) -> str:
    """For `kubectl apply -f -`."""
    head = "# Written by `atlas-dist manifest`. Once a cluster, by its administrator: kubectl apply -k cluster/kuberay/admin\n"
    return head + yaml.dump(manifest, Dumper=_Dumper, sort_keys=False, width=120)


def kuberay_dir() -> Path:
    """Where the manifests lie: inside the installed package, or in a checkout. Raises ConfigError."""
    package = Path(__file__).resolve().parents[1]
    for folder in (package / "kuberay", package.parent / "cluster/kuberay"):
        if (folder / "job/rayjob.yaml").exists():
            return folder
    raise ConfigError(f"No manifests beside {package}.", fix="Install atlas-dist again, or use a checkout.")


def components() -> list[str]:
    """Those that change a RayJob."""
    files = sorted((kuberay_dir() / "components").glob("*/kustomization.yaml"))
    return [file.parent.name for file in files if "patches" in yaml.safe_load(file.read_text())]


def _check(config: RunConfig) -> None:
    for name, url in (("store", config.store.url), ("shards", config.shards.url)):
        if not url.startswith("s3://"):
            fix = f"Add {name}=s3 {name}.url=s3://bucket/prefix."
            raise ConfigError(f"{name}.url={url} is a folder, which the pods of a cluster do not share.", fix=fix)


def _name(wanted: str) -> str:
    name = re.sub(r"[^a-z0-9]+", "-", wanted.lower()).strip("-")[:LONGEST_NAME].rstrip("-")
    if not name or not name[0].isalpha():
        raise ConfigError(f"{wanted!r} cannot become the name of a Kubernetes object.", fix="Give one: --name my-run")
    return name


def _entrypoint(words: Sequence[str], *, many: bool, dated: str) -> str:
    """The command. KubeRay puts it into a bash of the submitter, so each word is quoted for that one; `dated`: the name of a
    run that is started again and again, to which that bash adds the day."""
    kept = [w for w in words if not (dated and w.startswith("run="))]
    command = ["python", "-m", "atlas_dist", "run", *(["-m"] if many else []), *kept]
    day = [f"run={dated}-$(date -u +%Y%m%d)"] if dated else []
    return " ".join([*map(shlex.quote, command), *day])


def _group(template: Mapping[str, Any], group: WorkerGroupSpec, config: RunConfig, place: Place) -> dict[str, Any]:
    """The pods of one pool."""
    spec = json.loads(json.dumps(template))
    cpus, gpus = config.cluster.cpus_per_worker, int(config.cluster.gpus)
    per_pod = place.per_pod or _workers_per_pod(group.workers, gpus, grows=config.cluster.grows)
    pods = math.ceil(group.workers / per_pod)
    memory = (place.memory or (MEMORY_GPU if gpus else MEMORY_CPU)) * per_pod
    sizes = {"cpu": str(math.ceil(cpus * per_pod)), "memory": f"{memory}Gi"}
    sizes |= {"nvidia.com/gpu": str(gpus * per_pod)} if gpus else {}
    container = spec["template"]["spec"]["containers"][0]
    given = container["resources"]  # a component may ask for devices, too
    kept = {k: v for k, v in given["requests"].items() if k not in ("cpu", "memory", "nvidia.com/gpu")}
    limits = {k: v for k, v in given["limits"].items() if k not in ("cpu", "memory", "nvidia.com/gpu")}
    container["resources"] = {"requests": sizes | kept, "limits": sizes | limits}
    shared = next(v for v in spec["template"]["spec"]["volumes"] if v["name"] == "shm")
    shared["emptyDir"]["sizeLimit"] = f"{max(2, memory // 8)}Gi"
    if gpus and _NEEDS_GPUS not in spec["template"]["spec"]["tolerations"]:
        spec["template"]["spec"]["tolerations"].append(_NEEDS_GPUS)
    low = 0 if config.cluster.grows else pods
    spec |= {"groupName": "workers" if group.name == "main" else _name(group.name), "maxReplicas": pods}
    spec |= {"replicas": low, "minReplicas": low}
    if group.labels:
        spec["labels"] = _plain_labels(group)
    return dict(spec)


def _workers_per_pod(workers: int, gpus: int, *, grows: bool) -> int:
    """Full nodes where they are fixed; the smallest pods where nodes come and go, so that one that goes takes little along."""
    if not gpus or grows:
        return 1
    most = max(1, GPU_NODE // gpus)
    return max(n for n in range(1, most + 1) if workers % n == 0)


def _plain_labels(group: WorkerGroupSpec) -> dict[str, str]:
    odd = {key: value for key, value in group.labels.items() if not _PLAIN_LABEL.fullmatch(value)}
    if odd:
        raise ConfigError(
            f"Pool {group.name} asks for nodes with {', '.join(f'{k}={v}' for k, v in odd.items())}: "
            "pods can be given a label, not the absence of one.",
            fix="Give the other pools' nodes a label of their own and ask for that.",
        )
    return dict(group.labels)


def _pods(spec: Mapping[str, Any]) -> Iterable[dict[str, Any]]:
    cluster = spec["rayClusterSpec"]
    yield spec["submitterPodTemplate"]["spec"]
    yield cluster["headGroupSpec"]["template"]["spec"]
    for group in cluster["workerGroupSpecs"]:
        yield group["template"]["spec"]


def _apply(job: dict[str, Any], part: str) -> None:
    """The component's patches of the RayJob: JSON patches (RFC 6902) with `add` and `replace`."""
    if part not in components():
        raise ConfigError(f"There is no component {part!r}.", fix=f"Choose of: {', '.join(components())}.")
    kustomization = yaml.safe_load((kuberay_dir() / "components" / part / "kustomization.yaml").read_text())
    for patch in kustomization["patches"]:
        for step in yaml.safe_load(patch["patch"]):
            *parents, last = (key.replace("~1", "/").replace("~0", "~") for key in step["path"].lstrip("/").split("/"))
            at: Any = job
            for key in parents:
                at = at[int(key)] if isinstance(at, list) else at[key]
            if isinstance(at, list) and last == "-":
                at.append(step["value"])
            else:
                at[int(last) if isinstance(at, list) else last] = step["value"]


class _Dumper(yaml.SafeDumper):
    """Scripts as blocks, and nothing by reference."""

    def ignore_aliases(self, data: object) -> bool:
        return True


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _text)

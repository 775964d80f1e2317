"""What every manifest of ours must keep, each rule a function: composed documents in, complaints out.

The operator's own rules (which a schema can't say) are here too: see KubeRay's validation of RayJob.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from string import Template
from typing import Any

from atlas_dist.compose import compose_config
from atlas_dist.config import RunConfig
from atlas_dist.coordinator.ray_job import RETRIED_BY
from atlas_dist.errors import AtlasError

Docs = list[dict[str, Any]]
Rule = Callable[[Docs], list[str]]
METADATA_SERVICE = "169.254.0.0/16"
HELPERS = {"169.254.20.10/32": {53}, "169.254.170.23/32": {80}}
"""Single addresses on the node that a component may open: NodeLocal DNSCache, and EKS Pod Identity's agent."""
LOST = ("node.kubernetes.io/unreachable", "node.kubernetes.io/not-ready")
CLUSTER_WIDE = {"Namespace"}


@dataclass(frozen=True)
class Pod:
    """A pod template and where it stands."""

    where: str
    labels: dict[str, str]
    spec: dict[str, Any]
    ray: bool

    @property
    def containers(self) -> list[dict[str, Any]]:
        return [*self.spec.get("containers", []), *self.spec.get("initContainers", [])]


def of_kind(docs: Docs, kind: str) -> Docs:
    return [d for d in docs if d["kind"] == kind]


def clusters(docs: Docs) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Every RayJob and RayService, with the Ray cluster that it brings about."""
    for kind, at in (("RayJob", "rayClusterSpec"), ("RayService", "rayClusterConfig")):
        for owner in of_kind(docs, kind):
            yield owner, owner["spec"][at]


def pods(docs: Docs) -> Iterator[Pod]:
    """Every pod that these bring about."""
    for job, cluster in clusters(docs):
        templates = [("head", cluster["headGroupSpec"]["template"], True)]
        templates += [(g["groupName"], g["template"], True) for g in cluster["workerGroupSpecs"]]
        if "submitterPodTemplate" in job["spec"]:
            templates.append(("submitter", job["spec"]["submitterPodTemplate"], False))
        for name, template, ray in templates:
            yield Pod(f"{job['metadata']['name']}/{name}", template.get("metadata", {}).get("labels", {}), template["spec"], ray)


def containers(docs: Docs) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every container, and the autoscaler that the operator adds."""
    for pod in pods(docs):
        for container in pod.containers:
            yield f"{pod.where}/{container['name']}", container
    for job, cluster in clusters(docs):
        options = cluster.get("autoscalerOptions")
        if options:
            yield f"{job['metadata']['name']}/autoscaler", options


def every_run_brings_its_submitter_template(docs: Docs) -> list[str]:
    """without one the operator starts a submitter with no security context"""
    return [d["metadata"]["name"] for d in of_kind(docs, "RayJob") if "submitterPodTemplate" not in d["spec"]]


def pods_are_not_root(docs: Docs) -> list[str]:
    """runAsNonRoot, a user above 0, the runtime's seccomp profile"""
    bad = []
    for pod in pods(docs):
        context = pod.spec.get("securityContext", {})
        seccomp = context.get("seccompProfile", {}).get("type")
        if not context.get("runAsNonRoot") or not context.get("runAsUser") or seccomp != "RuntimeDefault":
            bad.append(pod.where)
    return bad


def pods_share_nothing_with_the_node(docs: Docs) -> list[str]:
    """no host network, processes, IPC or paths"""
    bad = [p.where for p in pods(docs) if any(p.spec.get(k) for k in ("hostNetwork", "hostPID", "hostIPC"))]
    return bad + [p.where for p in pods(docs) for v in p.spec.get("volumes", []) if "hostPath" in v]


def containers_are_locked_down(docs: Docs) -> list[str]:
    """read-only root, no new privileges, no capabilities"""
    bad = []
    for name, container in containers(docs):
        context = container.get("securityContext", {})
        dropped = context.get("capabilities", {})
        fine = context.get("readOnlyRootFilesystem") is True and context.get("allowPrivilegeEscalation") is False
        if not fine or dropped.get("drop") != ["ALL"] or dropped.get("add") or context.get("privileged"):
            bad.append(name)
    return bad


def containers_can_write_where_they_must(docs: Docs) -> list[str]:
    """a read-only root needs bounded volumes at /tmp and HOME; Ray nodes a memory volume at /dev/shm"""
    bad = []
    for pod in pods(docs):
        volumes = {v["name"]: v.get("emptyDir") for v in pod.spec.get("volumes", [])}
        for container in pod.containers:
            mounts = {m["mountPath"]: volumes.get(m["name"]) for m in container.get("volumeMounts", [])}
            home = {e["name"]: e.get("value") for e in container.get("env", [])}.get("HOME")
            wanted = ["/tmp", home, *(["/dev/shm"] if pod.ray else [])]
            bad += [f"{pod.where}: {path}" for path in wanted if not path or not (mounts.get(path) or {}).get("sizeLimit")]
            if pod.ray and (mounts.get("/dev/shm") or {}).get("medium") != "Memory":
                bad.append(f"{pod.where}: /dev/shm is not memory")
    return bad


def containers_say_what_they_need(docs: Docs) -> list[str]:
    """requests for CPU and memory, a memory limit; GPUs requested as limited"""
    bad = []
    for name, container in containers(docs):
        requests, limits = (container.get("resources", {}).get(k, {}) for k in ("requests", "limits"))
        gpus = {requests.get("nvidia.com/gpu"), limits.get("nvidia.com/gpu")}
        if "cpu" not in requests or "memory" not in requests or "memory" not in limits or len(gpus) > 1:
            bad.append(name)
    return bad


def images_are_pinned(docs: Docs) -> list[str]:
    """a tag that is not latest, or a digest"""
    bad = []
    for pod in pods(docs):
        for container in pod.containers:
            name, _, tag = container.get("image", "").rpartition("/")[2].partition(":")
            if "@sha256" not in name and tag in ("", "latest"):
                bad.append(f"{pod.where}: {container.get('image')}")
    return bad


def ray_nodes_are_probed(docs: Docs) -> list[str]:
    """startup, liveness and readiness, by HTTP"""
    wanted = ("startupProbe", "livenessProbe", "readinessProbe")
    return [f"{p.where}: {k}" for p in pods(docs) if p.ray for k in wanted if "httpGet" not in p.containers[0].get(k, {})]


def identities_are_ours(docs: Docs) -> list[str]:
    """a service account of this set for each pod, two different ones for head and workers; tokens only for an autoscaler"""
    known = {d["metadata"]["name"] for d in of_kind(docs, "ServiceAccount")}
    bad = [p.where for p in pods(docs) if p.spec.get("serviceAccountName") not in known]
    bad += [d["metadata"]["name"] for d in of_kind(docs, "ServiceAccount") if d.get("automountServiceAccountToken") is not False]
    for _, cluster in clusters(docs):
        head = cluster["headGroupSpec"]["template"]["spec"]
        scales = bool(cluster.get("enableInTreeAutoscaling"))
        if bool(head.get("automountServiceAccountToken", True)) != scales:
            bad.append("head: automountServiceAccountToken")
        for group in cluster["workerGroupSpecs"]:
            worker = group["template"]["spec"]
            if worker.get("serviceAccountName") == head.get("serviceAccountName") or worker.get(
                "automountServiceAccountToken", True
            ):
                bad.append(f"{group['groupName']}: the head's account, or a token")
    return bad


def ray_asks_for_a_token(docs: Docs) -> list[str]:
    """whoever reaches an open Ray may run anything"""
    return [j["metadata"]["name"] for j, cluster in clusters(docs) if cluster.get("authOptions", {}).get("mode") != "token"]


def the_network_is_closed(docs: Docs) -> list[str]:
    """deny by default; no rule from or to everywhere but HTTPS (and 6443, from the head), and that not to the metadata service"""
    bad = []
    policies = of_kind(docs, "NetworkPolicy")
    closed = [
        p
        for p in policies
        if p["spec"]["podSelector"] == {}
        and set(p["spec"]["policyTypes"]) == {"Ingress", "Egress"}
        and not p["spec"].get("ingress")
        and not p["spec"].get("egress")
    ]
    if not closed:
        bad.append("nothing denies by default")
    for policy in policies:
        name = policy["metadata"]["name"]
        entries = policy["spec"].get("ingress", [])
        if any(not entry.get("from") or any("ipBlock" in peer for peer in entry["from"]) for entry in entries):
            bad.append(f"{name}: ingress from anywhere")
        for rule in policy["spec"].get("egress", []):
            for peer in rule.get("to") or [{"ipBlock": {}}]:
                if "ipBlock" not in peer:
                    continue
                block, ports = peer["ipBlock"], {p["port"] for p in rule.get("ports", [])}
                if block.get("cidr") in HELPERS:
                    opened = HELPERS[block["cidr"]]
                else:
                    opened = {6443} if policy["spec"]["podSelector"] == {"matchLabels": {"atlas-dist/role": "head"}} else {443}
                    if METADATA_SERVICE not in block.get("except", []):
                        bad.append(f"{name}: egress to the metadata service")
                if ports != opened:
                    bad.append(f"{name}: egress to anywhere")
    wanted = [{"matchLabels": {"app.kubernetes.io/component": p.labels.get("app.kubernetes.io/component")}} for p in pods(docs)]
    chosen = [p["spec"]["podSelector"] for p in policies]
    return bad + ["a pod without a policy of its own" for w in wanted if w not in chosen]


def namespaces_agree(docs: Docs) -> list[str]:
    """one namespace for all, with the restricted pod security level"""
    names = {d["metadata"]["name"] for d in of_kind(docs, "Namespace")}
    bad = [
        f"{d['kind']} {d['metadata']['name']}"
        for d in docs
        if d["kind"] not in CLUSTER_WIDE and d["metadata"].get("namespace") not in names
    ]
    levels = [d["metadata"].get("labels", {}).get("pod-security.kubernetes.io/enforce") for d in of_kind(docs, "Namespace")]
    return bad + ["the namespace is not restricted" for level in levels if level != "restricted"]


def the_head_has_a_disruption_budget(docs: Docs) -> list[str]:
    """and the budget's selector finds it, and finds no worker"""
    budgets = of_kind(docs, "PodDisruptionBudget")
    bad = []
    for pod in pods(docs):
        found = [b for b in budgets if b["spec"]["selector"]["matchLabels"].items() <= pod.labels.items()]
        if bool(found) != pod.where.endswith("/head"):
            bad.append(pod.where)
    return bad


def runs_are_retried_and_cleaned_up(docs: Docs) -> list[str]:
    """the operator's own rules for a RayJob that is retried and leaves nothing behind"""
    bad = []
    for job in of_kind(docs, "RayJob"):
        spec = job["spec"]
        facts = {
            "backoffLimit": spec.get("backoffLimit", 0) >= 1,
            "shutdownAfterJobFinishes": spec.get("shutdownAfterJobFinishes") is True,
            "GPUs are held after the end": spec.get("ttlSecondsAfterFinished", 0) <= 60,
            "a rule of deletionStrategy cannot match STOPPED, and excludes shutdownAfterJobFinishes": "deletionStrategy"
            not in spec,
            "clusterSelector excludes backoffLimit": "clusterSelector" not in spec,
            "preRunningDeadlineSeconds": spec.get("preRunningDeadlineSeconds", 0) > 0,
            "submissionMode": spec.get("submissionMode", "K8sJobMode") == "K8sJobMode",
            "the submitter never restarts": spec.get("submitterPodTemplate", {}).get("spec", {}).get("restartPolicy") == "Never",
        }
        bad += [name for name, kept in facts.items() if not kept]
    return bad


def what_must_not_be_retried_is_not(docs: Docs) -> list[str]:
    """the driver knows that KubeRay would start it again, and few starts are made in all"""
    bad = []
    for job in of_kind(docs, "RayJob"):
        head = job["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"][0]
        env = {e["name"]: e.get("value") for e in head.get("env", [])}
        if env.get(RETRIED_BY) != "kuberay":
            bad.append(f"{job['metadata']['name']}: {RETRIED_BY}")
        if job["spec"].get("backoffLimit", 0) > 10:
            bad.append(f"{job['metadata']['name']}: backoffLimit")
    return bad


def lost_nodes_are_left_soon(docs: Docs) -> list[str]:
    """a pod on a node that does not answer is given up in time for KubeRay, which waits 300 s for a head"""
    bad = []
    for pod in pods(docs):
        waits = {t.get("key"): t.get("tolerationSeconds", 300) for t in pod.spec.get("tolerations", [])}
        bad += [f"{pod.where}: {key}" for key in LOST if waits.get(key, 300) > 60]
    return bad


def services_find_their_pods(docs: Docs) -> list[str]:
    """KubeRay's services select by labels of its own, which a template may override but must not"""
    own = ("app.kubernetes.io/name", "app.kubernetes.io/created-by")
    return [f"{p.where}: {k}" for p in pods(docs) if p.ray for k in p.labels if k in own or k.startswith("ray.io/")]


def runs_that_wait_for_nodes_have_a_deadline(docs: Docs) -> list[str]:
    """with an autoscaler a cluster without workers counts as ready, so preRunningDeadlineSeconds never ends it"""
    return [
        job["metadata"]["name"]
        for job in of_kind(docs, "RayJob")
        if job["spec"]["rayClusterSpec"].get("enableInTreeAutoscaling") and not job["spec"].get("activeDeadlineSeconds")
    ]


def stopping_leaves_time_for_a_checkpoint(docs: Docs) -> list[str]:
    """grace period > wait of `ray job stop` > 3 s; both kinds of pods have something to do before they stop"""
    bad = []
    for pod in pods(docs):
        if not pod.ray:
            continue
        grace = pod.spec.get("terminationGracePeriodSeconds", 30)
        env = {e["name"]: e.get("value", "") for e in pod.containers[0].get("env", [])}
        wait = int(env.get("RAY_JOB_STOP_WAIT_TIME_S", "3"))
        if "preStop" not in pod.containers[0].get("lifecycle", {}) or grace < 60:
            bad.append(pod.where)
        if pod.where.endswith("/head") and not 30 <= wait < grace:
            bad.append(f"{pod.where}: waits {wait} of {grace} s")
    return bad


def nothing_secret_is_written_down(docs: Docs) -> list[str]:
    """no Secret objects, no environment value whose name sounds like one"""
    bad = [f"{d['kind']} {d['metadata']['name']}" for d in of_kind(docs, "Secret")]
    words = ("KEY", "TOKEN", "SECRET", "PASSWORD")
    return bad + [
        f"{n}: {e['name']}"
        for n, c in containers(docs)
        for e in c.get("env", [])
        if "value" in e and any(w in e["name"] for w in words)
    ]


def the_head_runs_no_worker(docs: Docs) -> list[str]:
    """it must be there when everything else is gone"""
    return [
        j["metadata"]["name"]
        for j, cluster in clusters(docs)
        if cluster["headGroupSpec"]["rayStartParams"].get("num-cpus") != "0"
    ]


def groups_scale_as_they_say(docs: Docs) -> list[str]:
    """without an autoscaler a fixed size; with one: version 2, restartPolicy Never, and a run that waits for nodes"""
    bad = []
    for _, cluster in clusters(docs):
        scales = bool(cluster.get("enableInTreeAutoscaling"))
        templates = [cluster["headGroupSpec"]["template"], *(g["template"] for g in cluster["workerGroupSpecs"])]
        if scales and (cluster.get("autoscalerOptions", {}).get("version") != "v2"):
            bad.append("autoscaler version")
        if scales and any(t["spec"].get("restartPolicy") != "Never" for t in templates):
            bad.append("restartPolicy")
        for group in cluster["workerGroupSpecs"]:
            low, now, high = (group[k] for k in ("minReplicas", "replicas", "maxReplicas"))
            if not low <= now <= high or (not scales and low != high):
                bad.append(f"{group['groupName']}: {low} <= {now} <= {high}")
    return bad


def run_of(job: dict[str, Any]) -> RunConfig:
    """The configuration that a RayJob's entrypoint means, once the submitter's shell has put its environment in. Raises
    AtlasError."""
    submitter = job["spec"]["submitterPodTemplate"]["spec"]["containers"][0]
    set_there = {e["name"]: e.get("value", "") for e in submitter.get("env", [])}
    words = shlex.split(Template(job["spec"]["entrypoint"]).substitute(set_there))
    assert words[:4] == ["python", "-m", "atlas_dist", "run"], words
    return compose_config(words[4:])


def runs_fit_on_their_nodes(docs: Docs) -> list[str]:
    """the entrypoint is a valid run on S3 whose workers have room"""
    bad = []
    for job in of_kind(docs, "RayJob"):
        try:
            run = run_of(job)
        except (AtlasError, AssertionError) as error:
            bad.append(str(error))
            continue
        cluster, wanted = job["spec"]["rayClusterSpec"], run.cluster
        workers = sum(group.workers for group in run.worker_groups)
        places = 0
        for group in cluster["workerGroupSpecs"]:
            limits = group["template"]["spec"]["containers"][0].get("resources", {}).get("limits", {})
            by_cpu = int(float(limits.get("cpu", 0)) / wanted.cpus_per_worker)
            gpus = float(limits.get("nvidia.com/gpu", 0))
            by_gpu = int(gpus / wanted.gpus_per_worker) if wanted.gpus_per_worker else by_cpu
            places += min(by_cpu, by_gpu) * group["maxReplicas"]
            if gpus and not wanted.gpus_per_worker:
                bad.append(f"{group['groupName']} pays for GPUs that the run does not use")
        facts = {
            f"{workers} workers, room for {places}": workers <= places,
            "cluster=ray": wanted.address == "auto",
            "store and shards on S3": all(url.startswith("s3://") for url in (run.store.url, run.shards.url)),
            "cluster.grows as the autoscaler": wanted.grows == bool(cluster.get("enableInTreeAutoscaling")),
        }
        bad += [name for name, kept in facts.items() if not kept]
    return bad


RULES: tuple[Rule, ...] = (
    every_run_brings_its_submitter_template,
    pods_are_not_root,
    pods_share_nothing_with_the_node,
    containers_are_locked_down,
    containers_can_write_where_they_must,
    containers_say_what_they_need,
    images_are_pinned,
    ray_nodes_are_probed,
    identities_are_ours,
    ray_asks_for_a_token,
    the_network_is_closed,
    namespaces_agree,
    the_head_has_a_disruption_budget,
    runs_are_retried_and_cleaned_up,
    what_must_not_be_retried_is_not,
    lost_nodes_are_left_soon,
    services_find_their_pods,
    runs_that_wait_for_nodes_have_a_deadline,
    stopping_leaves_time_for_a_checkpoint,
    nothing_secret_is_written_down,
    the_head_runs_no_worker,
    groups_scale_as_they_say,
    runs_fit_on_their_nodes,
)

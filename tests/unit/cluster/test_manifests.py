"""Every overlay composes, fits KubeRay's schema and keeps our rules; and each rule notices a copy that breaks it.

Composed by `kubectl kustomize` (or `kustomize`), offline. Real clusters have the last word: none was at hand.
"""

from __future__ import annotations

import copy
import functools
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from tests.unit.cluster import rules
from tests.unit.cluster.rules import RULES, Docs, Rule
from tests.unit.cluster.schema import crd_schema

ROOT = Path(__file__).parents[3]
KUBERAY = ROOT / "cluster/kuberay"
OVERLAYS = sorted(p.parent for p in (KUBERAY / "overlays").glob("*/kustomization.yaml") if p.parent.name != "serve")
"""Those that have a RayJob; the RayService of `serve` is in test_rayservice.py."""
COMPONENTS = sorted(p.parent.name for p in (KUBERAY / "components").glob("*/kustomization.yaml"))
CRDS = ROOT.parent / "shared/kuberay"
names = pytest.mark.parametrize("overlay", [p.name for p in OVERLAYS])


@functools.cache
def composed(overlay: str) -> Docs:
    return kustomized(KUBERAY / "overlays" / overlay)


def kustomized(at: Path) -> Docs:
    folder = str(at)
    for command in (["kubectl", "kustomize", folder], ["kustomize", "build", folder]):
        if shutil.which(command[0]):
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stderr
            return [d for d in yaml.safe_load_all(done.stdout) if d]
    pytest.skip("neither kubectl nor kustomize is installed: the manifests are not composed here")


def rayjob(docs: Docs) -> dict[str, Any]:
    (job,) = rules.of_kind(docs, "RayJob")
    return job


@functools.cache
def schema() -> dict[str, Any]:
    path = CRDS / "ray.io_rayjobs.v1.7.0.yaml.gz"
    if not path.exists():
        pytest.skip(f"no KubeRay CRDs at {CRDS}: the RayJobs are not validated against them here")
    return crd_schema(path, "v1")


def test_there_are_eight_overlays() -> None:
    assert [p.name for p in OVERLAYS] == ["cpu-smoke", "gpu", "kueue", "spot", "spot-aks", "spot-eks", "spot-gke", "volcano"]


def keeps_every_rule(docs: Docs) -> None:
    complaints = {rule.__name__: found for rule in RULES if (found := rule(docs))}
    assert not complaints, complaints


def fits_the_schema(docs: Docs) -> None:
    validator = jsonschema.Draft202012Validator(schema())
    errors = [f"{e.json_path}: {e.message[:200]}" for e in validator.iter_errors(rayjob(docs))]
    assert not errors, errors


@names
def test_an_overlay_keeps_every_rule(overlay: str) -> None:
    keeps_every_rule(composed(overlay))


@names
def test_an_overlay_fits_kuberays_schema(overlay: str) -> None:
    fits_the_schema(composed(overlay))


@functools.cache
def over_gpu(component: str) -> Docs:
    """The gpu overlay with one more component, in a copy of the folder."""
    with tempfile.TemporaryDirectory() as folder:
        copied = Path(folder) / "kuberay"
        shutil.copytree(KUBERAY, copied)
        if component in WITHOUT_GPU:
            base, components = "../../base", WITHOUT_GPU[component]
        else:
            base, components = "../gpu", [component]
        own = copied / "overlays/tried"
        own.mkdir()
        tried = {"resources": [base], "components": [f"../../components/{name}" for name in components]}
        tried["images"] = [{"name": "atlas-dist", "newName": "registry.example.com/atlas-dist", "newTag": "0.1.0-cuda"}]  # type: ignore[list-item]
        (own / "kustomization.yaml").write_text(yaml.safe_dump(tried))
        return kustomized(own)


SPOT = {name: ["autoscaler", name] for name in COMPONENTS if name.startswith("spot-")}
WITHOUT_GPU = {"gpu": ["gpu"], "autoscaler": ["autoscaler"], **SPOT}
"""Components that are not for the gpu overlay, with what they need."""


@pytest.mark.parametrize("component", COMPONENTS)
def test_a_component_fits_the_schema_and_keeps_the_rules(component: str) -> None:
    """The workers of the base's own entrypoint do not fit on what these two say: an overlay has the entrypoint for them."""
    docs = over_gpu(component)
    fits_the_schema(docs)
    entrypoint = {rules.runs_fit_on_their_nodes} if component in WITHOUT_GPU else set()
    complaints = {rule.__name__: found for rule in RULES if rule not in entrypoint and (found := rule(docs))}
    assert not complaints, complaints


def test_every_component_is_named_in_the_administrators_list_or_used_by_an_overlay() -> None:
    texts = [p.read_text() for p in (*KUBERAY.glob("*/kustomization.yaml"), *KUBERAY.glob("overlays/*/kustomization.yaml"))]
    texts.append((ROOT / "docs/operations.md").read_text())
    assert not [name for name in COMPONENTS if not any(f"components/{name}" in text for text in texts)]


# ------------------------------------------------------------------------------------------ the administrator's part, the user's


def test_the_users_part_is_one_file_of_ten_lines_that_brings_a_rayjob_and_nothing_else() -> None:
    assert len((KUBERAY / "user/kustomization.yaml").read_text().splitlines()) <= 10
    docs = kustomized(KUBERAY / "user")
    assert [d["kind"] for d in docs] == ["RayJob"]
    admins = kustomized(KUBERAY / "admin")
    assert "RayJob" not in {d["kind"] for d in admins}
    together = [*admins, *docs]
    keeps_every_rule(together)
    fits_the_schema(together)


def test_the_place_of_the_store_is_the_administrators_and_reaches_the_run() -> None:
    """KubeRay puts the entrypoint, unquoted, into a bash of the submitter: that one knows ATLAS_PLACE."""
    docs = kustomized(KUBERAY / "user")
    assert "BUCKET" not in (KUBERAY / "user/kustomization.yaml").read_text()
    assert rules.run_of(rayjob(docs)).store.url == "s3://BUCKET/atlas"
    rayjob(docs)["spec"]["submitterPodTemplate"]["spec"]["containers"][0]["env"].pop()
    with pytest.raises(KeyError, match="ATLAS_PLACE"):
        rules.run_of(rayjob(docs))


# ----------------------------------------------------------------------------------------------------- what single things are for


def worker_of(docs: Docs) -> Any:
    return rayjob(docs)["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["template"]


@pytest.mark.parametrize(
    ("overlay", "workers", "head"),
    [
        ("spot", {"karpenter.sh/capacity-type": "spot"}, {"karpenter.sh/capacity-type": "on-demand"}),
        ("spot-eks", {"eks.amazonaws.com/capacityType": "SPOT"}, {"eks.amazonaws.com/capacityType": "ON_DEMAND"}),
        ("spot-gke", {"cloud.google.com/gke-spot": "true"}, ("cloud.google.com/gke-spot", "DoesNotExist")),
        ("spot-aks", {"kubernetes.azure.com/scalesetpriority": "spot"}, ("kubernetes.azure.com/scalesetpriority", "NotIn")),
    ],
)
def test_workers_go_to_spot_nodes_and_the_head_does_not(
    overlay: str, workers: dict[str, str], head: dict[str, str] | tuple[str, str]
) -> None:
    cluster = rayjob(composed(overlay))["spec"]["rayClusterSpec"]
    of_head = cluster["headGroupSpec"]["template"]["spec"]
    assert worker_of(composed(overlay))["spec"]["nodeSelector"] == workers
    if isinstance(head, dict):
        assert of_head["nodeSelector"] == head
    else:
        required = of_head["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
        (expression,) = required["nodeSelectorTerms"][0]["matchExpressions"]
        assert (expression["key"], expression["operator"]) == head
    if overlay in ("spot-gke", "spot-aks"):  # clouds that taint spot nodes
        assert next(iter(workers)) in {t["key"] for t in worker_of(composed(overlay))["spec"]["tolerations"]}


def test_the_gpu_overlay_runs_the_papers_experiment_in_one_zone() -> None:
    run = rules.run_of(rayjob(composed("gpu")))
    assert (run.backbone.name, run.train.precision.value, run.cluster.gpus_per_worker) == ("vilt-b32-mlm", "bf16", 1)
    (term,) = worker_of(composed("gpu"))["spec"]["affinity"]["podAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    assert term["topologyKey"] == "topology.kubernetes.io/zone"
    assert term["matchLabelKeys"] == ["ray.io/cluster"], "or all runs of the namespace would share one zone"


def test_fast_networks_are_asked_for_by_device() -> None:
    for component, device in (("efa", "vpc.amazonaws.com/efa"), ("rdma", "rdma/rdma_shared_device_a")):
        resources = worker_of(over_gpu(component))["spec"]["containers"][0]["resources"]
        assert resources["requests"][device] == resources["limits"][device]


def test_the_autoscaler_reaches_the_api_server_whatever_the_network_judges_by() -> None:
    """443 is the service's port; after the address was translated it is 6443; and Cilium knows the server by name only."""
    policies = {p["metadata"]["name"]: p["spec"] for p in rules.of_kind(composed("spot"), "NetworkPolicy")}
    (rule,) = policies["head-to-api-server"]["egress"]
    assert policies["head-to-api-server"]["podSelector"] == {"matchLabels": {"atlas-dist/role": "head"}}
    assert [p["port"] for p in rule["ports"]] == [6443]
    (cilium,) = rules.of_kind(over_gpu("network-cilium"), "CiliumNetworkPolicy")
    assert cilium["spec"]["egress"] == [{"toEntities": ["kube-apiserver"]}]
    assert cilium["spec"]["endpointSelector"] == {"matchLabels": {"atlas-dist/role": "head"}}


@pytest.mark.parametrize(
    ("component", "namespace", "port"),
    [("network-minio", "minio", 9000), ("network-mlflow", "mlflow", 5000), ("loki", "monitoring", 3100)],
)
def test_what_lies_in_the_cluster_is_reached_by_namespace_and_port(component: str, namespace: str, port: int) -> None:
    (rule,) = policy(over_gpu(component), component)["spec"]["egress"]
    assert rule["to"] == [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": namespace}}}]
    assert [p["port"] for p in rule["ports"]] == [port]


def test_prometheus_finds_the_pods_of_our_namespace() -> None:
    docs = over_gpu("prometheus")
    (monitor,) = rules.of_kind(docs, "PodMonitor")
    assert monitor["spec"]["namespaceSelector"] == {"matchNames": ["atlas-dist"]}
    wanted = monitor["spec"]["selector"]["matchLabels"].items()
    assert all(wanted <= pod.labels.items() for pod in rules.pods(docs) if pod.ray)
    ports = {p["name"] for pod in rules.pods(docs) if pod.ray for p in pod.containers[0]["ports"]}
    assert {e["port"] for e in monitor["spec"]["podMetricsEndpoints"]} <= ports


def test_the_log_shipper_reads_the_files_that_ray_writes() -> None:
    (config,) = rules.of_kind(over_gpu("loki"), "ConfigMap")
    shipped = yaml.safe_load(config["data"]["fluent-bit.yaml"])
    assert "worker-*.err" in shipped["pipeline"]["inputs"][0]["path"]
    assert [p.containers[-1]["name"] for p in rules.pods(over_gpu("loki")) if p.ray] == ["log-shipper", "log-shipper"]


def test_a_worker_group_waits_for_all_its_pods_in_a_queue() -> None:
    for overlay, label, file, kind in (
        ("kueue", "kueue.x-k8s.io/queue-name", "queues.yaml", "LocalQueue"),
        ("volcano", "volcano.sh/queue-name", "queue.yaml", "Queue"),
    ):
        queues = list(yaml.safe_load_all((KUBERAY / "overlays" / overlay / file).read_text()))
        (queue,) = [q for q in queues if q["kind"] == kind]
        assert rayjob(composed(overlay))["metadata"]["labels"][label] == queue["metadata"]["name"]


def test_the_operators_values_give_a_head_more_time_than_the_operators_default() -> None:
    values = yaml.safe_load((KUBERAY / "admin/operator-values.yaml").read_text())
    assert int({e["name"]: e["value"] for e in values["env"]}["RAYJOB_STATUS_CHECK_TIMEOUT_SECONDS"]) >= 900
    assert {g["name"]: g["enabled"] for g in values["featureGates"]}["RayCronJob"]


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("spec/backofLimit", 3),
        ("spec/backoffLimit", "three"),
        ("spec/rayClusterSpec/authOptions/mode", "password"),
        ("spec/rayClusterSpec/workerGroupSpecs/0/replica", 1),
        ("spec/rayClusterSpec/headGroupSpec/template/spec/containers/0/resource", {}),
        ("spec/submitterPodTemplate/spec/containers/0/securityContext/capabilities/drop", "ALL"),
    ],
)
def test_the_schema_notices_a_slip(path: str, value: object) -> None:
    job = copy.deepcopy(rayjob(composed("gpu")))
    *parents, last = path.split("/")
    functools.reduce(lambda at, key: at[int(key)] if isinstance(at, list) else at[key], parents, job)[last] = value
    assert not jsonschema.Draft202012Validator(schema()).is_valid(job)


def head(docs: Docs) -> Any:
    return rayjob(docs)["spec"]["rayClusterSpec"]["headGroupSpec"]


def group(docs: Docs) -> Any:
    return rayjob(docs)["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]


def pod(docs: Docs) -> Any:
    return group(docs)["template"]["spec"]


def container(docs: Docs) -> Any:
    return pod(docs)["containers"][0]


def kind(docs: Docs, name: str) -> Any:
    return rules.of_kind(docs, name)[0]


def policy(docs: Docs, name: str) -> Any:
    return next(p for p in rules.of_kind(docs, "NetworkPolicy") if p["metadata"]["name"] == name)


def words(docs: Docs, old: str, new: str) -> None:
    spec = rayjob(docs)["spec"]
    assert old in spec["entrypoint"]
    spec["entrypoint"] = spec["entrypoint"].replace(old, new)


Spoil = Callable[[Docs], object]
BROKEN: list[tuple[Rule, Spoil]] = [
    (rules.every_run_brings_its_submitter_template, lambda d: rayjob(d)["spec"].pop("submitterPodTemplate")),
    (rules.pods_are_not_root, lambda d: pod(d)["securityContext"].update(runAsNonRoot=False)),
    (rules.pods_are_not_root, lambda d: pod(d)["securityContext"].update(runAsUser=0)),
    (rules.pods_are_not_root, lambda d: pod(d)["securityContext"].pop("seccompProfile")),
    (rules.pods_share_nothing_with_the_node, lambda d: pod(d).update(hostNetwork=True)),
    (rules.pods_share_nothing_with_the_node, lambda d: pod(d)["volumes"].append({"name": "x", "hostPath": {"path": "/"}})),
    (rules.containers_are_locked_down, lambda d: container(d)["securityContext"].update(readOnlyRootFilesystem=False)),
    (rules.containers_are_locked_down, lambda d: container(d)["securityContext"].update(privileged=True)),
    (rules.containers_are_locked_down, lambda d: container(d)["securityContext"]["capabilities"].update(add=["SYS_ADMIN"])),
    (rules.containers_are_locked_down, lambda d: rayjob(d)["spec"]["rayClusterSpec"]["autoscalerOptions"].pop("securityContext")),
    (rules.containers_can_write_where_they_must, lambda d: container(d)["volumeMounts"].pop(0)),
    (rules.containers_can_write_where_they_must, lambda d: pod(d)["volumes"][2]["emptyDir"].pop("medium")),
    (rules.containers_can_write_where_they_must, lambda d: pod(d)["volumes"][0]["emptyDir"].pop("sizeLimit")),
    (rules.containers_say_what_they_need, lambda d: container(d)["resources"]["limits"].pop("memory")),
    (rules.containers_say_what_they_need, lambda d: container(d)["resources"]["requests"].pop("nvidia.com/gpu")),
    (rules.images_are_pinned, lambda d: container(d).update(image="registry.example.com/atlas-dist:latest")),
    (rules.images_are_pinned, lambda d: container(d).update(image="registry.example.com:5000/atlas-dist")),
    (rules.ray_nodes_are_probed, lambda d: container(d).pop("livenessProbe")),
    (rules.identities_are_ours, lambda d: pod(d).update(serviceAccountName="default")),
    (rules.identities_are_ours, lambda d: pod(d).update(serviceAccountName="atlas-dist-head")),
    (rules.identities_are_ours, lambda d: pod(d).update(automountServiceAccountToken=True)),
    (rules.identities_are_ours, lambda d: head(d)["template"]["spec"].update(automountServiceAccountToken=False)),
    (rules.ray_asks_for_a_token, lambda d: rayjob(d)["spec"]["rayClusterSpec"].pop("authOptions")),
    (rules.the_network_is_closed, lambda d: d.remove(kind(d, "NetworkPolicy"))),
    (
        rules.the_network_is_closed,
        lambda d: policy(d, "ray-nodes")["spec"]["ingress"].append({"ports": [{"port": 8265}]}),
    ),
    (
        rules.the_network_is_closed,
        lambda d: policy(d, "ray-nodes")["spec"]["egress"][-1]["to"][0]["ipBlock"].pop("except"),
    ),
    (
        rules.the_network_is_closed,
        lambda d: policy(d, "head-to-api-server")["spec"].update(podSelector={}),
    ),
    (rules.the_network_is_closed, lambda d: group(d)["template"]["metadata"]["labels"].pop("app.kubernetes.io/component")),
    (rules.namespaces_agree, lambda d: rayjob(d)["metadata"].update(namespace="default")),
    (rules.namespaces_agree, lambda d: kind(d, "Namespace")["metadata"]["labels"].clear()),
    (rules.the_head_has_a_disruption_budget, lambda d: d.remove(kind(d, "PodDisruptionBudget"))),
    (
        rules.the_head_has_a_disruption_budget,
        lambda d: group(d)["template"]["metadata"]["labels"].update({"atlas-dist/role": "head"}),
    ),
    (rules.runs_are_retried_and_cleaned_up, lambda d: rayjob(d)["spec"].pop("backoffLimit")),
    (rules.runs_are_retried_and_cleaned_up, lambda d: rayjob(d)["spec"].update(shutdownAfterJobFinishes=False)),
    (rules.runs_are_retried_and_cleaned_up, lambda d: rayjob(d)["spec"].update(ttlSecondsAfterFinished=300)),
    (rules.what_must_not_be_retried_is_not, lambda d: rayjob(d)["spec"].update(backoffLimit=20)),
    (rules.what_must_not_be_retried_is_not, lambda d: head(d)["template"]["spec"]["containers"][0]["env"].pop()),
    (rules.lost_nodes_are_left_soon, lambda d: head(d)["template"]["spec"].pop("tolerations")),
    (rules.lost_nodes_are_left_soon, lambda d: pod(d)["tolerations"].pop(0)),
    (rules.services_find_their_pods, lambda d: head(d)["template"]["metadata"]["labels"].update({"app.kubernetes.io/name": "x"})),
    (rules.runs_that_wait_for_nodes_have_a_deadline, lambda d: rayjob(d)["spec"].pop("activeDeadlineSeconds")),
    (rules.runs_are_retried_and_cleaned_up, lambda d: rayjob(d)["spec"].update(deletionStrategy={"deletionRules": []})),
    (rules.runs_are_retried_and_cleaned_up, lambda d: rayjob(d)["spec"].update(submissionMode="SidecarMode")),
    (rules.stopping_leaves_time_for_a_checkpoint, lambda d: head(d)["template"]["spec"].pop("terminationGracePeriodSeconds")),
    (rules.stopping_leaves_time_for_a_checkpoint, lambda d: head(d)["template"]["spec"]["containers"][0]["env"].pop(2)),
    (rules.stopping_leaves_time_for_a_checkpoint, lambda d: container(d).pop("lifecycle")),
    (rules.nothing_secret_is_written_down, lambda d: container(d)["env"].append({"name": "AWS_SECRET_ACCESS_KEY", "value": "x"})),
    (rules.nothing_secret_is_written_down, lambda d: d.append({"kind": "Secret", "metadata": {"name": "s"}})),
    (rules.the_head_runs_no_worker, lambda d: head(d)["rayStartParams"].pop("num-cpus")),
    (rules.groups_scale_as_they_say, lambda d: rayjob(d)["spec"]["rayClusterSpec"]["autoscalerOptions"].pop("version")),
    (rules.groups_scale_as_they_say, lambda d: pod(d).update(restartPolicy="Always")),
    (rules.groups_scale_as_they_say, lambda d: group(d).update(replicas=9)),
    (rules.runs_fit_on_their_nodes, lambda d: words(d, "train.workers=4", "train.workers=8")),
    (rules.runs_fit_on_their_nodes, lambda d: words(d, "train.workers=4", "train.wrokers=4")),
    (rules.runs_fit_on_their_nodes, lambda d: words(d, "cluster.grows=true", "cluster.grows=false")),
    (rules.runs_fit_on_their_nodes, lambda d: words(d, "gpus_per_worker=1", "gpus_per_worker=0")),
    (rules.runs_fit_on_their_nodes, lambda d: words(d, "store.url=s3://BUCKET/atlas", "store.url=/mnt/store")),
]


@pytest.mark.parametrize(("rule", "spoil"), BROKEN, ids=[f"{n}-{rule.__name__}" for n, (rule, _) in enumerate(BROKEN)])
def test_a_rule_notices_a_copy_that_breaks_it(rule: Rule, spoil: Spoil) -> None:
    docs = copy.deepcopy(composed("spot"))
    assert not rule(docs)
    spoil(docs)
    assert rule(docs)


def test_every_rule_has_a_broken_copy() -> None:
    assert {rule for rule, _ in BROKEN} == set(RULES)

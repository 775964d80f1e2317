"""Every overlay composes, fits KubeRay's schema and keeps our rules; and each rule notices a copy that breaks it.

Composed by `kubectl kustomize` (or `kustomize`), offline. Real clusters have the last word: none was at hand.
"""

from __future__ import annotations

import copy
import functools
import shutil
import subprocess
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
OVERLAYS = sorted(p.parent for p in (ROOT / "cluster/kuberay/overlays").glob("*/kustomization.yaml"))
CRDS = ROOT.parent / "shared/kuberay"
names = pytest.mark.parametrize("overlay", [p.name for p in OVERLAYS])


@functools.cache
def composed(overlay: str) -> Docs:
    folder = str(ROOT / "cluster/kuberay/overlays" / overlay)
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


def test_there_are_four_overlays() -> None:
    assert [p.name for p in OVERLAYS] == ["cpu-smoke", "gpu", "kueue", "spot"]


@names
def test_an_overlay_keeps_every_rule(overlay: str) -> None:
    docs = composed(overlay)
    complaints = {rule.__name__: found for rule in RULES if (found := rule(docs))}
    assert not complaints, complaints


@names
def test_an_overlay_fits_kuberays_schema(overlay: str) -> None:
    validator = jsonschema.Draft202012Validator(schema())
    errors = [f"{e.json_path}: {e.message[:200]}" for e in validator.iter_errors(rayjob(composed(overlay)))]
    assert not errors, errors


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
        lambda d: rules.of_kind(d, "NetworkPolicy")[1]["spec"]["ingress"].append({"ports": [{"port": 8265}]}),
    ),
    (
        rules.the_network_is_closed,
        lambda d: rules.of_kind(d, "NetworkPolicy")[1]["spec"]["egress"][-1]["to"][0]["ipBlock"].pop("except"),
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
    (rules.runs_are_retried_and_cleaned_up, lambda d: rayjob(d)["spec"].update(deletionStrategy={"deletionRules": []})),
    (rules.runs_are_retried_and_cleaned_up, lambda d: rayjob(d)["spec"].update(submissionMode="SidecarMode")),
    (rules.stopping_leaves_time_for_a_checkpoint, lambda d: head(d)["template"]["spec"].pop("terminationGracePeriodSeconds")),
    (rules.stopping_leaves_time_for_a_checkpoint, lambda d: head(d)["template"]["spec"]["containers"][0]["env"].pop()),
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

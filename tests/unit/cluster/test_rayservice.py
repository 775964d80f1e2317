"""The RayService: composes, fits KubeRay's schema, keeps the rules of every manifest of ours, and what it starts is our
application with a token, within its pods. No Kubernetes was at hand: real clusters have the last word."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any

import jsonschema
import pytest
import yaml
from ray.serve.schema import ServeDeploySchema

from atlas_dist.serve import app as application
from atlas_dist.serve.guard import TOKEN
from atlas_dist.serve.settings import ServeSettings, read_settings
from tests.unit.cluster import rules
from tests.unit.cluster.rules import RULES, Docs, Rule
from tests.unit.cluster.schema import crd_schema
from tests.unit.cluster.test_manifests import CRDS, composed

OF_RUNS = {rules.stopping_leaves_time_for_a_checkpoint}
"""Nothing here has a checkpoint."""


def service(docs: Docs) -> dict[str, Any]:
    (found,) = rules.of_kind(docs, "RayService")
    return found


def cluster_of(docs: Docs) -> dict[str, Any]:
    found: dict[str, Any] = service(docs)["spec"]["rayClusterConfig"]
    return found


def served(docs: Docs) -> dict[str, Any]:
    """serveConfigV2, as Ray reads it."""
    config: dict[str, Any] = yaml.safe_load(service(docs)["spec"]["serveConfigV2"])
    return config


def settings(docs: Docs) -> ServeSettings:
    (app,) = served(docs)["applications"]
    return read_settings(app["args"])


def container(docs: Docs, group: str = "workerGroupSpecs") -> dict[str, Any]:
    cluster = cluster_of(docs)
    spec = cluster["headGroupSpec"] if group == "headGroupSpec" else cluster["workerGroupSpecs"][0]
    found: dict[str, Any] = spec["template"]["spec"]["containers"][0]
    return found


# ------------------------------------------------------------------------------------------------- rules of a service alone


def it_starts_our_application(docs: Docs) -> list[str]:
    """serveConfigV2 is one that Ray takes, and names the builder of this repository with valid settings"""
    (app,) = ServeDeploySchema.model_validate(served(docs)).applications
    module, _, name = (app.import_path or "").partition(":")
    return [] if module == application.__name__ and hasattr(application, name) else [str(app.import_path)]


def every_ray_container_has_the_token_from_a_secret(docs: Docs) -> list[str]:
    """the application is built on any node; without a token it refuses to"""
    bad = []
    for group in ("headGroupSpec", "workerGroupSpecs"):
        env = {e["name"]: e for e in container(docs, group).get("env", [])}
        if "secretKeyRef" not in env.get(TOKEN, {}).get("valueFrom", {}):
            bad.append(group)
    return bad + (["open: true"] if settings(docs).open else [])


def replicas_fit_on_their_pods(docs: Docs) -> list[str]:
    """each with its cores and GPUs on one pod"""
    wanted, bad, places = settings(docs), [], 0
    for group in cluster_of(docs)["workerGroupSpecs"]:
        limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
        gpus = float(limits.get("nvidia.com/gpu", 0))
        by_gpu = int(gpus / wanted.gpus_per_replica) if wanted.gpus_per_replica else 10**6
        places += min(int(float(limits["cpu"]) / wanted.cpus_per_replica), by_gpu) * group["minReplicas"]
        if gpus and not wanted.gpus_per_replica:
            bad.append("GPUs that nobody uses")
    return bad + ([f"{wanted.replicas} replicas, room for {places}"] if wanted.replicas > places else [])


def requests_reach_a_pod_that_answers(docs: Docs) -> list[str]:
    """its port is the one that Serve listens on, that is probed, and that the policy opens for namespaces that may ask"""
    port = served(docs)["http_options"]["port"]
    worker = container(docs)
    (policy,) = [p for p in rules.of_kind(docs, "NetworkPolicy") if p["metadata"]["name"] == "serve"]
    (rule,) = policy["spec"]["ingress"]
    labels = cluster_of(docs)["workerGroupSpecs"][0]["template"]["metadata"]["labels"]
    facts = {
        "container": {"name": "serve", "containerPort": port} in worker["ports"],
        "probe": worker["readinessProbe"]["httpGet"] == {"path": "/-/healthz", "port": port},
        "policy": [p["port"] for p in rule["ports"]] == [port],
        "who": rule["from"] == [{"namespaceSelector": {"matchLabels": {"atlas-dist/asks": "true"}}}],
        "policy's pods": policy["spec"]["podSelector"]["matchLabels"].items() <= labels.items(),
        "host": served(docs)["http_options"]["host"] == "0.0.0.0",
        "the head takes none": service(docs)["spec"].get("excludeHeadPodFromServeSvc") is True,
    }
    return [name for name, kept in facts.items() if not kept]


def the_bank_is_there_and_read_only(docs: Docs) -> list[str]:
    """where the settings look for it"""
    mounts = {m["mountPath"]: m for m in container(docs)["volumeMounts"]}
    return [] if mounts.get(settings(docs).bank, {}).get("readOnly") is True else [settings(docs).bank]


OWN: tuple[Rule, ...] = (
    it_starts_our_application,
    every_ray_container_has_the_token_from_a_secret,
    replicas_fit_on_their_pods,
    requests_reach_a_pod_that_answers,
    the_bank_is_there_and_read_only,
)


@pytest.mark.parametrize("rule", [*(rule for rule in RULES if rule not in OF_RUNS), *OWN], ids=lambda rule: rule.__name__)
def test_the_service_keeps_the_rule(rule: Rule) -> None:
    docs = composed("serve")
    assert len(list(rules.pods(docs))) == 2, "the rules see its pods"
    assert not rule(docs)


def words(docs: Docs, old: str, new: str) -> None:
    spec = service(docs)["spec"]
    assert old in spec["serveConfigV2"]
    spec["serveConfigV2"] = spec["serveConfigV2"].replace(old, new)


def policies(docs: Docs) -> Any:
    return next(p for p in rules.of_kind(docs, "NetworkPolicy") if p["metadata"]["name"] == "serve")["spec"]


BROKEN: list[tuple[Rule, Callable[[Docs], object]]] = [
    (it_starts_our_application, lambda d: words(d, "serve.app:app", "serve.app:application")),
    (every_ray_container_has_the_token_from_a_secret, lambda d: container(d)["env"].pop()),
    (every_ray_container_has_the_token_from_a_secret, lambda d: container(d, "headGroupSpec")["env"].pop()),
    (every_ray_container_has_the_token_from_a_secret, lambda d: words(d, "bank: /bank", "bank: /bank, open: true")),
    (replicas_fit_on_their_pods, lambda d: words(d, "replicas: 2", "replicas: 3")),
    (replicas_fit_on_their_pods, lambda d: words(d, "cpus_per_replica: 3", "cpus_per_replica: 6")),
    (replicas_fit_on_their_pods, lambda d: words(d, "max_batch", "gpus_per_replica: 1, max_batch")),
    (requests_reach_a_pod_that_answers, lambda d: words(d, "port: 8000", "port: 8001")),
    (requests_reach_a_pod_that_answers, lambda d: policies(d)["ingress"][0].update({"from": [{"namespaceSelector": {}}]})),
    (requests_reach_a_pod_that_answers, lambda d: policies(d)["podSelector"]["matchLabels"].update(x="y")),
    (requests_reach_a_pod_that_answers, lambda d: service(d)["spec"].pop("excludeHeadPodFromServeSvc")),
    (the_bank_is_there_and_read_only, lambda d: words(d, "bank: /bank", "bank: /banks")),
    (the_bank_is_there_and_read_only, lambda d: container(d)["volumeMounts"][-1].pop("readOnly")),
    (
        rules.pods_are_not_root,
        lambda d: service(d)["spec"]["rayClusterConfig"]["headGroupSpec"]["template"]["spec"].pop("securityContext"),
    ),
    (rules.ray_asks_for_a_token, lambda d: cluster_of(d).pop("authOptions")),
    (rules.ray_nodes_are_probed, lambda d: container(d).pop("readinessProbe")),
    (rules.nothing_secret_is_written_down, lambda d: container(d)["env"].append({"name": TOKEN, "value": "x"})),
]


@pytest.mark.parametrize(("rule", "spoil"), BROKEN, ids=[f"{n}-{rule.__name__}" for n, (rule, _) in enumerate(BROKEN)])
def test_a_rule_notices_a_copy_that_breaks_it(rule: Rule, spoil: Callable[[Docs], object]) -> None:
    docs = copy.deepcopy(composed("serve"))
    spoil(docs)
    assert rule(docs)


def test_a_wrong_setting_of_the_application_is_noticed() -> None:
    docs = copy.deepcopy(composed("serve"))
    words(docs, "max_batch", "max_bach")
    with pytest.raises(Exception, match="did you mean max_batch"):
        settings(docs)


@functools.cache
def schema(kind: str) -> dict[str, Any]:
    path = CRDS / f"ray.io_{kind}.v1.7.0.yaml.gz"
    if not path.exists():
        pytest.skip(f"no {path.name} at {CRDS}: that part is not validated here")
    return crd_schema(path, "v1")


def test_its_cluster_fits_kuberays_schema() -> None:
    """The `rayClusterConfig` of a RayService is the `spec` of a RayCluster."""
    cluster = cluster_of(composed("serve"))
    validator = jsonschema.Draft202012Validator(schema("rayclusters"))
    whole = {"apiVersion": "ray.io/v1", "kind": "RayCluster", "metadata": {}, "spec": cluster}
    assert not [f"{e.json_path}: {e.message[:200]}" for e in validator.iter_errors(whole)]


def test_it_fits_kuberays_schema() -> None:
    validator = jsonschema.Draft202012Validator(schema("rayservices"))
    assert not [f"{e.json_path}: {e.message[:200]}" for e in validator.iter_errors(service(composed("serve")))]

"""`atlas-dist manifest`: what it writes passes what our own overlays pass, fits the settings that it was given, and starts the
run that the same words start here."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from atlas_dist.app.manifest import LONGEST_NAME, Place, as_yaml, components, manifest_of
from atlas_dist.compose import compose_config
from atlas_dist.errors import ConfigError
from tests.kits.shell import say
from tests.unit.cluster import rules
from tests.unit.cluster.rules import RULES
from tests.unit.cluster.test_manifests import KUBERAY, composed, kustomized, rayjob, schema

PLACES = ["store=s3", "store.url=s3://bucket/atlas", "shards=s3", "shards.url=s3://bucket/shards"]
ONE_GPU = ["cluster=ray", "cluster.cpus_per_worker=8", "cluster.gpus_per_worker=1"]
POOLS = "cluster.pools={big:{workers:8,takes:[upstream],labels:{market:reserved}},small:{workers:1,takes:[evaluation,transfer]}}"
IMAGE = "registry.example.com/atlas-dist:0.1.0-cuda"


def written(*words: str, **place: Any) -> dict[str, Any]:
    """The manifest as a program reads it back."""
    words = (*PLACES, *words)
    made = manifest_of(compose_config(words), words, Place(**{"image": IMAGE, **place}))
    found: dict[str, Any] = yaml.safe_load(as_yaml(made))
    assert found == made
    return found


def passes_everything(job: dict[str, Any]) -> None:
    docs = [*kustomized(KUBERAY / "admin"), job]
    complaints = {rule.__name__: found for rule in RULES if (found := rule(docs))}
    assert not complaints, complaints
    errors = [f"{e.json_path}: {e.message[:200]}" for e in jsonschema.Draft202012Validator(schema()).iter_errors(job)]
    assert not errors, errors


CASES: dict[str, tuple[list[str], dict[str, Any]]] = {
    "CPU workers": (["experiment=toy", "cluster=ray", "train.workers=3", "cluster.gpus_per_worker=0"], {}),
    "the paper on 16 GPUs": (["experiment=paper", "train.workers=16", *ONE_GPU], {}),
    "on nodes of four": (["experiment=paper", "train.workers=16", *ONE_GPU], {"per_pod": 4, "memory": 48}),
    "nodes that come and go": (
        ["experiment=real_small", "train.workers=4", "train.min_workers=1", "cluster.grows=true", *ONE_GPU],
        {"parts": ("spot-gke",)},
    ),
    "pools": (["experiment=real_small", POOLS, *ONE_GPU], {}),
    "a fast network, a queue, a private registry": (
        ["experiment=paper", "train.workers=16", *ONE_GPU],
        {"parts": ("gpu", "efa"), "queue": "atlas", "pull_secret": "registry"},
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_what_it_writes_passes_the_schema_and_every_rule(name: str) -> None:
    words, place = CASES[name]
    passes_everything(written(*words, **place))


def test_the_pods_are_as_large_as_the_workers_need() -> None:
    (group,) = written(*CASES["the paper on 16 GPUs"][0])["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    container = group["template"]["spec"]["containers"][0]
    assert (group["replicas"], group["minReplicas"], group["maxReplicas"]) == (2, 2, 2)
    assert container["image"] == IMAGE
    assert container["resources"]["limits"] | {"ephemeral-storage": ""} == {
        "cpu": "64",
        "memory": "256Gi",
        "nvidia.com/gpu": "8",
        "ephemeral-storage": "",
    }
    (group,) = written(*CASES["on nodes of four"][0], per_pod=4, memory=48)["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
    assert (group["replicas"], limits["nvidia.com/gpu"], limits["memory"]) == (4, "4", "192Gi")


def test_nodes_that_come_and_go_start_with_none_and_take_one_worker_each() -> None:
    words, place = CASES["nodes that come and go"]
    cluster = written(*words, **place)["spec"]["rayClusterSpec"]
    (group,) = cluster["workerGroupSpecs"]
    assert cluster["enableInTreeAutoscaling"]
    assert (group["minReplicas"], group["maxReplicas"]) == (0, 4)
    assert group["template"]["spec"]["nodeSelector"] == {"cloud.google.com/gke-spot": "true"}


def test_each_pool_has_pods_of_its_own_with_its_labels() -> None:
    groups = written(*CASES["pools"][0])["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    assert [(g["groupName"], g["replicas"], g.get("labels")) for g in groups] == [
        ("big", 1, {"market": "reserved"}),
        ("small", 1, None),
    ]


def test_devices_of_a_component_stay_beside_the_sizes() -> None:
    (group,) = written(*ONE_GPU, "experiment=paper", "train.workers=8", parts=("efa",))["spec"]["rayClusterSpec"][
        "workerGroupSpecs"
    ]
    resources = group["template"]["spec"]["containers"][0]["resources"]
    assert resources["requests"]["vpc.amazonaws.com/efa"] == resources["limits"]["vpc.amazonaws.com/efa"] == "4"
    assert resources["limits"]["nvidia.com/gpu"] == "8"


def shells_words(entrypoint: str) -> list[str]:
    """What Ray's job server starts: KubeRay puts the entrypoint as it is into a bash; `ray job submit` joins its words again."""
    script = f"set -e; words=({entrypoint}); printf '%s\\0' \"${{words[@]}}\""
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)
    return done.stdout.split("\0")[:-1]


@pytest.mark.parametrize("odd", [POOLS, "tasks.cifar10.stage1.lr=1e-3", "store.url=s3://bucket/a b;c$d(e)'f", "report=*"])
def test_every_word_reaches_the_run_through_the_submitters_shell(odd: str) -> None:
    words = ["experiment=real_small", *PLACES, "cluster=ray", odd]
    spec = manifest_of(compose_config(words[:-1]), words, Place(IMAGE))["spec"]
    assert shells_words(spec["entrypoint"]) == ["python", "-m", "atlas_dist", "run", *words]


def test_with_a_schedule_it_is_a_cron_job_and_each_run_has_its_day(tmp_path: Path) -> None:
    words = ["experiment=real_small", "run=nightly", "train.workers=8", *ONE_GPU]
    cron = written(*words, schedule="0 3 * * *")
    assert (cron["kind"], cron["spec"]["schedule"], cron["metadata"]["name"]) == ("RayCronJob", "0 3 * * *", "nightly")
    (run,) = [w for w in shells_words(cron["spec"]["jobTemplate"]["entrypoint"]) if w.startswith("run=")]
    day = subprocess.run(["date", "-u", "+%Y%m%d"], capture_output=True, text=True, check=True).stdout.strip()
    assert run.startswith("run=nightly-20")
    assert run in (f"run=nightly-{day}", f"run=nightly-{int(day) - 1}") or run.endswith(day[-4:])
    once = cron["spec"]["jobTemplate"] | {"entrypoint": " ".join(["python -m atlas_dist run", *PLACES, *words])}
    passes_everything({"apiVersion": "ray.io/v1", "kind": "RayJob", "metadata": cron["metadata"], "spec": once})


@pytest.mark.parametrize(
    ("words", "place", "says"),
    [
        (["experiment=toy", "store.url=/mnt/x"], {}, "is a folder, which the pods of a cluster do not share"),
        (["experiment=toy", *PLACES, "cluster=ray", "cluster.gpus_per_worker=0.5"], {}, "a worker has whole GPUs"),
        (["experiment=toy", *PLACES, "cluster=ray"], {"parts": ("spot-aliyun",)}, "no component 'spot-aliyun'"),
        (["experiment=toy", *PLACES, "cluster=ray"], {"name": "42"}, "cannot become the name"),
        (
            ["experiment=toy", *PLACES, "cluster=ray", 'cluster.pools={main:{workers:1,labels:{market:"!spot"}}}'],
            {},
            "pods can be given a label, not the absence of one",
        ),
    ],
)
def test_what_no_cluster_can_run_is_refused(words: list[str], place: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        manifest_of(compose_config(words), words, Place(IMAGE, **place))


def test_names_become_kubernetes_names() -> None:
    assert written("experiment=toy", "cluster=ray", "run=My_Run.v2")["metadata"]["name"] == "my-run-v2"
    assert len(written("experiment=toy", "cluster=ray", name="x" * 80)["metadata"]["name"]) == LONGEST_NAME


def test_every_component_that_changes_a_run_can_be_named() -> None:
    assert {"gpu", "efa", "rdma", "autoscaler", "loki", "spot-aks", "spot-eks", "spot-gke", "spot-karpenter"} == set(components())


def test_on_the_shell_it_is_a_file_that_kubectl_would_take(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without cluster=ray, which it adds, and without an image, which it says."""
    monkeypatch.delenv("ATLAS_IMAGE", raising=False)
    words = ("experiment=toy", *PLACES, "train.workers=2")
    said = say(monkeypatch, capsys, ("manifest", *words))
    assert said.code == 0, said.err
    assert "No image was named" in said.err
    job = yaml.safe_load(said.out)
    assert rules.run_of(job).cluster.address == "auto"
    passes_everything(job)
    monkeypatch.setenv("ATLAS_IMAGE", IMAGE)
    assert say(monkeypatch, capsys, ("manifest", *words)).err == ""


def test_it_makes_of_the_same_settings_what_the_overlay_has() -> None:
    """The overlay for two nodes of eight GPUs, and the command for as many workers: the same pods, probes, hooks, identities."""
    overlay = rayjob(composed("gpu"))["spec"]
    words = overlay["entrypoint"].split()[4:]
    ours = manifest_of(compose_config(words), words, Place(IMAGE, parts=("gpu",)))["spec"]
    assert ours == overlay

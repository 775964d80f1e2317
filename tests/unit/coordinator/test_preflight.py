"""What is refused before a worker starts, and with which exit code. No Ray: nodes are values here."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from dataclasses import replace
from pathlib import Path

import pytest

from atlas_dist import packages
from atlas_dist.compose import compose_config
from atlas_dist.config import ClusterConfig, RunConfig, StoreConfig, load_config
from atlas_dist.config.infrastructure import ShardsConfig
from atlas_dist.coordinator import preflight
from atlas_dist.coordinator.preflight import (
    check_compiler_here,
    check_place,
    check_shards,
    check_store,
    slow_products,
)
from atlas_dist.coordinator.preflight_cluster import (
    NodeReport,
    NodeResources,
    check_nodes,
    check_resources,
    has_labels,
    token,
    workers_that_fit,
)
from atlas_dist.core.manifest import ShardInfo, ShardManifest
from atlas_dist.core.types import TaskKind, WorkerGroupSpec
from atlas_dist.errors import ConfigError, DataError, StoreError
from atlas_dist.packages import cuda_of_torch, driver_too_old, fault_of_device, nvidia_driver
from atlas_dist.store.objects import MemoryStore
from tests.chaos.plans import small_plan

ROOT = Path(__file__).parents[3]
GPUS = ClusterConfig(address="auto", cpus_per_worker=4, gpus_per_worker=1)
BIG_NODE = NodeResources("10.0.0.1", cpus=32, gpus=8)
HERE = NodeReport("driver", versions=(("torch", "2.13.0"),))


def test_a_worker_group_that_fits_is_let_in() -> None:
    check_resources([BIG_NODE], GPUS, [WorkerGroupSpec("main", 8)])
    check_resources(
        [NodeResources("a", 0, 0), NodeResources("b", 4, 1), NodeResources("c", 4, 1)], GPUS, [WorkerGroupSpec("main", 2)]
    )


def test_too_few_gpus_in_all_are_refused() -> None:
    with pytest.raises(ConfigError, match="9 workers need 9 GPU, the cluster has 8") as caught:
        check_resources([replace(BIG_NODE, cpus=64)], GPUS, [WorkerGroupSpec("main", 9)])
    assert caught.value.exit_code == 2


def test_enough_in_all_but_on_no_single_node_is_refused() -> None:
    with pytest.raises(ConfigError, match="0 of 2 fit"):
        check_resources([NodeResources(f"n{i}", cpus=2, gpus=1) for i in range(8)], GPUS, [WorkerGroupSpec("main", 2)])


def test_gpus_on_other_nodes_than_the_cpus_are_refused() -> None:
    with pytest.raises(ConfigError, match="0 of 1 fit"):
        check_resources([NodeResources("cpu", 64, 0), NodeResources("gpu", 1, 8)], GPUS, [WorkerGroupSpec("main", 1)])


def test_bfloat16_on_a_cpu_that_cannot_multiply_in_it_is_told_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    slow = load_config({"train": {"precision": "bf16"}})
    elsewhere = [{"address": "auto"}, {"gpus_per_worker": 1.0}]
    others = [RunConfig(), *(load_config({"train": {"precision": "bf16"}, "cluster": where}) for where in elsewhere)]
    for able, said in ((False, True), (True, False), (None, False)):
        monkeypatch.setattr("atlas_dist.coordinator.preflight.cpu_multiplies_bf16", lambda able=able: able)
        assert ("train.precision=fp32" in slow_products(slow)) is said
        assert [slow_products(config) for config in others] == ["", "", ""]


def test_a_cluster_that_grows_is_waited_for() -> None:
    check_resources([], GPUS.model_copy(update={"grows": True}), [WorkerGroupSpec("main", 64)])


def test_thirds_of_a_cpu_fill_a_cpu() -> None:
    check_resources([NodeResources("a", 1.0, 0)], ClusterConfig(cpus_per_worker=1 / 3), [WorkerGroupSpec("main", 3)])


def test_every_pool_needs_room_beside_the_others() -> None:
    worker_groups = [WorkerGroupSpec("big", 8), WorkerGroupSpec("small", 1)]
    check_resources([BIG_NODE, NodeResources("b", 4, 1)], GPUS, worker_groups)
    with pytest.raises(ConfigError, match="9 workers in 2 pools need 9 GPU, the cluster has 8"):
        check_resources([replace(BIG_NODE, cpus=64)], GPUS, worker_groups)


def test_an_elastic_pool_needs_workers_that_fit_its_fewest() -> None:
    check_resources([BIG_NODE], GPUS, [WorkerGroupSpec("main", 64, min_workers=8)])
    with pytest.raises(ConfigError, match="9 workers need 9 GPU"):
        check_resources([replace(BIG_NODE, cpus=64)], GPUS, [WorkerGroupSpec("main", 64, min_workers=9)])


def test_a_pool_is_seated_on_nodes_with_its_labels_only() -> None:
    """Whoever may sit anywhere leaves the labelled nodes to those who may not."""
    spot, kept = NodeResources("spot", 8, 2, {"market": "spot"}), NodeResources("kept", 8, 2, {"market": "reserved"})
    anywhere, picky = WorkerGroupSpec("anywhere", 2), WorkerGroupSpec("picky", 2, labels={"market": "reserved"})
    check_resources([kept, spot], GPUS, [anywhere, picky])
    with pytest.raises(
        ConfigError, match=r"pool picky needs .* with the labels market=reserved; 0 of 2 fit \(no node has them\)"
    ):
        check_resources([spot, replace(spot, name="spot2")], GPUS, [anywhere, picky])
    with pytest.raises(ConfigError, match="2 of 3 fit"):
        check_resources([kept, spot], GPUS, [WorkerGroupSpec("picky", 3, labels={"market": "!spot"})])


@pytest.mark.parametrize(
    ("wanted", "fits"),
    [
        ({}, True),
        ({"a": "1"}, True),
        ({"a": "!1"}, False),
        ({"a": "in(2,1)"}, True),
        ({"a": "!in(2,3)"}, True),
        ({"b": "1"}, False),
        ({"b": "!1"}, True),
        ({"a": "1", "b": "1"}, False),
    ],
)
def test_label_selectors_mean_what_ray_says(wanted: dict[str, str], fits: bool) -> None:
    assert has_labels({"a": "1"}, wanted) is fits


def test_every_faulty_node_is_named() -> None:
    good = NodeReport("a", versions=HERE.versions)
    check_nodes([good], HERE)
    with pytest.raises(ConfigError, match=r"b lacks deepspeed, webdataset; c lacks torch") as caught:
        check_nodes([good, NodeReport("b", missing=("deepspeed", "webdataset")), NodeReport("c", missing=("torch",))], HERE)
    assert caught.value.exit_code == 2
    with pytest.raises(ConfigError, match=r"b has torch 2\.9\.0, the driver 2\.13\.0"):
        check_nodes([good, NodeReport("b", versions=(("torch", "2.9.0"),))], HERE)
    with pytest.raises(ConfigError, match=r"comes up on every node\. b: no answer"):
        check_nodes([good, NodeReport("b", silent="no answer within 300 s")], HERE)
    with pytest.raises(StoreError, match="b: AuthError") as refused:
        check_nodes([good, replace(good, name="b", trouble="AuthError: no access")], HERE)
    assert refused.value.exit_code == 6


def test_a_gpu_node_with_the_cpu_image_is_refused() -> None:
    reports = [NodeReport("a", versions=HERE.versions), NodeReport("b", versions=HERE.versions, cpu_only=True)]
    check_nodes(reports, HERE)
    with pytest.raises(ConfigError, match="built without CUDA on b"):
        check_nodes(reports, HERE, gpus=True)


class Shards(MemoryStore):
    """A place with one manifest for every task of a plan."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, shards: int, samples: int, size: int) -> None:
        super().__init__("shards")
        each = tuple(ShardInfo(f"{i}.tar", size // shards, samples // shards, "0" * 64, ()) for i in range(shards))
        manifest = ShardManifest("d", "train", TaskKind.SINGLE, 1, ("a", "b"), each)
        monkeypatch.setattr(preflight, "read_manifest", lambda *_: manifest)


def test_a_large_split_needs_a_shard_a_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = small_plan(1)
    check_shards(plan, Shards(monkeypatch, shards=8, samples=1 << 20, size=80 << 30), workers=8)
    with pytest.raises(DataError, match=r"85\.9 GB in 4 shards; 8 workers") as caught:
        check_shards(plan, Shards(monkeypatch, shards=4, samples=1 << 20, size=80 << 30), workers=8)
    assert caught.value.exit_code == 3


def test_a_small_split_may_be_one_shard(monkeypatch: pytest.MonkeyPatch) -> None:
    check_shards(small_plan(1), Shards(monkeypatch, shards=1, samples=4096, size=1 << 20), workers=8)


def test_a_worker_without_a_sample_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match="7 samples for 8 workers"):
        check_shards(small_plan(1), Shards(monkeypatch, shards=1, samples=7, size=1 << 20), workers=8)


class Forgetful(MemoryStore):
    """Lets everybody create everything."""

    def create(self, key: str, data: bytes) -> None:
        self.put(key, data)


def remote(url: str) -> RunConfig:
    return RunConfig(store=StoreConfig(url=url), shards=ShardsConfig(url="s3://bucket/shards"), cluster=GPUS)


def test_a_store_that_lets_two_writers_win_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight, "open_run_store", lambda _: Forgetful("bad"))
    with pytest.raises(StoreError, match="create-if-absent is atomic") as caught:
        check_store(remote("s3://bucket/runs"))
    assert caught.value.exit_code == 6


def test_a_good_store_is_left_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    store = MemoryStore("good")
    monkeypatch.setattr(preflight, "open_run_store", lambda _: store)
    check_store(remote("s3://bucket/runs"))
    with token(store) as seen:
        assert store.get(seen)
    assert not list(store.list(""))


def test_a_store_in_rays_own_folder_is_refused() -> None:
    folder = Path("/tmp/ray/session/runtime_resources/working_dir_files/_ray_pkg_0123")
    with pytest.raises(ConfigError, match="deletes after it"):
        check_place(remote(str(folder / "demo-run/store")), folder)
    check_place(remote("/mnt/shared/store"), folder)
    check_place(remote("s3://bucket/runs"), folder)


@pytest.mark.parametrize("url", ["demo-run/shards", "./shards", "ABSOLUTE/shards"])
def test_shards_in_rays_own_folder_are_refused_before_anything_is_looked_for(url: str, tmp_path: Path) -> None:
    """The default is a folder beside the checkout, which Ray leaves behind: "not packed" would be the wrong advice."""
    folder = tmp_path / "_ray_pkg_0123"
    config = remote("s3://bucket/runs")
    config = config.model_copy(update={"shards": config.shards.model_copy(update={"url": url.replace("ABSOLUTE", str(folder))})})
    with pytest.raises(ConfigError, match=r"shards\.url=.* lies in the folder that Ray unpacked"):
        check_place(config, folder)
    check_place(config, tmp_path / "checkout")


# ----------------------------------------------------------------------------------------------------- drivers and compilers

DRIVER = (
    "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  {}  Release Build  (dvs-builder@U22-I3)\nGCC version:  12.2.0\n"
)


@pytest.mark.parametrize(
    ("driver", "cuda", "needed"),
    [
        ("580.65.06", "13.0", 0),
        ("575.57.08", "13.0", 580),
        ("570.124.06", "13.2", 580),
        ("535.183.01", "12.8", 0),
        ("470.256.02", "12.8", 525),
        ("", "13.0", 0),
        ("575.57.08", "", 0),
    ],
)
def test_a_driver_that_is_too_old_for_torchs_cuda_is_refused(driver: str, cuda: str, needed: int, tmp_path: Path) -> None:
    file = tmp_path / "version"
    if driver:
        file.write_text(DRIVER.format(driver))
    assert nvidia_driver(file) == driver
    assert driver_too_old(driver, cuda) == needed
    report = NodeReport("n1", versions=HERE.versions, driver=nvidia_driver(file), cuda=cuda)
    check_nodes([report], HERE)  # workers on CPUs do not care
    if needed:
        with pytest.raises(ConfigError, match=f"CUDA {cuda}, which needs NVIDIA's driver {needed} or newer; n1 has {driver}"):
            check_nodes([report], HERE, gpus=True)
    else:
        check_nodes([report], HERE, gpus=True)


def test_torchs_cuda_is_known_without_importing_it() -> None:
    import torch

    assert cuda_of_torch() == (torch.version.cuda or "")


def test_compiling_without_a_compiler_is_refused_on_the_nodes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    bare = NodeReport("n1", versions=HERE.versions, compiles_c=False, compiles_cpp=False)
    check_nodes([bare], HERE)
    with pytest.raises(ConfigError, match=r"needs a C\+\+ compiler, and there is none on n1"):
        check_nodes([bare], HERE, compiles=True)
    with pytest.raises(ConfigError, match="needs a C compiler"):
        check_nodes([bare], HERE, compiles=True, gpus=True)
    check_nodes([replace(bare, compiles_c=True)], HERE, compiles=True, gpus=True)
    monkeypatch.setenv("PATH", str(tmp_path))
    for name in ("CC", "CXX"):
        monkeypatch.delenv(name, raising=False)
    check_compiler_here(compose_config(["experiment=toy"]))
    with pytest.raises(ConfigError, match="this machine"):
        check_compiler_here(compose_config(["experiment=toy", "train.compile=true"]))
    (tmp_path / "g++").write_text("#!/bin/sh\n")
    (tmp_path / "g++").chmod(0o755)
    check_compiler_here(compose_config(["experiment=toy", "train.compile=true"]))


def test_what_is_required_is_what_pyproject_installs() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    names = {d.partition(">")[0].partition("=")[0].partition("[")[0].strip() for d in project["dependencies"]}
    assert set(packages.REQUIRED.values()) == names
    assert packages.missing() == []


def test_nothing_is_required_that_nothing_imports() -> None:
    text = "\n".join(path.read_text() for path in (ROOT / "atlas_dist").rglob("*.py"))
    imported = set(re.findall(r"^ *(?:import|from) (\w+)", text, re.MULTILINE))
    assert packages.REQUIRED.keys() <= imported


def test_an_image_without_a_package_is_told_which_in_one_line() -> None:
    run = "import runpy; runpy.run_module('atlas_dist', run_name='__main__')"
    done = subprocess.run([sys.executable, "-S", "-c", run], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    assert "lacks torch, deepspeed" in done.stderr
    assert "Traceback" not in done.stderr


def test_workers_that_fit_a_pool_is_counted_beside_the_others_and_on_its_own_nodes() -> None:
    nodes = [BIG_NODE, NodeResources("b", cpus=8, gpus=2, labels={"market": "spot"})]
    assert workers_that_fit(nodes, GPUS, WorkerGroupSpec("main", 16)) == 10
    assert workers_that_fit(nodes, GPUS, WorkerGroupSpec("main", 4)) == 4
    assert workers_that_fit(nodes, GPUS, WorkerGroupSpec("main", 16), taken=9) == 1
    assert workers_that_fit(nodes, GPUS, WorkerGroupSpec("main", 16, labels={"market": "spot"})) == 2
    assert workers_that_fit([], GPUS, WorkerGroupSpec("main", 16), taken=3) == 0


def test_a_gpu_that_does_not_compute_is_named_with_what_it_stands_on() -> None:
    sick = NodeReport("n1", versions=HERE.versions, driver="580.65.06", cuda="13.0", nccl="2.27.5", gpu_fault="CUDA error: x")
    check_nodes([sick], HERE)  # workers on CPUs do not care
    with pytest.raises(ConfigError, match=r"n1 \(driver 580.65.06, CUDA 13.0, NCCL 2.27.5\): CUDA error: x") as caught:
        check_nodes([sick], HERE, gpus=True)
    assert caught.value.retry, "another node may do"


def test_a_device_is_asked_for_a_product(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    assert fault_of_device("cpu") == ""
    assert fault_of_device("cuda:0") or torch.cuda.is_available(), "a GPU that is not there is a fault"
    true = torch.Tensor.__matmul__
    products = iter((1.0, 2.0))
    monkeypatch.setattr(torch.Tensor, "__matmul__", lambda a, b: true(a, b) * next(products))
    assert fault_of_device("cpu") == "it multiplies wrongly"

"""One owner of the device, on a machine whose CUDA runtime is made up."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch

from atlas_dist import device
from atlas_dist.compose import compose_config
from atlas_dist.config import ClusterConfig, RunConfig
from atlas_dist.coordinator.local_gpus import LocalGpus, placed_here
from atlas_dist.coordinator.ray_cluster import _environment
from atlas_dist.errors import ConfigError


def config_of(*words: str) -> RunConfig:
    return compose_config(list(words))


@pytest.fixture(autouse=True)
def one_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A machine with one GPU, as torch tells of it; nothing decided yet."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    for name in ("DS_ACCELERATOR", "LOCAL_RANK", "RAY_JOB_CONFIG_JSON_ENV_VAR"):
        monkeypatch.delenv(name, raising=False)
    device.take(None)
    yield
    device.take(None)


def test_a_worker_without_a_gpu_computes_on_the_cpu_beside_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second of two CPU workers once asked for cuda:1."""
    for name, value in _environment(ClusterConfig(gpus_per_worker=0)).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert device.device() == torch.device("cpu")
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "", "and libraries that look for themselves find no GPU"


def test_a_worker_with_a_gpu_is_shown_it() -> None:
    environment = _environment(ClusterConfig(gpus_per_worker=1))
    assert environment["DS_ACCELERATOR"] == "cuda"
    assert "CUDA_VISIBLE_DEVICES" not in environment


def test_what_was_decided_counts_for_everybody(monkeypatch: pytest.MonkeyPatch) -> None:
    assert device.device() == torch.device("cuda", 0)
    device.take(torch.device("cuda", 3))
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert device.device() == torch.device("cuda", 3)
    device.take(torch.device("cpu"))
    assert device.device() == torch.device("cpu")
    assert device.device_name() == "cpu"


def test_the_engine_and_the_stream_ask_the_owner() -> None:
    """DeepSpeed's accelerator and pinned buffers belong to the same device as the model."""
    from atlas_dist.core.types import TaskKind, TaskSpec
    from atlas_dist.data.batch import StreamLimits
    from atlas_dist.data.collate import Collator
    from atlas_dist.train.engine import prepare_process

    device.take(torch.device("cpu"))
    prepare_process()
    assert os.environ.pop("DS_ACCELERATOR") == "cpu"
    spec = TaskSpec("t", TaskKind.SINGLE, 3, 8, "t", "train", "val", "", "")
    collator = Collator(spec, lambda texts: (), slots=2, images=1, size=8, limits=StreamLimits())  # type: ignore[arg-type, return-value]
    try:
        assert not collator._next_buffer().is_pinned()
    finally:
        collator.close()


def test_no_other_file_looks_for_gpus() -> None:
    """Whoever asks torch or the environment for itself may decide otherwise."""
    from pathlib import Path

    import atlas_dist

    root = Path(atlas_dist.__file__).parent
    asking = ("cuda.is_available", "cuda.device_count", 'environ.get("LOCAL_RANK"', "set_device(")
    found = [path.name for path in root.rglob("*.py") if any(word in path.read_text() for word in asking)]
    assert found == ["device.py"]


@pytest.mark.parametrize(
    ("words", "gpus", "workers", "a_worker", "said"),
    [
        ((), 0, 2, 0, ""),
        ((), 1, 1, 1, "1 of 1 GPUs, one worker each"),
        ((), 2, 2, 1, "2 of 2 GPUs"),
        ((), 4, 4, 1, "4 of 4 GPUs"),
        (("train.workers=2",), 4, 2, 1, "2 of 4 GPUs, one worker each; train.workers=4 would use all"),
        (("train.workers=4",), 2, 2, 1, "2 of 2 GPUs"),
        (("train.workers=4", "train.min_workers=3"), 2, 2, 1, "2 of 2 GPUs"),
        (("cluster.pools=2",), 2, 1, 1, "2 of 2 GPUs"),
        (("cluster.pools=2",), 1, 2, 0, "1 GPUs are too few for 2 pools"),
        (("cluster.gpus_per_worker=0",), 8, 2, 0, ""),
        (("cluster.gpus_per_worker=1", "train.workers=3"), 8, 3, 1, ""),
        (("cluster.address=auto",), 8, 2, 0, ""),
        (("train.budget.global_batch=3",), 8, 3, 1, "3 of 8 GPUs"),
    ],
)
def test_a_local_run_takes_one_worker_a_gpu(words: tuple[str, ...], gpus: int, workers: int, a_worker: int, said: str) -> None:
    config, text = placed_here(config_of("experiment=toy", *words), LocalGpus(gpus))
    assert ({group.workers for group in config.worker_groups}, config.cluster.gpus) == ({workers}, a_worker)
    assert text.startswith(said) and bool(text) == bool(said)
    assert RunConfig.model_validate(config.model_dump(mode="json")) == config, "and it is a run that one could have asked for"


def test_a_driver_that_is_too_old_is_named() -> None:
    old = LocalGpus(trouble="NVIDIA's driver is 470.1")
    config, text = placed_here(config_of("experiment=toy"), old)
    assert (config.cluster.gpus, config.train.workers) == (0, 2)
    assert "470.1" in text and "CPUs" in text
    with pytest.raises(ConfigError, match=r"470\.1"):
        placed_here(config_of("experiment=toy", "cluster.gpus_per_worker=1"), old)


@pytest.mark.parametrize("gpus", ["0.5", "1.5", "-1"])
def test_fractions_of_a_gpu_are_refused(gpus: str) -> None:
    with pytest.raises(ConfigError, match="gpus_per_worker"):
        config_of(f"cluster.gpus_per_worker={gpus}")


def test_fp32_means_fp32_unless_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    was = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    try:
        device.set_arithmetic()
        assert not torch.backends.cuda.matmul.allow_tf32 and not torch.backends.cudnn.allow_tf32
        assert not torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction
        assert not torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction
        assert not torch.backends.cuda.cudnn_sdp_enabled(), "which may choose another algorithm every time"
        assert not torch.are_deterministic_algorithms_enabled()
        device.set_arithmetic(tf32=True)
        assert torch.backends.cuda.matmul.allow_tf32 and torch.backends.cudnn.allow_tf32
        device.set_arithmetic(deterministic=True)
        assert torch.are_deterministic_algorithms_enabled() and not torch.backends.cuda.mem_efficient_sdp_enabled()
        assert os.environ.pop("CUBLAS_WORKSPACE_CONFIG") == ":4096:8"
    finally:
        device.set_arithmetic()
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = was


def test_results_of_tf32_are_facts_of_their_own() -> None:
    from atlas_dist.coordinator.expand import numerics_of

    plain, fast = (config_of("experiment=toy", f"train.tf32={word}").train for word in ("false", "true"))
    assert numerics_of(plain) != numerics_of(fast)
    assert "tf32" not in numerics_of(plain)
    assert numerics_of(plain) == numerics_of(config_of("experiment=toy", "train.deterministic=true").train)


def test_whether_a_cpu_multiplies_in_bfloat16_is_never_guessed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert device.cpu_multiplies_bf16() in (True, False), "the torch that is pinned says it"
    monkeypatch.setattr(torch, "ops", object())
    assert device.cpu_multiplies_bf16() is None, "one that says nothing is no reason to stop"

"""What cannot be helped by another try is not tried again: the driver stops its own Ray job where KubeRay watches, and nowhere
else. And a job's own variables win over ours (Ray refuses both)."""

from __future__ import annotations

import json
import os
import sys

import pytest

from atlas_dist.cli import main
from atlas_dist.config import ClusterConfig
from atlas_dist.coordinator import ray_job
from atlas_dist.coordinator.ray_job import JOB_CONFIG, RETRIED_BY, job_environment, stop_own_job, submission_id
from atlas_dist.errors import AtlasError, AuthError, ConfigError, DataError, FencedError, Paused, StoreError, TrainingError
from atlas_dist.errors import _rebuild as rebuild
from atlas_dist.runs.status import CoordinatorRole, Phase, RunStatus

CONFIG = {
    "runtime_env": {"env_vars": {"TOKENIZERS_PARALLELISM": "true", "AWS_ACCESS_KEY_ID": "x"}},
    "metadata": {"job_submission_id": "atlas-7", "job_name": "atlas-7"},
}
JOB = {JOB_CONFIG: json.dumps(CONFIG)}
WATCHED = JOB | {RETRIED_BY: "kuberay"}


def test_a_watched_job_stops_itself_and_waits_for_the_signal() -> None:
    said: list[object] = []
    assert stop_own_job(WATCHED, stop=said.append, wait=said.append)
    assert said == ["atlas-7", ray_job.STOPPED_WITHIN_S]


def test_the_signal_may_come_as_an_interrupt() -> None:
    def interrupted(_seconds: float) -> None:
        raise KeyboardInterrupt

    assert stop_own_job(WATCHED, stop=lambda _: None, wait=interrupted)


@pytest.mark.parametrize("environment", [{}, JOB, {RETRIED_BY: "kuberay"}, JOB | {RETRIED_BY: "somebody"}])
def test_nobody_else_is_stopped(environment: dict[str, str]) -> None:
    said: list[object] = []
    assert not stop_own_job(environment, stop=said.append, wait=said.append)
    assert said == []


def test_a_job_server_that_does_not_answer_changes_nothing() -> None:
    def refused(_job: str) -> None:
        raise ConnectionError("no dashboard")

    assert not stop_own_job(WATCHED, stop=refused, wait=lambda _: None)


@pytest.mark.parametrize("text", ["", "not json", "[]", '{"metadata": null}', '{"runtime_env": {"env_vars": {}}}'])
def test_a_job_that_says_nothing_of_itself(text: str) -> None:
    assert (submission_id({JOB_CONFIG: text}), job_environment({JOB_CONFIG: text})) == ("", {})


def test_a_variable_of_the_job_is_left_to_the_job(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray merges a job's environment with the driver's, and refuses both where a name is in both."""
    from ray.runtime_env.runtime_env import _merge_runtime_env

    from atlas_dist.coordinator.ray_cluster import _WORKER_ENV, _environment
    from atlas_dist.device import HIDDEN

    monkeypatch.setenv(JOB_CONFIG, JOB[JOB_CONFIG])
    ours = {"env_vars": _environment(ClusterConfig(address="auto"))}
    merged = _merge_runtime_env(CONFIG["runtime_env"], ours)
    assert merged is not None
    assert merged["env_vars"]["TOKENIZERS_PARALLELISM"] == "true"
    assert merged["env_vars"].keys() == _WORKER_ENV.keys() | HIDDEN.keys() | {"AWS_ACCESS_KEY_ID"}
    assert _merge_runtime_env(CONFIG["runtime_env"], {"env_vars": dict(_WORKER_ENV)}) is None, "Ray still refuses a clash"


def test_a_clash_that_remains_has_a_message_of_its_own_without_a_value(monkeypatch: pytest.MonkeyPatch) -> None:
    """A job's environment that we could not read. Ray's own message holds every value of it."""
    from atlas_dist.coordinator import ray_cluster

    def refuses(**options: object) -> None:
        raise ValueError(f"Failed to merge the Job's runtime env {CONFIG['runtime_env']} with a ray.init's runtime env {options}")

    monkeypatch.setattr(ray_cluster.ray, "init", refuses)
    ours = {"runtime_env": {"env_vars": {"TOKENIZERS_PARALLELISM": "false"}}}
    with pytest.raises(ConfigError, match="its job sets a part") as caught:
        ray_cluster._connect(ClusterConfig(address="auto"), ours)
    assert "TOKENIZERS_PARALLELISM" in caught.value.fix
    assert not caught.value.retry and "AWS_ACCESS_KEY_ID" not in str(caught.value)


# ------------------------------------------------------------------------------------------------- which errors are worth it


@pytest.mark.parametrize(
    ("kind", "again"),
    [
        (ConfigError, False),
        (DataError, False),
        (AuthError, False),
        (TrainingError, True),
        (StoreError, True),
        (FencedError, True),
        (Paused, True),
        (AtlasError, True),
    ],
)
def test_what_is_usual_for_a_kind_and_what_an_error_says_of_itself(kind: type[AtlasError], again: bool) -> None:
    """`Paused` by a signal (a drained head) goes on elsewhere; what people ask for stays as they asked."""
    assert kind("x").retry is again
    assert kind("x", retry=not again).retry is not again
    assert rebuild(*kind("x", retry=not again).__reduce__()[1]).retry is not again  # type: ignore[arg-type]


@pytest.mark.parametrize("phase", [Phase.PAUSED, Phase.CANCELLED, Phase.HALTED, Phase.FAILED])
def test_a_run_that_waits_for_a_person_is_not_started_by_a_machine(phase: Phase) -> None:
    error = RunStatus("r", CoordinatorRole.LEADER, phase, 1, 0, 3, reason="maintenance").error()
    assert error is not None
    assert not error.retry


@pytest.mark.parametrize(
    ("words", "stopped", "code"),
    [
        (["run", "experiment=toy", "train.wrokers=2"], 1, 2),
        (["run", "--no-such-option"], 1, 2),
        (["--version"], 0, 0),
    ],
)
def test_the_command_line_stops_the_job_before_it_exits(
    words: list[str], stopped: int, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    for name, value in WATCHED.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(ray_job, "_ask_ray", asked.append)
    monkeypatch.setattr(ray_job, "STOPPED_WITHIN_S", 0.0)
    monkeypatch.setattr(sys, "argv", ["atlas-dist", *words])
    assert os.environ[RETRIED_BY] == "kuberay"
    with pytest.raises(SystemExit) as ended:
        main()
    assert (ended.value.code, len(asked)) == (code, stopped)

"""A driver that runs as a job of Ray's job server, and ends it so that nobody starts it again.

KubeRay starts a RayJob whose Ray job FAILED again, on a new cluster, up to `backoffLimit` times. It sees only that status and not
the driver's exit code, so a wrong setting would be tried, in vain, on one cluster after the other. A Ray job that was STOPPED
counts as complete and is left alone. So where the environment says that KubeRay watches, a driver whose error cannot be helped by
another try stops its own job.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Callable, Mapping

RETRIED_BY = "ATLAS_RETRIED_BY"
"""Set to `kuberay` in the head's environment by the manifests of cluster/kuberay."""
JOB_CONFIG = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""Where Ray's job server tells a driver about its job: runtime environment and metadata, as JSON."""
STOPPED_WITHIN_S = 30.0
"""Seconds to wait for the signal that follows a stop: a driver that exits before it is heard counts as FAILED after all."""

log = logging.getLogger(__name__)

Stop = Callable[[str], object]


def job_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables that whoever submitted this job set for it (`ray job submit --runtime-env-json`); {} outside a job."""
    found = _job_config(environment).get("runtime_env", {}).get("env_vars", {})
    return {str(name): str(value) for name, value in found.items()}


def submission_id(environment: Mapping[str, str]) -> str:
    """The id of the job that this process is the driver of; "" outside a job."""
    return str(_job_config(environment).get("metadata", {}).get("job_submission_id", ""))


def stop_own_job(
    environment: Mapping[str, str] = os.environ, *, stop: Stop | None = None, wait: Callable[[float], object] = time.sleep
) -> bool:
    """Ask Ray to stop the job that this process drives, and wait for its signal. False when nobody would start it again, or when
    Ray could not be asked: then the process ends as it would have, and is started again.

    Args:
        stop: called with the job's id; None = Ray's own client.
        wait: called with seconds; returns when they are over, or raises KeyboardInterrupt when the signal comes.
    """
    job = submission_id(environment)
    if environment.get(RETRIED_BY) != "kuberay" or not job:
        return False
    log.warning("another try would end the same way: job %s stops itself", job)
    try:
        (stop or _ask_ray)(job)
        wait(STOPPED_WITHIN_S)
    except KeyboardInterrupt:
        pass  # the signal that was asked for, where somebody turned it into an exception
    except Exception as error:  # whatever it is: to be started again in vain costs time and loses nothing
        log.warning("job %s could not be stopped: %s", job, error)
        return False
    return True


def _ask_ray(job: str) -> None:
    from ray.job_submission import JobSubmissionClient

    JobSubmissionClient().stop_job(job)


def _job_config(environment: Mapping[str, str]) -> dict[str, dict[str, dict[str, str]]]:
    try:
        found = json.loads(environment.get(JOB_CONFIG) or "{}")
    except ValueError:
        return {}
    return {key: value for key, value in found.items() if isinstance(value, dict)} if isinstance(found, dict) else {}

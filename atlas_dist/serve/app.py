"""A bank as an application of Ray Serve. The one file outside `coordinator/` that knows Ray.

    serve deploy / RayService:   import_path: atlas_dist.serve.app:app, args: {bank: /bank, max_batch: 16}
    atlas-dist serve:            with serving(...): ...

A replica holds the model. Samples of all HTTP requests under way are put into batches (serve/batching.py), whatever their tasks,
and go through the backbone together.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ray import serve
from ray.serve.schema import ApplicationStatus, LoggingConfig
from ray.util.metrics import Counter, Histogram

from atlas_dist.config import ClusterConfig
from atlas_dist.coordinator.ray_cluster import cluster
from atlas_dist.errors import AtlasError, ConfigError
from atlas_dist.serve.apart import answer_apart
from atlas_dist.serve.batching import Batcher
from atlas_dist.serve.guard import TOKEN, token_digest
from atlas_dist.serve.model import AtlasModel, Prediction, Request
from atlas_dist.serve.settings import ServeSettings, read_settings
from atlas_dist.serve.web import Outcome, make_api, without_coefficients
from atlas_dist.serve.wire import Asked, Batch, task_about

NAME = "atlas-dist"
REQUEST_S = 60.0
"""Seconds after which a request that has no answer ends with 408."""
REQUESTS, SECONDS, SAMPLES = "atlas_serve_requests", "atlas_serve_seconds", "atlas_serve_batch_samples"
"""Metrics in Ray's exporter, which puts `ray_` before them: samples by task and outcome; seconds from a sample's arrival to its
answer; samples that shared a batch."""


class Replica:
    """One process with the whole bank.

    Args:
        settings: as `ServeSettings` has them. digest: of the token; "" = none is asked for.

    Raises:
        DataError, ConfigError: as `AtlasModel.from_pretrained`.
    """

    def __init__(self, settings: Mapping[str, Any], digest: str) -> None:
        self._settings, self._digest = read_settings(settings), digest
        self._model = AtlasModel.from_pretrained(Path(self._settings.bank))
        self.tasks = [task_about(task) for task in self._model.weights.tasks.values()]
        most, wait_s = self._settings.max_batch, self._settings.wait_ms / 1e3
        self._together: Batcher[Asked, Outcome] = Batcher(self._answer_batch, most=most, wait_s=wait_s)
        self._requests = Counter(REQUESTS, description="samples asked, by task and outcome", tag_keys=("task", "outcome"))
        self._seconds = Histogram(
            SECONDS, "seconds from arrival to answer", boundaries=_boundaries(0.005, 14), tag_keys=("task",)
        )
        self._samples = Histogram(SAMPLES, "samples that shared a batch", boundaries=_boundaries(1, 11))

    def __serve_build_asgi_app__(self) -> Any:  # Ray Serve asks for it by this name, once the model is there
        return make_api(self, self._settings, self._digest)

    async def answer(self, asked: Asked) -> Outcome:
        """One sample, with those that come at the same time."""
        return await self._together.ask(asked)

    def observe(self, task: str, outcome: str, seconds: float) -> None:
        """To Ray's metrics."""
        self._requests.inc(1, tags={"task": task, "outcome": outcome})
        self._seconds.observe(seconds, tags={"task": task})

    async def _answer_batch(self, batch: list[Asked]) -> list[Outcome]:
        """In a thread, so that requests go on coming in, and the replica goes on saying that it is well."""
        self._samples.observe(len(batch))
        coefficients = any(asked.coefficients for asked in batch)

        def predict(requests: Sequence[Request]) -> list[Prediction]:
            return self._model.predict_batch(requests, output_adapter_coefficients=coefficients)

        results = await asyncio.to_thread(answer_apart, predict, [asked.request for asked in batch])
        tasks = {result.task for result in results if isinstance(result, Prediction)}
        shared = Batch(samples=len(batch), tasks=len(tasks))
        return [Outcome(_own(result, asked), shared) for result, asked in zip(results, batch, strict=True)]


def _own(result: Prediction | Exception, asked: Asked) -> Prediction | Exception:
    return result if asked.coefficients or isinstance(result, Exception) else without_coefficients(result)


def _boundaries(first: float, count: int) -> list[float]:
    """Each twice the one before."""
    return [first * 2**n for n in range(count)]


def bound(settings: ServeSettings, digest: str) -> Any:
    """The application, a `ray.serve.Application`."""
    deployment = serve.deployment(
        name=NAME,
        num_replicas=settings.replicas,
        max_ongoing_requests=settings.max_waiting,
        max_queued_requests=settings.max_waiting,
        ray_actor_options={"num_cpus": settings.cpus_per_replica, "num_gpus": settings.gpus_per_replica},
    )(serve.ingress()(Replica))
    return deployment.bind(settings.model_dump(), digest)


def app(args: Mapping[str, Any]) -> Any:
    """What `serve deploy` and a RayService build: `args` as `ServeSettings`, the token from ATLAS_SERVE_TOKEN.

    Raises:
        ConfigError: a setting is wrong; there is no token, and `open: true` does not say that none is wanted.
    """
    settings, digest = read_settings(args), token_digest(os.environ)
    if not digest and not settings.open:
        raise ConfigError(
            f"{TOKEN} is not set: anybody who reaches this service could ask.",
            fix=f"Set {TOKEN} on every node, or `open: true` where Serve listens on loopback only.",
        )
    return bound(settings, digest)


@contextmanager
def serving(
    settings: ServeSettings, digest: str, config: ClusterConfig, *, host: str, port: int, metrics_port: int
) -> Iterator[None]:
    """Start the service in a Ray of our own, or on a cluster that is there, and end it afterwards.

    Inside, `check` says whether it still stands.

    Raises:
        ConfigError: Ray does not start. AtlasError: the replicas do not come up.
    """
    local = config.address == "local"
    if not os.environ.get("ATLAS_DEBUG"):
        logging.getLogger("ray.serve").setLevel(logging.ERROR)
    with cluster(config, (), metrics_port=metrics_port):
        quiet = LoggingConfig(log_level="ERROR", enable_access_log=False)
        serve.start(
            proxy_location="HeadOnly" if local else "EveryNode",
            http_options={"host": host, "port": port, "request_timeout_s": REQUEST_S},
            logging_config=quiet,
        )
        try:
            try:
                serve.run(bound(settings, digest), name=NAME, route_prefix="/", logging_config=quiet)
            except RuntimeError as error:  # it says no more than that it failed
                raise _why(error) from error
            yield
        finally:
            serve.delete(NAME)
            if not local and not serve.status().applications:  # with a Ray of our own Serve goes anyway
                serve.shutdown()


def check() -> None:
    """Raises AtlasError: the service is gone, or none of its replicas comes up any more."""
    status = serve.status().applications.get(NAME)
    if status is None or status.status is ApplicationStatus.DEPLOY_FAILED:
        raise AtlasError(f"The service has ended: {status.message if status else 'somebody deleted it'}", fix="Start it again.")


def _why(error: RuntimeError) -> AtlasError:
    """The last line of the replica's traceback."""
    status = serve.status().applications.get(NAME)
    deployments = status.deployments.values() if status else ()
    texts = [deployment.message for deployment in deployments if deployment.message] or [str(error)]
    lines = [line.strip() for line in texts[0].splitlines() if line.strip()]
    ours = [line for line in lines if line.startswith("atlas_dist.errors.")]
    return AtlasError(f"The replicas do not come up: {(ours or lines)[-1]}", fix="`atlas-dist --debug serve …` shows their logs.")

"""What a service is told when it starts: by `atlas-dist serve`, or as `args` in the file of `serve deploy` or a RayService."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import Field, ValidationError

from atlas_dist.errors import ConfigError
from atlas_dist.validation import Section, faults


class ServeSettings(Section):
    """How a bank is served."""

    bank: str = Field(min_length=1)
    """Folder that `atlas-dist bank export` wrote; every node with a replica must see it."""
    replicas: int = Field(default=1, ge=1, le=1000)
    """Processes that each hold the backbone and the whole bank."""
    cpus_per_replica: float = Field(default=1.0, gt=0)
    """CPU cores that Ray sets aside for a replica, and threads that it computes with."""
    gpus_per_replica: float = Field(default=0.0, ge=0)
    """GPUs of a replica; a share of one lets several replicas use it. 0 = it computes on CPUs."""
    max_batch: int = Field(default=16, ge=1, le=1024)
    """Samples that go through the backbone together at most, whatever their tasks."""
    wait_ms: float = Field(default=5.0, ge=0, le=10_000)
    """Milliseconds that a sample waits for others to share its batch."""
    max_waiting: int = Field(default=256, ge=1)
    """HTTP requests under way at a replica, and as many again waiting before it; one more is refused with 503."""
    max_body_mb: float = Field(default=32.0, gt=0)
    """Megabytes (10^6 bytes) of a request's body; more is refused with 413."""
    max_megapixels: float = Field(default=64.0, gt=0, le=67.0)
    """10^6 pixels of one picture, width times height."""
    max_samples: int = Field(default=64, ge=1)
    """Samples of one request's body."""
    open: bool = False
    """Serve without a token. Only for a Serve that listens on this machine's loopback address."""

    @property
    def max_body(self) -> int:
        """Bytes."""
        return int(self.max_body_mb * 1e6)

    @property
    def max_pixels(self) -> int:
        """Width times height."""
        return int(self.max_megapixels * 1e6)


def read_settings(given: Mapping[str, Any]) -> ServeSettings:
    """Validate. Raises ConfigError with a line a fault: the key, its value, what would be valid."""
    try:
        return ServeSettings.model_validate(dict(given))
    except ValidationError as error:
        lines = faults(error, lambda _: ServeSettings.model_fields, whole="settings")
        raise ConfigError("The settings of the service are not valid:\n" + "\n".join(f"  {line}" for line in lines)) from None

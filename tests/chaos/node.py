"""A coordinator process that can be killed: `python -m tests.chaos.node STORE RUN --ttl 0.5 [--endpoint URL] [--tasks 2]`.

The real coordinator over a real store; only the training is pretended. Says every decision on stdout as a JSON line, so that a
test knows what was acknowledged, and exits as the command line would.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import uuid
from collections.abc import Mapping
from typing import Any

from atlas_dist.coordinator.coordinator import Coordinator
from atlas_dist.coordinator.dispatch import Event
from atlas_dist.coordinator.settings import CoordinatorSettings
from atlas_dist.core.attempts import Assignment, Failure, FailureKind
from atlas_dist.core.schedule import RetryRules
from atlas_dist.errors import AtlasError
from atlas_dist.store import StoreOptions, open_store
from atlas_dist.store.artifacts import save_checkpoint
from atlas_dist.store.settle import Patience
from tests.chaos.fakes import FakeDispatcher
from tests.chaos.plans import small_plan


class NodeDispatcher(FakeDispatcher):
    """Its very first attempt at the first job leaves a checkpoint and is taken away, so that there is something to continue."""

    pace_s = 0.0

    def poll(self) -> list[Event]:
        if self.waiting and self.pace_s:
            time.sleep(self.pace_s)
        return super().poll()


def main(arguments: list[str] | None = None) -> int:
    """Run to the end. Returns the exit code."""
    parser = argparse.ArgumentParser()
    parser.add_argument("store")
    parser.add_argument("run")
    parser.add_argument("--endpoint", default="")
    parser.add_argument("--ttl", type=float, default=0.5)
    parser.add_argument("--tasks", type=int, default=1)
    parser.add_argument("--pace", type=float, default=0.0)
    options = parser.parse_args(arguments)
    plan = small_plan(options.tasks)
    first = next(iter(plan.jobs))
    try:
        reach = StoreOptions(endpoint_url=options.endpoint, attempts=2, read_timeout_s=2.0, check=False)
        store = open_store(options.store, options=reach)
        patience = Patience(first_s=0.05, longest_s=0.5, total_s=60.0)

        def outcome(assignment: Assignment) -> Failure | None:
            if assignment.job.key != first or not assignment.attempt.endswith("-1") or assignment.resume_from:
                return None
            save_checkpoint(store, assignment.prefix, 2, {"state.bin": b"at 2"}, patience=patience)
            return Failure(FailureKind.PREEMPTED, "taken away", 2)

        def say(event: str, fields: Mapping[str, Any]) -> None:
            print(json.dumps({"event": event, **fields}), flush=True)

        dispatcher = NodeDispatcher(store, outcome=outcome)
        dispatcher.pace_s = options.pace
        settings = CoordinatorSettings(options.ttl, 0.2, 0.1, RetryRules(first_wait_s=0.05), patience)
        new_id = lambda: uuid.uuid4().hex  # noqa: E731
        coordinator = Coordinator(options.run, plan, store, dispatcher, ids=new_id, log_sink=say, settings=settings)
        status = coordinator.open()
        while not status.done:
            status = coordinator.tick()
            time.sleep(0.02)
        coordinator.close()
        error = status.error()
        if error is not None:
            raise error
    except AtlasError as error:
        print(json.dumps({"event": "exit", "error": type(error).__name__, "reason": str(error)}), flush=True)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())

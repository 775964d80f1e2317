"""`atlas-dist run`, `demo`, `report`, `config`, `doctor` and the requests to a run: words in, lines out."""

from __future__ import annotations

import uuid

import yaml

from atlas_dist.app.driver_log import kept_driver_log
from atlas_dist.app.show import show_report, standard_console
from atlas_dist.choices import groups
from atlas_dist.cli.words import composed, spoken
from atlas_dist.runs.requests import RequestKind


def run_experiment(overrides: list[str] | None, *, quiet: bool = False, many: bool = False) -> None:
    """Plan, run, report. Raises whatever ended the run."""
    from atlas_dist.app.run import run

    composed_run = spoken(overrides, many=many)
    with kept_driver_log(composed_run.config):
        run(composed_run, quiet=quiet)


def pack_and_run(overrides: list[str]) -> None:
    """The demo: its data, then its run."""
    from atlas_dist.app.pack import pack

    pack(*overrides)
    run_experiment(overrides)


def write_run_report(overrides: list[str] | None, *, many: bool = False) -> None:
    """Gather and show a run's results again. Raises ConfigError: there is no such run."""
    from atlas_dist.app.composed import compose_run
    from atlas_dist.app.process import restored_process
    from atlas_dist.app.report import write_pages

    composed_run = compose_run(*(overrides or ()), many=many)
    with restored_process():
        report = write_pages(composed_run)
    show_report(report, standard_console())  # also where it can't be written
    report.check_written()


def send_request(overrides: list[str] | None, kind: RequestKind, reason: str, *, many: bool = False) -> None:
    """Leave a request in the run's inbox. Raises ConfigError: there is no such run."""
    from atlas_dist.app.composed import compose_run
    from atlas_dist.app.run import request

    composed_run = compose_run(*(overrides or ()), many=many)
    request(kind, composed_run, reason=reason)
    standard_console().print(f"asked run {composed_run.config.run} to {kind.value}")


def show_config(overrides: list[str] | None) -> None:
    """Print the configuration as YAML, then the groups."""
    console = standard_console()
    console.print(yaml.safe_dump(composed(overrides).model_dump(mode="json"), sort_keys=False), markup=False)
    for name, choices in groups().items():
        console.print(f"[bold]{name}[/bold]: {', '.join(choices)}")


def check_store(url: str, endpoint_url: str) -> None:
    """Race writers against the store. Raises StoreError when it can't be trusted."""
    from atlas_dist.app.doctor import room_for
    from atlas_dist.store import StoreOptions, open_store
    from atlas_dist.store.doctor import require_fit

    report = require_fit(open_store(url, options=StoreOptions(endpoint_url=endpoint_url)), new_id=lambda: uuid.uuid4().hex)
    console = standard_console()
    console.print(str(report), markup=False)
    for finding in room_for("the store", url):
        console.print(str(finding), markup=False)


def check_all(overrides: list[str]) -> None:
    """The doctor of a whole run: store, packed data, room. Raises StoreError, DataError: the first thing that is not well."""
    from atlas_dist.app.doctor import examine_run, failure

    console = standard_console()
    findings = []
    for finding in examine_run(composed(overrides)):
        findings.append(finding)
        console.print(str(finding), markup=False, soft_wrap=True)
        if finding.fix and not finding.kept:
            console.print(f"      {finding.fix}", markup=False, soft_wrap=True)
    if error := failure(findings):
        raise error
    console.print("Nothing stands in the way of a run.")

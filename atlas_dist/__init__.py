"""atlas-dist: one frozen vision-language transformer learns a sequence of tasks, on a cluster, without forgetting.

import atlas_dist as atlas

result = atlas.run("experiment=toy", {"train": {"workers": 2}})
model = atlas.load_model("experiment=toy")
print(model.predict(task="toy_shape", image="seven.png"))
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from atlas_dist.app.bank import (
        diff_banks,
        export,
        export_peft,
        import_folder,
        import_peft,
        load_model,
        open_bank,
        similar_adapters,
    )
    from atlas_dist.app.compare import compare_runs
    from atlas_dist.app.explain import explain
    from atlas_dist.app.hub import pull_folder, push_bank, push_folder
    from atlas_dist.app.init import init
    from atlas_dist.app.logs import read_decisions, read_kept_logs
    from atlas_dist.app.pack import pack
    from atlas_dist.app.plan import PlannedRun, plan
    from atlas_dist.app.predict import read_requests
    from atlas_dist.app.report import Report, write_report
    from atlas_dist.app.run import RunResult, request, run
    from atlas_dist.app.search import SearchResult, search
    from atlas_dist.app.shards import index_shards, list_shards, verify_shards
    from atlas_dist.app.status import Standing, status
    from atlas_dist.app.tidy import free_run, prune_bank
    from atlas_dist.app.verify import rescore_folder, rescore_run, verify_folder, verify_run
    from atlas_dist.bank.contents import Bank
    from atlas_dist.bank.prune import Allowance
    from atlas_dist.config import RunConfig
    from atlas_dist.errors import AtlasError, Paused
    from atlas_dist.serve import AtlasModel, Prediction, Request

__version__ = "0.1.0"
__all__ = [
    "Allowance",
    "AtlasError",
    "AtlasModel",
    "Bank",
    "Paused",
    "PlannedRun",
    "Prediction",
    "Report",
    "Request",
    "RunConfig",
    "RunResult",
    "SearchResult",
    "Standing",
    "__version__",
    "compare_runs",
    "diff_banks",
    "explain",
    "export",
    "export_peft",
    "free_run",
    "import_folder",
    "import_peft",
    "index_shards",
    "init",
    "list_shards",
    "load_model",
    "open_bank",
    "pack",
    "plan",
    "prune_bank",
    "pull_folder",
    "push_bank",
    "push_folder",
    "read_decisions",
    "read_kept_logs",
    "read_requests",
    "request",
    "rescore_folder",
    "rescore_run",
    "run",
    "search",
    "similar_adapters",
    "status",
    "verify_folder",
    "verify_run",
    "verify_shards",
    "write_report",
]

_HOMES = {
    "app.bank": (
        "diff_banks",
        "export",
        "export_peft",
        "import_folder",
        "import_peft",
        "load_model",
        "open_bank",
        "similar_adapters",
    ),
    "app.compare": ("compare_runs",),
    "app.explain": ("explain",),
    "app.hub": ("pull_folder", "push_bank", "push_folder"),
    "app.init": ("init",),
    "app.logs": ("read_decisions", "read_kept_logs"),
    "app.pack": ("pack",),
    "app.plan": ("PlannedRun", "plan"),
    "app.predict": ("read_requests",),
    "app.report": ("Report", "write_report"),
    "app.run": ("RunResult", "request", "run"),
    "app.search": ("SearchResult", "search"),
    "app.shards": ("index_shards", "list_shards", "verify_shards"),
    "app.status": ("Standing", "status"),
    "app.tidy": ("free_run", "prune_bank"),
    "app.verify": ("rescore_folder", "rescore_run", "verify_folder", "verify_run"),
    "bank.contents": ("Bank",),
    "bank.prune": ("Allowance",),
    "config": ("RunConfig",),
    "errors": ("AtlasError", "Paused"),
    "serve": ("AtlasModel", "Prediction", "Request"),
}


def __getattr__(name: str) -> Any:
    """Import torch, Hydra and the rest only for those who use them; everybody else imports this package for its version."""
    for home, names in _HOMES.items():
        if name in names:
            from atlas_dist.app.process import restored_process

            with restored_process():  # torch and others set variables of the environment when they are imported
                return getattr(import_module(f"atlas_dist.{home}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__

"""atlas-dist: one frozen vision-language transformer learns a sequence of tasks, on a cluster, without forgetting.

import atlas_dist as atlas

result = atlas.run("experiment=toy", {"train": {"workers": 2}})
model = atlas.load_model("experiment=toy")
print(model.predict(task="toy_shape", image="seven.png"))
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from atlas_dist.app.bank import load_model, open_bank
    from atlas_dist.app.pack import pack
    from atlas_dist.app.plan import PlannedRun, plan
    from atlas_dist.app.report import Report, write_report
    from atlas_dist.app.run import RunResult, request, run
    from atlas_dist.app.search import SearchResult, search
    from atlas_dist.app.status import Standing, status
    from atlas_dist.bank.contents import Bank
    from atlas_dist.config import RunConfig
    from atlas_dist.errors import AtlasError, Paused
    from atlas_dist.serve import AtlasModel, Prediction, Request

__version__ = "0.1.0"
__all__ = [
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
    "load_model",
    "open_bank",
    "pack",
    "plan",
    "request",
    "run",
    "search",
    "status",
    "write_report",
]

_HOMES = {
    "app.bank": ("load_model", "open_bank"),
    "app.pack": ("pack",),
    "app.plan": ("PlannedRun", "plan"),
    "app.report": ("Report", "write_report"),
    "app.run": ("RunResult", "request", "run"),
    "app.search": ("SearchResult", "search"),
    "app.status": ("Standing", "status"),
    "bank.contents": ("Bank",),
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

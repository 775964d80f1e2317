"""atlas-dist: one frozen vision-language transformer learns a sequence of tasks, on a cluster, without forgetting.

from atlas_dist import AtlasModel

model = AtlasModel.from_pretrained("exported-bank")
print(model.predict(task="digits", image="seven.png"))
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from atlas_dist.serve import AtlasModel, Prediction, Request

__version__ = "0.1.0"
__all__ = ["AtlasModel", "Prediction", "Request", "__version__"]


def __getattr__(name: str) -> Any:
    """Import torch and the rest only for those who answer with a model; everybody else imports this package for its version."""
    if name in ("AtlasModel", "Prediction", "Request"):
        return getattr(import_module("atlas_dist.serve"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

"""What a run is told: one frozen, validated tree. Hydra composes `configs/` into a dictionary; this package judges it.

Every field is declared once, with its default, its range and what it is for, in `groups.py`; `run.py` has the tree and what must
fit together. Unknown keys and unknown choices fail before anything starts, with the valid ones listed (`judge.py`).
"""

from atlas_dist.config.groups import (
    BackboneConfig,
    ClusterConfig,
    Isolation,
    MethodConfig,
    PackOn,
    Precision,
    ReferencesConfig,
    StoreConfig,
    TaskConfig,
    TrainConfig,
)
from atlas_dist.config.judge import check_rows, load_config
from atlas_dist.config.run import RunConfig

__all__ = [
    "BackboneConfig",
    "ClusterConfig",
    "Isolation",
    "MethodConfig",
    "PackOn",
    "Precision",
    "ReferencesConfig",
    "RunConfig",
    "StoreConfig",
    "TaskConfig",
    "TrainConfig",
    "check_rows",
    "load_config",
]

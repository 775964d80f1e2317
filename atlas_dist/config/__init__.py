"""What a run is told: one frozen, validated tree. Hydra composes `configs/` into a dictionary; this package judges it.

Every field is declared once, with its default, its range and what it is for: in `learning.py` what is learnt and how, in
`infrastructure.py` where and on what. `run.py` has the tree and what must fit together. Unknown keys and unknown choices fail
before anything starts, with the valid ones listed (`judge.py`).
"""

from atlas_dist.config.infrastructure import ClusterConfig, PackOn, StoreConfig
from atlas_dist.config.judge import check_rows, load_config
from atlas_dist.config.keys import takes_text
from atlas_dist.config.learning import (
    BackboneConfig,
    Isolation,
    MethodConfig,
    Precision,
    ReferencesConfig,
    TaskConfig,
    TrainConfig,
)
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
    "takes_text",
]

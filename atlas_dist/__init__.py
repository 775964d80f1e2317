"""atlas-dist: one frozen vision-language transformer learns a sequence of tasks, on a cluster, without forgetting."""

__version__ = "0.1.0"

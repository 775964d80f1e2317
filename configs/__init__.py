"""The configuration groups that Hydra composes; installed as package data so that `atlas-dist` finds them anywhere."""

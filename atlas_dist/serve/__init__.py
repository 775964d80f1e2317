"""Answering with a bank: `from atlas_dist import AtlasModel`."""

from atlas_dist.serve.model import AtlasModel, Prediction, Request

__all__ = ["AtlasModel", "Prediction", "Request"]

"""How a site hears what goes through its linear layer, and what it is called there."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from atlas_dist.model.experience import ExperienceSite
from atlas_dist.model.fusion import FusionSite
from atlas_dist.model.lora import LoraSite
from atlas_dist.model.mixing import MixingSite, SiteOutput

Site = MixingSite | ExperienceSite | FusionSite | LoraSite


class SiteHook:
    """Passes a dense layer's output through a site, and keeps what else the site says until the next forward."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.outputs: list[SiteOutput] = []
        self.listens = True

    def __call__(self, _: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
        # LoRA reads the layer's own input; the others its output alone.
        result: SiteOutput = self.site(inputs[0], output) if isinstance(self.site, LoraSite) else self.site(output)
        if self.listens:
            # Without the mixture: keeping it would hold a [B, L, D] tensor a site until the next step.
            self.outputs.append(SiteOutput(mixed=output.new_empty(0), alpha=result.alpha, penalty=result.penalty))
        return result.mixed


def attribute_of(site_name: str) -> str:
    """A site's name where dots are not allowed: L0.aftattn -> L0_aftattn; a path's own underlines are doubled."""
    return site_name.replace("_", "__").replace(".", "_")

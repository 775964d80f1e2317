"""How a site hears what goes through its linear layer, and what it is called there."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn, unflatten

from atlas_dist.model.experience import ExperienceSite
from atlas_dist.model.fusion import FusionSite
from atlas_dist.model.lora import LoraSite
from atlas_dist.model.mixing import MixingSite, SiteOutput

Site = MixingSite | ExperienceSite | FusionSite | LoraSite


class SiteHook:
    """Passes a dense layer's output through a site, and keeps what else the site says until the next forward.

    `rows`: of the layer, that one sample takes (`Architecture.rows_at`). A site sees the tokens of all of them, as of one row.
    """

    def __init__(self, site: Site, rows: int = 1) -> None:
        self.site, self.rows = site, rows
        self.outputs: list[SiteOutput] = []
        self.listens = True

    def __call__(self, _: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
        # LoRA reads the layer's own input; the others its output alone.
        read = (inputs[0], output) if isinstance(self.site, LoraSite) else (output,)
        result: SiteOutput = self.site(*(rows_joined(tokens, self.rows) for tokens in read))
        if self.listens:
            # Without the mixture: keeping it would hold a [B, L, D] tensor a site until the next step.
            self.outputs.append(SiteOutput(mixed=output.new_empty(0), alpha=result.alpha, penalty=result.penalty))
        return rows_apart(result.mixed, self.rows)


def rows_joined(tokens: Tensor, rows: int) -> Tensor:
    """[B·rows, L, D] -> [B, rows·L, D], a view: the tokens of all rows that a sample takes, one row's after the other."""
    return tokens if rows == 1 else unflatten(tokens, 0, (-1, rows)).flatten(1, 2)


def rows_apart(tokens: Tensor, rows: int) -> Tensor:
    """[B, rows·L, D] -> [B·rows, L, D], a view: the other way round."""
    return tokens if rows == 1 else unflatten(tokens, 1, (rows, -1)).flatten(0, 1)


def attribute_of(site_name: str) -> str:
    """A site's name where dots are not allowed: L0.aftattn -> L0_aftattn; a path's own underlines are doubled."""
    return site_name.replace("_", "__").replace(".", "_")

"""A site's tensors by the names that they have in files."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from atlas_dist.model import tensors as named
from atlas_dist.model.experience import ExperienceSite, ResidualGroup
from atlas_dist.model.lora import LoraGroup, LoraSite
from atlas_dist.model.mixing import AdapterGroup

Group = AdapterGroup | ResidualGroup | LoraGroup


def adapter_slots(site: str, group: Group, index: int) -> named.Slots:
    """One adapter of a site's group by the names that it has in files."""
    if isinstance(group, LoraGroup):
        return group.slots(site, index)
    slots: named.Slots = {
        f"adapter/{site}/down.weight": [group.down.data[index]],
        f"adapter/{site}/down.bias": [group.down_bias.data[index]],
        f"adapter/{site}/up.weight": [group.up.data[index]],
        f"adapter/{site}/up.bias": [group.up_bias.data[index]],
    }
    return slots | ({f"key/{site}": [group.key.data[index]]} if group.key is not None else {})


def coefficient_slots(name: str, site: ExperienceSite | LoraSite) -> named.Slots:
    """A site's coefficients by the names that they have in files; {} where it weighs nothing."""
    if site.coefficients is None:
        return {}
    return {f"coefficients/{name}/{n}": [p.data] for n, p in site.coefficients.named_parameters()}


def scaled_adapter(adapter: Mapping[str, Tensor], factor: float) -> dict[str, Tensor]:
    """An adapter by its names in files whose output is `factor` times this one's: its last map is scaled, the rest stays."""
    last = ("/up.weight", "/up.bias", "/lora_B.weight")
    return {name: factor * value if name.endswith(last) else value for name, value in adapter.items()}

"""The form of a method's adapters, as settings: bottlenecks at the sites, or LoRA at linear layers (docs/method.md, LoRA)."""

from __future__ import annotations

from enum import StrEnum
from typing import ClassVar

from pydantic import Field

from atlas_dist.errors import ConfigError
from atlas_dist.methods.base import Settings
from atlas_dist.model.mixing_spec import LoraSpec


class AdapterForm(StrEnum):
    """What an adapter is."""

    BOTTLENECK = "bottleneck"
    """Down, SiLU, up with biases, on the outputs of attention and MLP (Houlsby et al. 2019, arXiv 1902.00751)."""
    LORA = "lora"
    """B A at linear layers, on their inputs (Hu et al. 2021, arXiv 2106.09685)."""


class AdapterSettings(Settings):
    """Settings of methods whose adapters may be of either form."""

    came_later: ClassVar[frozenset[str]] = frozenset({"adapter", "target_modules", "lora_alpha", "rslora"})

    adapter: AdapterForm = AdapterForm.BOTTLENECK
    """What an adapter is: a `bottleneck` at each site, or `lora` at linear layers."""
    target_modules: tuple[str, ...] | str = ()
    """With `lora`: which linear layers, as in PEFT: suffixes of their paths (`[query,value]`), a regular expression, or
    `all-linear`; [] = those that bottlenecks would follow."""
    lora_alpha: float = Field(default=0.0, ge=0)
    """With `lora`: the adapter's output is multiplied by lora_alpha / rank; 0 = the rank, so by 1."""
    rslora: bool = False
    """With `lora`: by lora_alpha / sqrt(rank) instead."""

    def lora(self) -> LoraSpec | None:
        """What LoRA adapters are made of; None = bottlenecks. Raises ConfigError for settings of the other form."""
        if self.adapter is AdapterForm.LORA:
            return LoraSpec(self.target_modules, self.lora_alpha, self.rslora)
        given = [name for name in ("target_modules", "lora_alpha", "rslora") if getattr(self, name)]
        if given:
            raise ConfigError(
                f"method.settings.{given[0]} is of LoRA adapters; this method's are bottlenecks.",
                fix="Set method.settings.adapter=lora, or leave it out.",
            )
        return None

    def of_adapters(self) -> dict[str, object]:
        """These settings alone, for a method that learns the same adapters."""
        return {name: getattr(self, name) for name in AdapterSettings.came_later}

"""Whether tasks whose answers are written can be learnt as a run says."""

from __future__ import annotations

from collections.abc import Sequence

from atlas_dist.config import RunConfig
from atlas_dist.core.types import Role
from atlas_dist.errors import ConfigError
from atlas_dist.methods import Method, make_method
from atlas_dist.model.backbone_facts import BackboneFacts


def check_generating(config: RunConfig, tasks: Sequence[str], backbone: BackboneFacts) -> None:
    """Look at the tasks of kind `generate` among `tasks`.

    Raises:
        ConfigError: the backbone does not write, or the method cannot teach it to, or the data have no classes to choose from.
    """
    written = [name for name in tasks if config.tasks[name].kind.generates]
    if not written:
        return
    if not backbone.writes:
        from atlas_dist.model.backbones import ARCHITECTURES  # all of transformers, for an error

        decoders = ", ".join(sorted(name for name, row in ARCHITECTURES.items() if row.decoder is not None))
        raise ConfigError(
            f"tasks.{written[0]}.kind is generate, but {config.backbone.name} ({backbone.architecture}) does not write.",
            fix=f"Choose a backbone that is a decoder (architecture {decoders}), such as backbone=smolvlm_256m.",
        )
    for requested in config.methods:
        method = make_method(requested.name, requested.settings)
        why, fix = _obstacle(method)
        if why:
            raise ConfigError(f"{requested.name} cannot learn {written[0]}, whose answers are written: {why}.", fix=fix)
    for name in written:
        if config.tasks[name].shots >= 1:
            raise ConfigError(
                f"tasks.{name}.shots is {config.tasks[name].shots:g} samples a class; written answers have no classes.",
                fix=f"Give a share of the samples, such as tasks.{name}.shots=0.1.",
            )


def _obstacle(method: Method) -> tuple[str, str]:
    """Why a method cannot, and what to do; "" = it can."""
    spec = method.spec
    if spec.recalls or spec.joint:
        return "it keeps or shares the heads of several tasks, and they have none", "Choose method=atlas or sequential_finetune."
    if not any(set(stage.trains) - {Role.HEAD} for stage in spec.stages):
        return "it trains heads only, and they have none", "Choose method=atlas or individual_adapters."
    if not method.mixing.causal:
        return (
            "its coefficients are drawn from all tokens of a sample, those of the answer too",
            "Choose method=atlas with method.settings.per_sample=false, which is its default.",
        )
    return "", ""

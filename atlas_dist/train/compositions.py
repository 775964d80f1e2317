"""Where stage two starts (docs/method.md, Where stage two starts).

By then the task has two of its three forms: experience, which is the earlier adapters with stage one's coefficients, and an
adapter that was learnt apart from them. Stage two may begin with nothing of the second, as in the paper, or go on from it: what
is trained twice is trained longer. A *composition* says how much of each. The one with the smallest validation loss is taken,
once the last layer of its head is settled between what was learnt and a fit (model/ridge.py); where heads are not fitted, the
better of the two forms as their own stages left them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from atlas_dist.core.attempts import CommittedRef
from atlas_dist.core.result_files import ADAPTER_FILE, TASK_FILE
from atlas_dist.core.results import TrainResult
from atlas_dist.core.types import StageJob
from atlas_dist.model.ridge import Settled
from atlas_dist.model.site_files import scaled_adapter
from atlas_dist.train.context import RankContext
from atlas_dist.train.head_end import settled_head
from atlas_dist.train.head_samples import CHOOSING
from atlas_dist.train.inputs import coefficients_of, head_of, read_if_there
from atlas_dist.train.module import StageModule


@dataclass(frozen=True)
class Composition:
    """How much of each of two forms."""

    apart: float
    """Factor on the output of the adapter that was learnt apart; 0 = a new adapter, which adds nothing yet."""
    experience: float
    """Factor on stage one's coefficients."""

    def __str__(self) -> str:
        return f"{self.apart:g} of the adapter apart, {self.experience:g} of experience"


EXPERIENCE, APART = Composition(0.0, 1.0), Composition(1.0, 0.0)
COMPOSITIONS = (EXPERIENCE, APART, Composition(1.0, 0.5), Composition(1.0, 1.0), Composition(0.5, 0.5))
"""What is tried; of equal ones the first is taken."""


class Compositions:
    """What a stage two may start from, for a model that sees the same adapters as stage one did.

    Raises:
        DataError: a file does not match its hash, or belongs to another model.
    """

    def __init__(self, context: RankContext, module: StageModule, job: StageJob, inputs: Mapping[str, CommittedRef]) -> None:
        self._context, self._module, self._job = context, module, job
        self._forms = {form: inputs[key] for form, key in ((EXPERIENCE, job.model_from), (APART, job.adapter_from))}
        learnt = {form: read_if_there(context.store, ref, TASK_FILE) for form, ref in self._forms.items()}
        self._heads = {form: head_of(tensors) for form, tensors in learnt.items()}
        self._coefficients = coefficients_of(learnt[EXPERIENCE])
        self._apart = read_if_there(context.store, self._forms[APART], ADAPTER_FILE)
        self._new = module.model.export_adapter()

    def choose(self, *, fits: bool) -> Composition:
        """Put the best composition into the module. Call it on every rank, before an engine takes the parameters.

        Args:
            fits: the task's heads are fitted. This costs a pass over up to 256 training and 256 validation samples for each.
        """
        if not fits:
            losses = {form: TrainResult.of(ref).loss for form, ref in self._forms.items()}
            best = min(losses, key=losses.__getitem__)
            self._put(best)
            return best
        settled = {composition: self._settled(composition) for composition in COMPOSITIONS}
        best = min(settled, key=lambda composition: settled[composition].loss)
        self._put(best)
        last = self._module.model.head.last
        with torch.no_grad():
            last.weight.copy_(settled[best].weight)
            last.bias.copy_(settled[best].bias)
        return best

    def _settled(self, composition: Composition) -> Settled:
        self._put(composition)
        last = self._module.model.head.last
        layer = (last.weight.detach().cpu(), last.bias.detach().cpu())
        return settled_head(self._context, self._module, self._job, layer, CHOOSING)

    def _put(self, composition: Composition) -> None:
        model = self._module.model
        model.load_grown(scaled_adapter(self._apart, composition.apart) if composition.apart else self._new)
        model.load_coefficients(_scaled(self._coefficients, composition.experience))
        model.load_head(self._heads[APART if composition.apart else EXPERIENCE])


def _scaled(tensors: Mapping[str, Tensor], factor: float) -> dict[str, Tensor]:
    return {name: factor * value for name, value in tensors.items()}

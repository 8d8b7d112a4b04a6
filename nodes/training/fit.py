"""Whether an adapter, a training set and a job belong together."""

from __future__ import annotations

from typing import Any

from ...models.errors import WrongTraining
from ..managed import ManagedAdapter
from .data import TrainingSet
from .job import Job


def check_fit(
    data: TrainingSet, adapter: ManagedAdapter, job: Job, teacher_clip: Any, teacher_model: Any
) -> None:
    """Raises: WrongTraining if adapter and training set do not belong together."""
    if data.recipe != adapter.recipe:
        raise WrongTraining(
            f"The training set was encoded with the recipe {data.recipe}, but the adapter has {adapter.recipe}. "
            "Connect the same adapter to Training Set and Train Cross-Adapter."
        )
    width = data.encoded[""].llm.states.shape[1]
    if width != adapter.adapter.config.llm_dim:
        raise WrongTraining(
            f"The training set's LLM states are {width} wide, but the adapter takes {adapter.adapter.config.llm_dim}. "
            "Connect the same LLM to New Cross-Adapter and Training Set."
        )
    if job.entity_weight and not any(states.pairs for states in data.encoded.values()):
        raise WrongTraining(
            "entity_weight is set, but no caption has pairs of an attribute and its entity that stand in it. Give "
            "Training Set pairs such as red: ball; blue: cube, or set entity_weight to 0."
        )
    if teacher_model is not None and teacher_clip is None:
        raise WrongTraining("There is a teacher_model without a teacher_clip. Connect both, or none.")

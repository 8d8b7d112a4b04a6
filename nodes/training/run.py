"""One training of the graph: prepares the models, runs the steps, and gives what was learnt."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...models.errors import WrongTraining
from ...models.training.checkpointing import recomputed
from ...models.training.denoise import Denoise
from ...models.training.entity import EntityGuided
from ...models.training.match import Match
from ...models.training.quiet_start import QuietStart, begin_quietly
from ...models.training.ranks import ALONE, Ranks
from ...models.training.settings import COSINE, Drops
from ...models.training.start import adapter_from
from ...models.training.trainer import Objective, Trainer
from .. import folders, host
from ..managed import ManagedAdapter
from .data import TrainingSet
from .fit import check_fit
from .job import Job
from .kept import KeptState
from .record import digest, facts_of, job_digest, origin, weights_digest
from .shortage import shortage
from .shown import Preview, shown
from .teaching import Context, contexts
from .unet import Teacher, UNetInTraining

# The learning rate of a quiet start, which ends at 0. AdamW's first steps are the same however little there is to
# learn, so a short quiet start takes smaller ones: it would end before it had made up for them.
QUIET_RATE, QUIET_STEPS = 1e-4, 200


@dataclass(frozen=True)
class Trained:
    """adapter and lora: what was learnt. model: the user's MODEL, with what it learnt. losses: of each step."""

    adapter: ManagedAdapter
    lora: dict[str, Tensor]
    model: Any
    losses: list[float]


def train(
    model: Any,
    data: TrainingSet,
    adapter: ManagedAdapter,
    job: Job,
    *,
    teacher_clip: Any = None,
    teacher_model: Any = None,
    ranks: Ranks = ALONE,
    state_file: Path | None = None,
    watch: Callable[[Run, Any], None] = lambda *_: None,
) -> Trained:
    """Trains a copy of the adapter. The user's models stay as they are, whatever ends it.

    With a teacher's CLIP the objective is `Match`, else `Denoise`.

    ranks:      the processes that train together. The first of them keeps the state.
    state_file: where the state is kept; None: in ComfyUI's output folder, under the job's digest.
    watch:      called after each step, with a preview picture if one is due, as ComfyUI's progress bar takes it.
    Raises: WrongTraining, UntrainableModel, TrainingDiverged, UnusableState, OutOfMemory.
    """
    check_fit(data, adapter, job, teacher_clip, teacher_model)
    width = adapter.adapter.config.clip_dim
    known = contexts(teacher_clip, data.encoded) if teacher_clip is not None else None
    widths = {context.states.shape[1] for context in (known or {}).values()} - {width}
    if widths:
        raise WrongTraining(
            f"The teacher's CLIP gives states that are {widths.pop()} wide; the MODEL of this adapter reads {width}. "
            "Connect LLM4GEN CLIP over the CLIP of a checkpoint of the same kind."
        )
    dtype = host.training_dtype(model, job.precision)
    unet = run = None
    with torch.inference_mode(False):
        try:
            unet = UNetInTraining(
                model, width, what=job.unet, rank=job.rank, dtype=dtype, seed=job.settings.seed
            )
            teacher = None if known is None else Teacher(teacher_model or model, width)
            run = Run(model, unet, data, adapter, job, teacher, known, ranks, state_file, watch)
            return run.result()
        except Exception as error:
            if not host.is_out_of_memory(error):
                raise
            at_once, saved = (run.trainer.at_once, run.state.step) if run else (None, None)
            raise shortage(error, job, dtype, at_once, saved) from error
        finally:
            if unet is not None:
                host.release(unet.patcher)


class Run:
    """A training with its models on their device.

    known: text → what the teacher's UNet reads of it, where there is a teacher.
    """

    def __init__(
        self,
        model: Any,
        unet: UNetInTraining,
        pairs: TrainingSet,
        start: ManagedAdapter,
        job: Job,
        teacher: Teacher | None,
        known: dict[str, Context] | None,
        ranks: Ranks,
        state_file: Path | None,
        watch: Callable[[Run, Any], None],
    ):
        self.model, self.unet, self.pairs, self.start = model, unet, pairs, start
        self.job, self.teacher, self.ranks, self.watch = job, teacher, ranks, watch
        self.base = weights_digest(unet.patcher.model.diffusion_model.state_dict())
        models = [self.base, origin(model), teacher and origin(teacher.patcher)]
        models += [unet.schedule.prediction, digest({"alphas": unet.schedule.alphas})]
        self.digest = job_digest(job, pairs, start, models, known or {})
        file = state_file or folders.training_folder() / f"{self.digest[:16]}.safetensors"
        self.state = KeptState(file, self.digest, job, ranks)
        self.standard = pairs.standard()
        patchers = [unet.patcher, *([teacher.patcher] if teacher else [])]
        aside = partial(host.undisturbed, patchers)
        self.data = pairs.data(unet.patcher.model.process_latent_in, self.standard, known, aside)
        self.device = host.load_to_train(patchers)
        self.adapter = adapter_from(start.adapter, start.adapter.config.llm_dim, 0)
        if not start.is_drawn:  # a random first layer was drawn for such states
            self.adapter.load_state_dict(self.standard.into(self.adapter.state_dict()))
        self.adapter.to(self.device)
        self.trainer = Trainer(
            self.objective(),
            self.data,
            job.settings,
            timesteps=len(unet.schedule.alphas),
            adapter=self.adapter,
            unet=unet.learns(),
            device=self.device,
            ranks=ranks,
            is_out_of_memory=host.is_out_of_memory,
        )

    def objective(self) -> Objective:
        """`Match` with a teacher, else `Denoise`; with an entity weight, `EntityGuided` around it."""
        plain, weight = self.plain_objective(), self.job.entity_weight
        return EntityGuided(plain, self.unet.watched, weight) if weight else plain

    def plain_objective(self) -> Objective:
        weights = self.job.settings.weighting, self.job.settings.gamma
        if self.teacher is None:
            return Denoise(self.unet.predict, self.unet.schedule, self.adapter, *weights)
        if (
            self.teacher.schedule.prediction != self.unet.schedule.prediction
            or self.teacher.schedule.alphas.tolist() != self.unet.schedule.alphas.tolist()
        ):
            raise WrongTraining(
                f"The teacher's MODEL predicts {self.teacher.schedule.prediction} and the student's "
                f"{self.unet.schedule.prediction}, or their noise schedules differ. Use models of the same kind."
            )
        return Match(self.unet.predict, self.teacher.predict, self.unet.schedule, self.adapter, *weights)

    def result(self) -> Trained:
        """Runs what is left of the training."""
        blocks = list(self.unet.blocks) if self.job.checkpointing else []
        with recomputed(blocks):
            if not self.state.resumed(self.trainer) and self.start.is_new and self.job.quiet_start:
                self.quiet_start()
            with self.state.kept(self.trainer):
                self.run()
        learnt = self.unet.learnt(self.trainer.result("unet"))
        lora = {} if self.unet.whole else learnt
        weights = self.standard.out_of(
            {name: weight.cpu() for name, weight in self.trainer.result("adapter").items()}
        )
        entry = json.dumps(
            {
                "steps": self.trainer.steps,
                "objective": "denoise" if self.teacher is None else "match",
                **facts_of(self.job, self.pairs, self.start),
                "base": self.base,
                "base_is_patched": bool(self.model.patches),
                "lora": weights_digest(lora) if lora else None,
                "unet": weights_digest(learnt) if self.unet.whole else None,
            }
        )
        adapter = ManagedAdapter.holding(weights, self.adapter.config, self.start.recipe, training=entry)
        return Trained(adapter, lora, self.unet.changed(learnt), self.trainer.losses)

    def quiet_start(self) -> None:
        """Fits a new adapter to the prediction on CLIP's tokens alone, or goes on with that."""
        begin_quietly(self.adapter, self.data.empty.clip)
        settings = replace(
            self.job.settings,
            steps=self.job.quiet_start,
            learning_rate=QUIET_RATE * min(1.0, self.job.quiet_start / QUIET_STEPS),
            warm_up=min(10, self.job.quiet_start),
            decay=COSINE,
            ema=0.0,
            drops=Drops(self.job.settings.drops.text, 0.0, 0.0),
        )
        trainer = Trainer(
            QuietStart(self.unet.predict, self.unet.schedule, self.adapter),
            self.data,
            settings,
            timesteps=self.trainer.timesteps,
            adapter=self.adapter,
            device=self.device,
            ranks=self.ranks,
            is_out_of_memory=host.is_out_of_memory,
        )
        self.state.resume_quiet_start(trainer)
        before, show = trainer.steps, shown("quiet start", trainer)

        def on_step() -> None:
            if trainer.steps < settings.steps:
                self.state.save_if_due(trainer, is_quiet=True)
            show()

        try:
            trainer.run(on_step)
        finally:
            self.trainer.at_once = trainer.at_once
            if trainer.steps == settings.steps:  # also where Cancel comes in its last step
                self.trainer.restart_average()
                self.state.save(self.trainer)
            elif trainer.steps > before:
                self.state.save(trainer, is_quiet=True)

    def run(self) -> None:
        show = shown("training", self.trainer)
        # Only the first of several processes is looked at.
        every = self.job.preview_every if self.ranks.number == 0 else 0
        preview = Preview(self.unet, self.adapter, self.data, self.device) if every else None

        def on_step() -> None:
            self.state.save_if_due(self.trainer)
            picture = preview.picture() if preview and self.trainer.steps % every == 0 else None
            self.watch(self, picture)
            show(picture)

        self.trainer.run(on_step)

"""Trains the demo model with the pack's own trainer, and says every so often how much of its pictures is right.

    python tools/dev.py train-demo
    python tools/dev.py train-demo steps=20000 teacher.steps=5000

The same command goes on where it was stopped. First the UNet learns to draw from symbols, by demo_model/teacher.yaml.
Then a copy of it learns to draw from words with CLIP and the LLM, towards the first as its teacher, by
demo_model/job.yaml. `key=value` stands above the second file, `teacher.key=value` above the first.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_file

from demo_model import figures, narrow, parts, run_files
from demo_model.data import PICTURES, SETS, TRAINING, Captioned, Pictures
from demo_model.reading import load_llm_and_clip, read_texts
from demo_model.run_files import (
    ADAPTER,
    ARGUMENTS,
    CHECKPOINT,
    FEATURES,
    FIGURES,
    JOB_STATE,
    SHEETS,
    START,
    TEACHER,
    TEACHER_STATE,
    UNET,
)
from demo_model.symbols import Symbols
from training.job_file import FILES, WrongJob, read_job
from training.session import Session, start_comfyui, trainer_job

if TYPE_CHECKING:
    from llm4gen.models.training.data import EncodedText
    from llm4gen.models.training.stored import StoredTexts
    from llm4gen.nodes.training.data import TrainingSet
    from llm4gen.nodes.training.run import Run

JOB, TEACHER_JOB = (Path(__file__).with_name(name) for name in ("job.yaml", "teacher.yaml"))
OF_TEACHER = "teacher."  # before a key
NO_TEXT = 10  # one in so many pictures is drawn from the empty text, which guidance needs
TESTED = ("held-out pairs", "held-out wordings")  # while it is trained
READING = (
    "template",
    "system",
    "tokens",
    "padding",
    "layer",
    "heads",
    "mlp_dim",
    "seed",
)  # of New Cross-Adapter


def main() -> int:
    options = parse()
    session = start_comfyui(options.comfyui, ARGUMENTS)
    schema = {key: entry for key, entry in session.schema().items() if key not in FILES}
    theirs = [change.removeprefix(OF_TEACHER) for change in options.changes if change.startswith(OF_TEACHER)]
    own = [change for change in options.changes if not change.startswith(OF_TEACHER)]
    try:
        teacher_job, job = read_job(TEACHER_JOB, theirs, schema), read_job(JOB, own, schema)
    except WrongJob as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    options.folder.mkdir(parents=True, exist_ok=True)
    with torch.inference_mode():
        train(session, teacher_job, job, options.llm, options.folder, options.count)
    return 0


def train(
    session: Session,
    teacher_job: Mapping[str, Any],
    job: Mapping[str, Any],
    llm_file: Path,
    folder: Path,
    count: int,
) -> None:
    """llm_file: SmolLM2. folder: of the run. count: test captions of each kind that are drawn each time."""
    if not (folder / START).is_file() or not (folder / CHECKPOINT).is_file():
        weights = narrow.new_weights(job["seed"])
        save_file(weights, folder / START)
        save_file(parts.checkpoint(narrow.widened(weights)), folder / CHECKPOINT)
    llm, clip = load_llm_and_clip(session, llm_file, folder)
    adapter = session.run("LLM4GEN_NewCrossAdapter", llm=llm, **{key: job[key] for key in READING})
    texts = read_texts(clip, llm, adapter, folder / FEATURES)
    captions = SETS[TRAINING]()
    shared = Shared(captions, texts, llm, adapter, folder, count)
    if not (folder / TEACHER).is_file():
        learn_to_draw(shared, teacher_job)
    learn_to_read(shared, job)


@dataclass(frozen=True)
class Shared:
    """What both trainings use. adapter: a new one. folder, count: as in `train`."""

    captions: Sequence[Captioned]
    texts: StoredTexts
    llm: Any
    adapter: Any
    folder: Path
    count: int


def learn_to_draw(shared: Shared, job: Mapping[str, Any]) -> None:
    """Makes the teacher's file, of a UNet that draws from symbols."""
    from llm4gen.nodes.training.run import train as train_adapter  # noqa: PLC0415

    folder, adapter = shared.folder, shared.adapter
    drawn = SymbolicTexts(shared.texts, Symbols(one for draw in SETS.values() for one in draw()))
    words = ["" if place % NO_TEXT == 0 else one.text for place, one in enumerate(shared.captions)]
    train_adapter(
        narrow.load(str(folder / START)),
        training_set(shared.captions, words, drawn, shared.llm, adapter.recipe),
        adapter,
        trainer_job(job),
        state_file=folder / TEACHER_STATE,
        watch=Watch(folder, drawn, shared.count, "teacher", (0.0,)),
    )
    (folder / UNET).replace(folder / TEACHER)


def learn_to_read(shared: Shared, job: Mapping[str, Any]) -> None:
    """Makes the files of the UNet and the adapter, which begin as the teacher and as the new adapter."""
    from llm4gen.models.checkpoints.adapter import TRAINING_KEY, save_cross_adapter  # noqa: PLC0415
    from llm4gen.nodes.training.run import train as train_adapter  # noqa: PLC0415

    folder, adapter, texts = shared.folder, shared.adapter, shared.texts
    teacher = narrow.load(str(folder / TEACHER))
    words = [one.text for one in shared.captions]
    trained = train_adapter(
        teacher,
        training_set(shared.captions, words, texts, shared.llm, adapter.recipe),
        adapter,
        trainer_job(job),
        teacher_clip=Symbols(shared.captions),
        teacher_model=teacher,
        state_file=folder / JOB_STATE,
        watch=Watch(folder, texts, shared.count, "student", (1.0, 0.0)),
    )
    entry = {TRAINING_KEY: trained.adapter.training} if trained.adapter.training else {}
    save_cross_adapter(trained.adapter.adapter, trained.adapter.recipe, folder / ADAPTER, entry)


class SymbolicTexts(Mapping[str, "EncodedText"]):
    """Texts with symbols in CLIP's place."""

    def __init__(self, texts: Mapping[str, EncodedText], symbols: Symbols):
        self.texts, self.symbols = texts, symbols

    def __getitem__(self, text: str) -> EncodedText:
        states, _ = self.symbols.encode_from_tokens(text)
        return replace(self.texts[text], clip=states[0])

    def __iter__(self) -> Iterator[str]:
        return iter(self.texts)

    def __len__(self) -> int:
        return len(self.texts)


def training_set(
    captions: Sequence[Captioned],
    words: Sequence[str],
    texts: Mapping[str, EncodedText],
    llm: Any,
    recipe: Any,
) -> TrainingSet:
    """words: the text of each caption's pictures."""
    from llm4gen.models.training.data import kind_of, numbered  # noqa: PLC0415
    from llm4gen.nodes.training.data import TrainingSet, identity_of  # noqa: PLC0415
    from llm4gen.nodes.training.record import digest  # noqa: PLC0415

    pictures = Pictures(captions)
    encoded = {text: texts[text] for text in ["", *words]}
    kinds = numbered(kind_of(pictures[0], encoded[text]) for text in words)
    return TrainingSet(
        pictures,
        list(words) * PICTURES,
        encoded,
        recipe,
        identity_of(llm),
        None if kinds is None else kinds.repeat(PICTURES),
        digest({}, words, parts.CLIP_SEED, PICTURES),
    )


class Watch:
    """Draws test captions with the averaged weights whenever the state is kept, and writes what is right.

    stage: names its lines and sheets. strengths: as in the nodes, with which each caption is drawn.
    """

    def __init__(
        self,
        folder: Path,
        texts: Mapping[str, EncodedText],
        count: int,
        stage: str,
        strengths: Sequence[float],
    ):
        self.folder, self.count, self.texts = folder, count, texts
        self.stage, self.strengths = stage, strengths
        self.tests = {name: SETS[name]()[:count] for name in TESTED}
        self.began = time.monotonic()
        (folder / SHEETS).mkdir(exist_ok=True)

    def __call__(self, run: Run, preview: Any) -> None:
        steps, settings = run.trainer.steps, run.job.settings
        if steps % 100 == 0:
            mean = sum(run.trainer.losses[-100:]) / 100
            print(
                f"step {steps} of {settings.steps}: loss {mean:.4f}, {time.monotonic() - self.began:.0f} s",
                flush=True,
            )
        if steps % run.job.save_every == 0 or steps == settings.steps:
            self.look(run)

    def look(self, run: Run) -> None:
        drawer, steps = self.drawer(run), run.trainer.steps
        for name, captions in self.tests.items():
            texts = [self.texts[one.text] for one in captions]
            for strength in self.strengths:
                pictures = drawer.draw(texts, seed=0, strength=strength)
                found = figures.rates(figures.verdicts(pictures, captions))
                line = {"stage": self.stage, "step": steps, "set": name, "strength": strength}
                line |= {part: [rate.right, rate.of] for part, rate in found.items()}
                with (self.folder / FIGURES).open("a", encoding="utf-8") as file:
                    file.write(json.dumps(line) + "\n")
                print(
                    f"  {name}, strength {strength:g}:", *(f"{k} {v}" for k, v in found.items()), flush=True
                )
                sheet = figures.contact_sheet(pictures[:60])
                sheet.save(self.folder / SHEETS / f"{self.stage} {steps:06} {name} {strength:g}.png")

    def drawer(self, run: Run) -> figures.Drawer:
        """With the averages by then, which it also writes, in fp16."""
        from llm4gen.models.checkpoints.adapter import save_cross_adapter  # noqa: PLC0415
        from llm4gen.models.cross_adapter import CrossAdapter  # noqa: PLC0415

        prefix = "diffusion_model."
        weights = {name.removeprefix(prefix): weight for name, weight in run.trainer.result("unet").items()}
        save_file({name: weight.half() for name, weight in weights.items()}, self.folder / UNET)
        adapter = CrossAdapter(run.adapter.config, dtype=torch.float32)
        adapter.load_state_dict(run.standard.out_of(run.trainer.result("adapter")))
        save_cross_adapter(adapter, run.start.recipe, self.folder / ADAPTER, {})
        return figures.Drawer(figures.unet_of(weights), run.unet.schedule, adapter, self.texts[""])


def parse() -> argparse.Namespace:
    parser = run_files.parser(__doc__)
    parser.add_argument("changes", nargs="*", metavar="KEY=VALUE", help="a value in place of the job's")
    parser.add_argument("--count", type=int, default=100, help="test captions of each kind (default: 100)")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())

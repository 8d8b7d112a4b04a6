"""What a training leaves in its folder: the job, the versions, the losses as a table and as a picture, the result."""

from __future__ import annotations

import csv
import itertools
import json
import math
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import yaml
from PIL import Image, ImageDraw, ImageOps
from safetensors.torch import save_file

if TYPE_CHECKING:
    from llm4gen.nodes.training.run import Run, Trained

JOB, VERSIONS, LOSSES, CURVE = "job.yaml", "versions.json", "losses.csv", "losses.png"
ADAPTER, LORA, UNET = "adapter.safetensors", "lora.safetensors", "unet.safetensors"
PREVIEWS, SHEET = "previews", "previews.png"
SIZE, MARGIN = (960, 480), 48  # of the picture of the losses, pixels
MOST, ACROSS = 40, 8  # pictures of the contact sheet
TILE, GAP, TITLE = 128, 8, 14  # of one of them, and around it, pixels


class RunFolder:
    """folder: is made if it is missing."""

    def __init__(self, folder: Path, job: Mapping[str, Any], comfyui: str):
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        plain = {key: value for key, value in job.items() if value is not None}
        text = yaml.safe_dump(json.loads(json.dumps(plain, default=str)), sort_keys=False, allow_unicode=True)
        (folder / JOB).write_text(text, encoding="utf-8")
        versions = {"ComfyUI": comfyui, "torch": torch.__version__, "Python": platform.python_version()}
        (folder / VERSIONS).write_text(json.dumps(versions, indent=2), encoding="utf-8")

    def watch(self, run: Run, preview: Any) -> None:
        """Writes the losses so far, as often as the state is kept, and a preview if there is one."""
        every, steps = run.job.save_every, run.trainer.steps
        if every and steps % every == 0:
            self.write_losses(run.trainer.losses)
        if preview is not None:
            _, picture, _ = preview  # ComfyUI's kind of file and largest size stand beside it
            (self.folder / PREVIEWS).mkdir(exist_ok=True)
            picture.save(self.folder / PREVIEWS / f"{steps:08}.png")
            contact_sheet(sorted((self.folder / PREVIEWS).glob("*.png"))).save(self.folder / SHEET)

    def write_losses(self, losses: list[float]) -> None:
        with (self.folder / LOSSES).open("w", newline="", encoding="utf-8") as file:
            rows = csv.writer(file)
            rows.writerow(["step", "loss"])
            rows.writerows(enumerate(losses, 1))
        if losses:
            draw_losses(losses).save(self.folder / CURVE)

    def write_result(self, trained: Trained) -> list[Path]:
        """Returns the files."""
        import comfy.sd  # noqa: PLC0415

        from llm4gen.models.checkpoints.adapter import TRAINING_KEY, save_cross_adapter  # noqa: PLC0415

        adapter = trained.adapter
        entry = {TRAINING_KEY: adapter.training} if adapter.training else {}
        save_cross_adapter(adapter.adapter, adapter.recipe, self.folder / ADAPTER, entry)
        written = [self.folder / ADAPTER]
        if trained.lora:
            save_file(trained.lora, self.folder / LORA)
            written.append(self.folder / LORA)
        elif json.loads(adapter.training)["job"]["unet"] == "whole":
            comfy.sd.save_checkpoint(str(self.folder / UNET), trained.model)
            written.append(self.folder / UNET)
        self.write_losses(trained.losses)
        return written


def contact_sheet(pictures: Sequence[Path]) -> Image.Image:
    """At most `MOST` of the pictures, evenly spread, with the steps that their names say."""
    chosen = [
        pictures[len(pictures) * place // min(MOST, len(pictures))]
        for place in range(min(MOST, len(pictures)))
    ]
    rows = math.ceil(len(chosen) / ACROSS)
    sheet = Image.new("RGB", (ACROSS * (TILE + GAP) + GAP, rows * (TILE + TITLE + GAP) + GAP), "white")
    draw = ImageDraw.Draw(sheet)
    for place, path in enumerate(chosen):
        left = GAP + place % ACROSS * (TILE + GAP)
        top = GAP + place // ACROSS * (TILE + TITLE + GAP)
        draw.text((left, top), f"step {int(path.stem)}", fill="black")
        with Image.open(path) as picture:
            shown = ImageOps.contain(picture.convert("RGB"), (TILE, TILE), Image.Resampling.NEAREST)
        sheet.paste(shown, (left, top + TITLE))
    return sheet


def draw_losses(losses: list[float]) -> Image.Image:
    """The mean loss of equal parts of the training, at most one for each pixel across, from 0 up."""
    width, height = SIZE[0] - 2 * MARGIN, SIZE[1] - 2 * MARGIN
    parts = min(len(losses), max(1, min(width, len(losses) // 10)))
    borders = [len(losses) * part // parts for part in range(parts + 1)]
    means = [sum(losses[a:b]) / (b - a) for a, b in itertools.pairwise(borders)]
    top = max(means) or 1.0
    points = [
        (MARGIN + width * borders[part + 1] / len(losses), MARGIN + height * (1 - mean / top))
        for part, mean in enumerate(means)
    ]
    picture = Image.new("RGB", SIZE, "white")
    draw = ImageDraw.Draw(picture)
    draw.line([(MARGIN, MARGIN), (MARGIN, MARGIN + height), (MARGIN + width, MARGIN + height)], fill="black")
    draw.line(points if len(points) > 1 else points * 2, fill="blue", width=2)
    draw.text((MARGIN + 4, MARGIN - 16), f"loss, up to {top:.4f}", fill="black")
    draw.text((MARGIN + width - 60, MARGIN + height + 8), f"step {len(losses)}", fill="black")
    return picture

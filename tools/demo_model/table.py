"""How much of what captions say is in the pictures of the trained demo model: by strength, and with noise for the LLM.

    python tools/dev.py bench scenes
    python tools/dev.py bench scenes --count 100 --without-llm DIR

In the row `noise` the adapter gets random states in the LLM's place, with the mean and deviation of the LLM's own. What
it adds then says nothing about the caption. The pictures of a caption start from the same noise in every row.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file

from demo_model import figures, narrow, run_files
from demo_model.data import SETS, TRAINING, Captioned
from demo_model.reading import load_llm_and_clip, read_texts
from demo_model.run_files import ADAPTER, ARGUMENTS, SHEETS, START, UNET
from training.session import Session, start_comfyui

if TYPE_CHECKING:
    from llm4gen.models.training.data import EncodedText

STRENGTHS = (1.0, 0.0, 0.25, 0.5, 0.75, 1.25, 1.5)
PARTS = ("colours", "shapes", "bound", "placed")
SHOWN = 60  # pictures of a row on its contact sheet


@dataclass(frozen=True)
class Row:
    """texts: what is read for each caption, by its text. strength: as in the nodes."""

    name: str
    drawer: figures.Drawer
    texts: Mapping[str, EncodedText]
    strength: float


def main() -> int:
    options = parse()
    lacking = [
        folder for folder in (options.folder, options.without_llm) if folder and not is_trained(folder)
    ]
    if lacking:
        print(
            f"error: {lacking[0]} holds no trained model. Run python tools/dev.py train-demo.",
            file=sys.stderr,
        )
        return 1
    session = start_comfyui(options.comfyui, ARGUMENTS)
    with torch.inference_mode():
        rows = list(rows_of(session, options))
        for name in SETS:
            if name != TRAINING:
                print_table(rows, name, SETS[name]()[: options.count], options.folder)
    return 0


def is_trained(folder: Path) -> bool:
    return (folder / UNET).is_file() and (folder / ADAPTER).is_file()


def rows_of(session: Session, options: argparse.Namespace) -> Iterator[Row]:
    import folder_paths  # noqa: PLC0415

    folder_paths.add_model_folder_path("llm4gen", str(options.folder))
    llm, clip = load_llm_and_clip(session, options.llm, options.folder)
    adapter = session.run("LLM4GEN_LoadCrossAdapter", adapter_name=ADAPTER)
    texts = read_texts(clip, llm, adapter, options.folder / "features")
    drawer = drawer_of(options.folder, texts[""])
    for strength in STRENGTHS:
        yield Row(f"strength {strength:g}", drawer, texts, strength)
    yield Row("noise", drawer, with_noise(texts), 1.0)
    if options.without_llm:
        yield Row("trained without the LLM", drawer_of(options.without_llm, texts[""]), texts, 0.0)


def drawer_of(folder: Path, empty: EncodedText) -> figures.Drawer:
    from llm4gen.models.checkpoints.adapter import load_cross_adapter  # noqa: PLC0415
    from llm4gen.nodes.training.unet import schedule_of  # noqa: PLC0415

    adapter, _ = load_cross_adapter(folder / ADAPTER)
    unet = figures.unet_of(load_file(folder / UNET))
    return figures.Drawer(unet, schedule_of(narrow.load(str(folder / START))), adapter, empty)


def with_noise(texts: Mapping[str, EncodedText]) -> dict[str, EncodedText]:
    """Texts with random states for the LLM's, of the same mean and deviation in each dimension."""
    from llm4gen.models.training.standard import Standard  # noqa: PLC0415

    standard = Standard.of(texts.values())
    source = torch.Generator().manual_seed(0)

    def noisy(text: EncodedText) -> EncodedText:
        states = torch.randn(text.llm.states.shape, generator=source) * standard.deviation + standard.mean
        return replace(text, llm=replace(text.llm, states=states))

    return {name: noisy(text) for name, text in texts.items()}


def print_table(rows: Sequence[Row], name: str, captions: Sequence[Captioned], folder: Path) -> None:
    """One table, with 95% confidence intervals, and a contact sheet for each row."""
    print(
        f"\n{name}, {len(captions)} captions\n\n| | {' | '.join(PARTS)} |\n|---|{'---|' * len(PARTS)}",
        flush=True,
    )
    (folder / SHEETS).mkdir(exist_ok=True)
    for row in rows:
        pictures = row.drawer.draw([row.texts[one.text] for one in captions], 0, row.strength)
        found: dict[str, Any] = figures.rates(figures.verdicts(pictures, captions))
        print(f"| {row.name} | {' | '.join(str(found[part]) for part in PARTS)} |", flush=True)
        figures.contact_sheet(pictures[:SHOWN]).save(folder / SHEETS / f"{name}, {row.name}.png")


def parse() -> argparse.Namespace:
    parser = run_files.parser(__doc__)
    parser.add_argument(
        "--without-llm", type=Path, metavar="DIR", help="of a run that never saw the LLM's half"
    )
    parser.add_argument("--count", type=int, default=300, help="captions of each kind (default: 300)")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())

"""The demo model's captions, as CLIP and the LLM read them."""

from __future__ import annotations

from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from demo_model import parts
from demo_model.data import SETS
from demo_model.run_files import CHECKPOINT

if TYPE_CHECKING:
    from llm4gen.models.training.stored import StoredTexts
    from training.session import Session

MOST = 10 << 30  # bytes that the states may take on the disk
SAID = 200  # captions after which a line says how many are read


def load_llm_and_clip(session: Session, llm_file: Path, folder: Path) -> tuple[Any, Any]:
    """folder: of the run, which holds a checkpoint with CLIP."""
    import comfy.sd  # noqa: PLC0415
    import folder_paths  # noqa: PLC0415

    folder_paths.add_model_folder_path("text_encoders", str(llm_file.parent))
    llm = session.run("LLM4GEN_LoadLLMEncoder", encoder_name=llm_file.name, dtype="fp32")
    checkpoint = str(folder / CHECKPOINT)
    _, clip, *_ = comfy.sd.load_checkpoint_guess_config(checkpoint, output_vae=False, output_clip=True)
    return llm, clip


def read_texts(clip: Any, llm: Any, adapter: Any, folder: Path) -> StoredTexts:
    """The states of all captions, kept in a folder. adapter: its recipe says how the LLM is fed."""
    from llm4gen.models.training.stored import Store, StoredTexts  # noqa: PLC0415
    from llm4gen.nodes.fused_clip import FusedCLIP  # noqa: PLC0415
    from llm4gen.nodes.fusion import Fusion  # noqa: PLC0415
    from llm4gen.nodes.training.reading import Reader  # noqa: PLC0415

    fused = FusedCLIP.around(clip, Fusion(llm, adapter))
    read_by = [str(parts.CLIP_SEED), repr(llm.key((), adapter.recipe)), repr(adapter.recipe)]
    texts = StoredTexts(Store(folder, MOST), lambda text: [*read_by, text], Reader(fused))
    every = dict.fromkeys(["", *(one.text for draw in SETS.values() for one in draw())])
    numbers = count(1)

    def say() -> None:
        if (number := next(numbers)) % SAID == 0:
            print(f"captions read: {number} of {len(every)}", flush=True)

    texts.add_all(every, say)
    return texts

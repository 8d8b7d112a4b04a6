"""Converts an LLM encoder or a Cross-Adapter into one .safetensors, as small as you like. Run by ComfyUI's Python.

    python tools/convert.py pytorch_model.bin rankgen-t5-xl-all-bf16.safetensors --dtype bf16
    python tools/convert.py projector.pth
    python tools/convert.py SmolLM2-135M-Instruct.Q4_1.gguf

LLMs other than T5 become a folder, with their config.json and tokenizer beside the weights. Needs little memory
whatever the size of the file, and of ComfyUI only what it installs (for .gguf files, the package gguf besides).
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

# The Python of ComfyUI for Windows looks for no module beside the script that it runs.
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

from files.interruptible import CannotWrite, Ended, ended_between_steps, sha256
from pack import make_importable

if TYPE_CHECKING:
    from llm4gen.models.conversion.conversion import Conversion

# Goes up with every change of what is written.
VERSION = 2
TARGETS = (".safetensors", ".sft")
NAMES = ("fp32", "bf16", "fp16", "fp8")
IN_FOLDER = "model.safetensors"  # as transformers calls the weights in a folder


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    make_importable()
    from llm4gen.models.errors import LLM4GENError  # noqa: PLC0415

    try:
        with ended_between_steps() as check:
            convert(options.source.expanduser(), options.target, options.dtype, options.force, check)
    except (LLM4GENError, CannotWrite, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except Ended as ended:
        print("interrupted: nothing was written", file=sys.stderr)
        return 128 + ended.number
    return 0


def convert(
    source: Path, target: Path | None, dtype: str | None, force: bool, check: Callable[[], None]
) -> None:
    """check: called between any two steps; what it raises ends the work.

    Raises: LLM4GENError, CannotWrite, OSError.
    """
    from files.safetensors_writer import Outline, in_one_step, write_tensors  # noqa: PLC0415
    from llm4gen.models.conversion.plans import plan_conversion  # noqa: PLC0415
    from llm4gen.models.files.weights import weight_files  # noqa: PLC0415

    plan = plan_conversion(source, dtype)
    files = weight_files(source)
    target = checked_target(target or default_target(source, plan), files, force, plan.companions is not None)
    print(f"{source.name}: {plan.kind}, {sum(file.stat().st_size for file in files):,} bytes")
    if plan.left_out:
        print(
            f"left out, since nothing here uses it: {', '.join(plan.left_out[:4])}{', …' * (len(plan.left_out) > 4)}"
        )
    metadata = {"format": "pt", "dtype": plan.dtype, **plan.metadata, **origin(source, files, check)}
    outline = Outline(plan.outline(), metadata)
    print(f"writing {target} in {plan.dtype} ...", flush=True)
    checksum = hashlib.sha256()
    furnished = made_folder(target.parent, plan.companions) if plan.companions else nullcontext()
    with furnished, in_one_step(target, outline.size()) as file:

        def write(data: bytes | memoryview) -> None:
            check()
            file.write(data)
            checksum.update(data)

        write_tensors(write, outline, plan.chunks(outline.names()))
        check()
    print(f"done: {target}, {outline.size():,} bytes, sha256 {checksum.hexdigest()}")
    tell_of_tokenizer(plan, target)


def default_target(source: Path, plan: Conversion) -> Path:
    """Beside the source; a link is a source of its own."""
    named = Path(os.path.abspath(source))
    stem = named.name if named.is_dir() else named.stem
    return named.with_name(f"{stem}-{plan.dtype}" + ("" if plan.companions else TARGETS[0]))


def checked_target(target: Path, files: Sequence[Path], force: bool, in_folder: bool) -> Path:
    """A place for the weights that can be written to. files: the source's. in_folder: the target is a folder, whose
    weights they will be. Raises: CannotWrite."""
    target = target.expanduser()
    if in_folder:
        if target.suffix.lower() in TARGETS or target.is_file():
            raise CannotWrite(
                f"This LLM needs its config.json and tokenizer beside it: {target} must be a folder."
            )
        if not target.parent.is_dir():
            raise CannotWrite(f"There is no folder {target.parent}. Make it first.")
        return (
            target / IN_FOLDER
            if not target.is_dir()
            else checked_target(target / IN_FOLDER, files, force, False)
        )
    if target.suffix.lower() not in TARGETS:
        raise CannotWrite(
            f"{target.name} must end in {' or '.join(TARGETS)}: by that the file is recognised."
        )
    if not target.parent.is_dir():
        raise CannotWrite(f"There is no folder {target.parent}. Make it first.")
    if target.exists() and any(target.samefile(file) for file in files):
        raise CannotWrite(f"{target} is the source itself. Name another target.")
    if target.is_dir() or (target.exists() and not force):
        raise CannotWrite(f"{target} exists already. Name another target, or replace it with --force.")
    return target


@contextmanager
def made_folder(folder: Path, furnish: Callable[[Path], None]) -> Iterator[None]:
    """A folder with all but the weights, without which no program takes it for a model. If anything goes wrong, it
    goes too, unless it was there before."""
    new = not folder.is_dir()
    try:
        folder.mkdir(exist_ok=True)
        furnish(folder)
        yield
    except BaseException:
        if new:
            shutil.rmtree(folder, ignore_errors=True)
        raise


def origin(source: Path, files: Sequence[Path], check: Callable[[], None]) -> dict[str, str]:
    """Metadata: what the new file was made of, and by what. Of shards each has a line, as sha256sum prints it."""
    sums = {file.name: sha256(file, check) for file in files}
    lines = list(sums.values()) if len(sums) == 1 else [f"{value}  {name}" for name, value in sums.items()]
    return {
        "source": Path(os.path.abspath(source)).name,
        "source_sha256": "\n".join(lines),
        "converter": f"LLM4GEN for ComfyUI, tools/convert.py {VERSION}",
    }


def tell_of_tokenizer(plan: Conversion, target: Path) -> None:
    """An encoder's own tokenizer is found in its folder only."""
    if plan.tokenizer and plan.tokenizer != target.resolve().parent:
        print(
            f"This encoder has a tokenizer of its own, which is found beside it: put {target.name} into a folder of "
            f"its own in models/text_encoders, with the tokenizer files of {plan.tokenizer}."
        )


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="convert.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "source", type=Path, help="what Load LLM Encoder or Load Cross-Adapter takes: file or folder"
    )
    parser.add_argument(
        "target",
        type=Path,
        nargs="?",
        help="(default: SOURCE-DTYPE.safetensors beside the source; a folder SOURCE-DTYPE for LLMs other than T5)",
    )
    parser.add_argument(
        "--dtype", choices=NAMES, help="(default: bf16; for a Cross-Adapter, that of the file)"
    )
    parser.add_argument("--force", action="store_true", help="replace the target if it is there")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())

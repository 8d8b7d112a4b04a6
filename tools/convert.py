"""Converts an LLM encoder or a Cross-Adapter into one .safetensors file, in a smaller dtype if you like.

    python tools/convert.py pytorch_model.bin rankgen-t5-xl-all-bf16.safetensors --dtype bf16
    python tools/convert.py projector.pth
    python tools/convert.py SmolLM2-135M-Instruct.Q4_1.gguf

Run it with the Python that runs ComfyUI. An LLM other than T5 becomes a folder, with its config.json and tokenizer
beside the weights. The conversion needs little memory, whatever the size of the file. To read .gguf files, it needs
the Python package gguf.
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

# The Python of ComfyUI's portable build for Windows does not look for modules beside the script that it runs.
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

from files.interruptible import CannotWrite, Interrupted, interruptible_steps, sha256
from pack import make_importable

# Everything else is imported in functions, so that --help does not wait for torch.
if TYPE_CHECKING:
    from files.safetensors_writer import Outline
    from llm4gen.models.conversion.conversion import Conversion

VERSION = 2  # increased when the same source would give another file
SUFFIXES = (".safetensors", ".sft")
WEIGHTS_IN_FOLDER = "model.safetensors"  # the name that transformers gives to the weights in a folder
LEFT_OUT_LISTED = 4


def main(arguments: Sequence[str] | None = None) -> int:
    make_importable()
    from llm4gen.models.errors import LLM4GENError  # noqa: PLC0415

    options = parse(arguments)
    try:
        with interruptible_steps() as check:
            convert(options.source.expanduser(), options.target, options.dtype, options.force, check)
    except (LLM4GENError, CannotWrite, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except Interrupted as interrupted:
        print("interrupted: nothing was written", file=sys.stderr)
        return 128 + interrupted.signal_number
    return 0


def convert(
    source: Path, target: Path | None, dtype: str | None, force: bool, check: Callable[[], None]
) -> None:
    """Writes the new file or folder, and prints what is done.

    source: a file or folder that Load LLM Encoder or Load Cross-Adapter can load.
    target: the new file or folder; None is `default_target`.
    dtype:  one of `DTYPE_NAMES`; None is the default of `plan_conversion`.
    force:  whether an existing file is replaced.
    check:  called between two steps; what it raises ends the work.
    Raises: LLM4GENError, CannotWrite, OSError.
    """
    from files.safetensors_writer import Outline  # noqa: PLC0415
    from llm4gen.models.conversion.plans import plan_conversion  # noqa: PLC0415
    from llm4gen.models.files.folder import weight_files  # noqa: PLC0415

    plan = plan_conversion(source, dtype)
    files = weight_files(source)
    weights = weights_path((target or default_target(source, plan)).expanduser(), plan)
    check_replaceable(weights, files, force)
    print(f"{source.name}: {plan.kind}, {sum(file.stat().st_size for file in files):,} bytes")
    print_left_out(plan.left_out)
    origin = source_metadata(source, files, check)
    metadata = {"format": "pt", "dtype": plan.dtype, **plan.metadata, **origin}
    print(f"writing {weights} in {plan.dtype} ...", flush=True)
    write(plan, Outline(plan.outline(), metadata), weights, check)
    print_tokenizer_advice(plan, weights)


def default_target(source: Path, plan: Conversion) -> Path:
    """`SOURCE-DTYPE.safetensors` beside the source, or the folder `SOURCE-DTYPE` for an LLM that needs one.

    Links are not followed: for a link, the target is beside the link.
    """
    named = Path(os.path.abspath(source))
    stem = named.name if named.is_dir() else named.stem
    suffix = SUFFIXES[0] if plan.companions is None else ""
    return named.with_name(f"{stem}-{plan.dtype}{suffix}")


def weights_path(target: Path, plan: Conversion) -> Path:
    """The path that the weights are written to. Raises: CannotWrite if the target's name or place is wrong."""
    is_file_name = target.suffix.lower() in SUFFIXES
    if plan.companions and (is_file_name or target.is_file()):
        raise CannotWrite(
            f"This LLM needs its config.json and tokenizer beside its weights: {target} must be a folder."
        )
    if not plan.companions and not is_file_name:
        raise CannotWrite(
            f"{target.name} must end in {' or '.join(SUFFIXES)}, because loaders recognise the format by that."
        )
    if not target.parent.is_dir():
        raise CannotWrite(f"The folder {target.parent} does not exist. Make it first.")
    return target / WEIGHTS_IN_FOLDER if plan.companions else target


def check_replaceable(target: Path, source_files: Sequence[Path], force: bool) -> None:
    """Raises: CannotWrite if a file would be replaced that must stay."""
    if target.exists() and any(target.samefile(file) for file in source_files):
        raise CannotWrite(f"{target} is the source itself. Name another target.")
    if target.is_dir() or (target.exists() and not force):
        raise CannotWrite(f"{target} exists already. Name another target, or replace it with --force.")


def source_metadata(source: Path, files: Sequence[Path], check: Callable[[], None]) -> dict[str, str]:
    """The metadata entries that say which source the new file was made from, and by which program.

    A sharded source gets a line for each of its files, in the format of the program sha256sum.
    """
    sums = {file.name: sha256(file, check) for file in files}
    lines = list(sums.values()) if len(sums) == 1 else [f"{value}  {name}" for name, value in sums.items()]
    return {
        "source": Path(os.path.abspath(source)).name,
        "source_sha256": "\n".join(lines),
        "converter": f"LLM4GEN for ComfyUI, tools/convert.py {VERSION}",
    }


def write(plan: Conversion, outline: Outline, path: Path, check: Callable[[], None]) -> None:
    """Writes the weights to `path`, and the files that must lie beside them, then prints size and checksum."""
    from files.safetensors_writer import atomic_file, write_tensors  # noqa: PLC0415

    checksum = hashlib.sha256()
    companions = folder_with(plan.companions, path.parent) if plan.companions else nullcontext()
    with companions, atomic_file(path, outline.size()) as file:

        def write_bytes(data: bytes | memoryview) -> None:
            check()
            file.write(data)
            checksum.update(data)

        write_tensors(write_bytes, outline, plan.chunks(outline.names()))
        check()
    print(f"done: {path}, {outline.size():,} bytes, sha256 {checksum.hexdigest()}")


@contextmanager
def folder_with(write_companions: Callable[[Path], None], folder: Path) -> Iterator[None]:
    """Makes a folder with everything but the weights. Until these are written, no program takes it for a model.

    If an error occurs inside the `with` block, the folder is removed, unless it existed before.
    """
    is_new = not folder.is_dir()
    try:
        folder.mkdir(exist_ok=True)
        write_companions(folder)
        yield
    except BaseException:
        if is_new:
            shutil.rmtree(folder, ignore_errors=True)
        raise


def print_left_out(names: Sequence[str]) -> None:
    """Names some of the source's tensors that are not written."""
    if names:
        more = ", …" if len(names) > LEFT_OUT_LISTED else ""
        print(f"left out, because this pack does not use it: {', '.join(names[:LEFT_OUT_LISTED])}{more}")


def print_tokenizer_advice(plan: Conversion, weights: Path) -> None:
    """Says what to do if the encoder has its own tokenizer, which the loader only finds in the encoder's folder."""
    if plan.tokenizer and plan.tokenizer != weights.resolve().parent:
        print(
            "This encoder has its own tokenizer, which must lie beside it: put "
            f"{weights.name} into a folder of its own in models/text_encoders, with the tokenizer files of "
            f"{plan.tokenizer}."
        )


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    from llm4gen.models.files.formats import DTYPE_NAMES  # noqa: PLC0415

    parser = argparse.ArgumentParser(
        prog="convert.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "source", type=Path, help="a file or folder that Load LLM Encoder or Load Cross-Adapter can load"
    )
    parser.add_argument(
        "target",
        type=Path,
        nargs="?",
        help="(default: SOURCE-DTYPE.safetensors beside the source; the folder SOURCE-DTYPE for an LLM other than T5)",
    )
    parser.add_argument(
        "--dtype", choices=DTYPE_NAMES, help="(default: bf16; for a Cross-Adapter, the file's own dtype)"
    )
    parser.add_argument("--force", action="store_true", help="replace the target if it exists")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())

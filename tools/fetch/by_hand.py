"""Instructions for a user who downloads and converts the files without tools/fetch_weights.py."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from fetch.failures import HUB
from fetch.items import PINNED, Item
from host.comfyui import TOOLS


def instructions(items: Iterable[Item], folders: Mapping[str, Sequence[Path]], dtype: str | None) -> str:
    """How to download, save and convert these items.

    folders: see `model_folders`.
    dtype:   the user's choice for the encoder, if there was one.
    """
    items = list(items)
    lines = ["Do it by hand, with a browser on this or another machine:"]
    for item in items:
        lines += instructions_for(item, folders[item.folder_key][0], dtype)
    converted = [item.target_name(None) for item in items if item.is_converted]
    if converted:
        lines.append(
            f"The example workflows name {' and '.join(converted)}. Choose any other file in their loader nodes."
        )
    return "\n".join(lines)


def instructions_for(item: Item, folder: Path, dtype: str | None) -> list[str]:
    """The lines for one item. folder: the model folder that it belongs in."""
    page = f"{HUB}/{item.repository}/tree/{PINNED[item.repository] or 'main'}"
    file = item.remote_path
    if item.is_in_folder:
        page = f"{page}/{item.remote_path}"
        file = "the .safetensors in it, or else the .bin, which keeps that suffix"
    size = f"about {item.about_bytes:,} bytes" if item.about_bytes else "its size is not known"
    downloaded = folder / item.manual_name
    lines = [f"{item.name}:", f"  page  {page}", f"  file  {file} ({size})", f"  to    {downloaded}"]
    if not folder.is_dir():
        lines.append("  (make the folder)")
    if item.is_converted:
        target = folder / item.target_name(dtype)
        command = convert_command(downloaded, target, item.target_dtype(dtype))
        lines += [f"  then  run this, which converts it to {target.name}:", f"        {command}"]
    return lines


def convert_command(source: Path, target: Path, dtype: str | None) -> str:
    """A command line of tools/convert.py, quoted for the system's shell."""
    words = [sys.executable, str(TOOLS / "convert.py"), str(source), str(target)]
    words += ["--dtype", dtype] if dtype else []
    return subprocess.list2cmdline(words) if os.name == "nt" else shlex.join(words)

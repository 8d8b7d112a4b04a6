"""A pytest plugin (`-p pretend_run`): tests run on the pretend card, and ComfyUI takes it for a real one."""

import sys

import pretend_card
import pretend_dynamic_vram
from paths import COMFYUI

pretend_card.install()
pretend_dynamic_vram.install()
sys.path.insert(0, str(COMFYUI))

from comfy.cli_args import args  # noqa: E402

# The pretend card has no streams and pins no memory.
args.disable_async_offload = args.disable_pinned_memory = True

"""Gives a Python and all Pythons that it starts the pretend card, if this folder is among `LLM4GEN_PACKAGES`.

Python imports a module of this name when it starts.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

try:
    import pretend_card
    import pretend_dynamic_vram
except ImportError:
    pass  # a Python without torch or ComfyUI's packages, which is none that runs ComfyUI
else:
    pretend_card.install()
    pretend_dynamic_vram.install()

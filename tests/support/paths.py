"""Where the tests find what is not in the pack: golden outputs, and the host that `tools/dev.py` set up."""

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = ROOT / "tests" / "golden"
COMFYUI = Path(os.environ.get("LLM4GEN_COMFYUI", ROOT / ".host" / "ComfyUI"))
T5_TOKENIZER = COMFYUI / "comfy" / "text_encoders" / "t5_tokenizer"
SMOLLM2 = ROOT / ".host" / "models-real" / "SmolLM2-135M-Instruct.Q4_1.gguf"
STANDINS = ROOT / ".host" / "standins"
TOOLS = ROOT / "tools"

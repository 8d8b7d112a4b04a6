"""Socket types: the pack's own, and two of core's. Saved workflows rely on these names."""

from comfy_api.latest import io

LLM = io.Custom("LLM4GEN_LLM")
ADAPTER = io.Custom("LLM4GEN_ADAPTER")
TRAINING_SET = io.Custom("LLM4GEN_TRAINING_SET")
# Core's, for which its API has no class.
LORA_MODEL = io.Custom("LORA_MODEL")
LOSS_MAP = io.Custom("LOSS_MAP")
